"""The encoder-decoder: what each side may see, what travels, and what must not change what it computes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from plait import spec
from plait.model.build import build
from plait.model.loss import cross_entropy
from plait.model.noise import Noise
from plait.model.seq2seq import Seq2Seq

VOCABULARY, SOURCE, TARGET = 50, 80, 24


def built(**changes: object) -> Seq2Seq:
    model = spec.Model(**{"family": "t5", "layers": 2, "decoder_layers": 1, "width": 32, "heads": 4, "head_size": 6, **changes})
    module = build(model, VOCABULARY, SOURCE, seed=0, dtype=torch.float64)
    assert isinstance(module, Seq2Seq)
    return module


def tokens(rows: int = 3) -> Tensor:
    return torch.randint(0, VOCABULARY, (rows, SOURCE + TARGET), generator=torch.Generator().manual_seed(rows))


def test_a_target_sees_all_of_its_source_and_its_own_past() -> None:
    model, x = built(), tokens()
    before = model(x, source=SOURCE)
    assert before.shape == (3, TARGET, VOCABULARY)
    changed = x.clone()
    changed[:, 70] = (changed[:, 70] + 1) % VOCABULARY
    assert (model(changed, source=SOURCE) != before).any(-1).all()
    changed = x.clone()
    changed[:, SOURCE + 10] = (changed[:, SOURCE + 10] + 1) % VOCABULARY
    after = model(changed, source=SOURCE)
    torch.testing.assert_close(after[:, :10], before[:, :10], rtol=0, atol=1e-13)
    assert (after[:, 10:] != before[:, 10:]).any(-1).all()


def test_nothing_sees_the_padding_of_a_source() -> None:
    model, x = built(), tokens()
    documents = torch.zeros_like(x)
    documents[:, 60:SOURCE] = -1
    changed = x.clone()
    changed[:, 60:SOURCE] = (changed[:, 60:SOURCE] + 1) % VOCABULARY
    torch.testing.assert_close(model(x, documents, source=SOURCE), model(changed, documents, source=SOURCE), rtol=0, atol=1e-13)
    short = torch.cat([x[:, :60], x[:, SOURCE:]], 1)
    torch.testing.assert_close(model(x, documents, source=SOURCE), model(short, source=60), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("gated", [False, True])
def test_attention_written_out_is_that_of_torchs_kernel(gated: bool) -> None:
    model, x = built(gated=gated), tokens()
    with torch.no_grad():
        by_kernel = model(x, source=SOURCE)
    torch.testing.assert_close(model(x, source=SOURCE), by_kernel, rtol=1e-9, atol=1e-11)


def test_distances_learn_what_finite_differences_say() -> None:
    model, x = built(), tokens(2)

    def loss() -> Tensor:
        return cross_entropy(model(x, source=SOURCE), x[:, SOURCE:])

    loss().backward()
    for table in (model.source_distances.weight, model.target_distances.weight):
        assert table.grad is not None
        for place in ((1, 0), (3, 2), (9, 1)):
            found = []
            for step in (1e-5, -1e-5):
                with torch.no_grad():
                    table[place] += step
                    found.append(float(loss()))
                    table[place] -= step
            assert (found[0] - found[1]) / 2e-5 == pytest.approx(float(table.grad[place]), rel=1e-5, abs=1e-7)


def test_micro_batches_sum_to_the_batch_and_recomputing_changes_nothing() -> None:
    model, x, samples = built(dropout=0.2), tokens(4), torch.tensor([9, 4, 7, 1])
    together = model(x, None, Noise(1, 5, samples), source=SOURCE)
    part = model(x[1:], None, Noise(1, 5, samples[1:]), source=SOURCE)
    torch.testing.assert_close(part, together[1:], rtol=1e-10, atol=1e-12)
    again = built(dropout=0.2, recompute="full")
    found = []
    for each in (model, again):
        each.zero_grad()
        cross_entropy(each(x, None, Noise(1, 5, samples), source=SOURCE), x[:, SOURCE:]).backward()
        found.append([parameter.grad for parameter in each.parameters()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
