"""The encoder: what it may see, and what must not change what it computes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from plait import spec
from plait.model.build import build
from plait.model.encoder import Encoder
from plait.model.loss import cross_entropy
from plait.model.noise import Noise

VOCABULARY, LENGTH = 50, 80  # more than a chunk of attention


def built(**changes: object) -> Encoder:
    model = spec.Model(**{"family": "bert", "layers": 2, "width": 32, "heads": 4, **changes})
    module = build(model, VOCABULARY, LENGTH, seed=0, dtype=torch.float64)
    assert isinstance(module, Encoder)
    return module


def tokens(rows: int = 3) -> Tensor:
    return torch.randint(0, VOCABULARY, (rows, LENGTH), generator=torch.Generator().manual_seed(rows))


def test_every_place_sees_every_other() -> None:
    model, x = built(), tokens()
    changed = x.clone()
    changed[:, 70] = (changed[:, 70] + 1) % VOCABULARY
    assert (model(x) != model(changed)).any(-1).all()


def test_documents_and_padding_do_not_see_each_other() -> None:
    model, x = built(), tokens()
    documents = (torch.arange(LENGTH) >= 30).long().expand(3, -1)
    changed = x.clone()
    changed[:, :30] = (changed[:, :30] + 1) % VOCABULARY
    torch.testing.assert_close(model(x, documents)[:, 30:], model(changed, documents)[:, 30:], rtol=0, atol=1e-14)
    assert (model(x)[:, 30:] != model(changed)[:, 30:]).any(-1).all()


@pytest.mark.parametrize("masked", [False, True])
def test_attention_written_out_is_that_of_torchs_kernel(masked: bool) -> None:
    """In training with dropout it is written out; a rate that drops nothing that is there shows the same values and gradients."""
    model, x = built(dropout=1e-12), tokens()
    documents = (torch.arange(LENGTH) >= 30).long().expand(3, -1) if masked else None
    found = []
    for noise in (None, Noise(0, 1, torch.arange(3))):
        model.zero_grad()
        cross_entropy(model(x, documents, noise), x).backward()
        found.append([parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


def test_micro_batches_sum_to_the_batch() -> None:
    model, x, samples = built(dropout=0.2), tokens(4), torch.tensor([9, 4, 7, 1])
    together = model(x, None, Noise(1, 5, samples))
    torch.testing.assert_close(model(x[1:], None, Noise(1, 5, samples[1:])), together[1:], rtol=1e-10, atol=1e-12)


def test_segments_are_told_apart() -> None:
    model, x = built(), tokens()
    second = torch.zeros_like(x)
    torch.testing.assert_close(model(x, segments_BL=second), model(x), rtol=0, atol=0)
    second[:, 40:] = 1
    assert (model(x, segments_BL=second) != model(x)).any()
