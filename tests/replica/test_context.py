"""Context parallelism: what ranks compute of their positions is what one process computes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
from torch import nn

from plait import spec
from plait.errors import RunFileError
from plait.model.attention import Mix, attend, causal_mask
from plait.model.build import build
from plait.model.cut import Cut
from plait.model.loss import cross_entropy
from plait.model.noise import Dropout, Noise
from plait.replica import context
from plait.replica.context import Ring, exchange, insert, positions
from plait.replica.mesh import make_mesh
from plait.testing.processes import run_distributed

B, LENGTH, E, VOCABULARY = 2, 48, 4, 50
CPU = torch.device("cpu")
PLACES = [(by, ranks) for ranks in (2, 3, 4) for by in ("ring", "ulysses")]


# which positions


@pytest.mark.parametrize(("by", "ranks"), PLACES)
def test_each_position_is_held_by_one_rank_in_order(by, ranks):
    held = [positions(LENGTH, place, ranks, by) for place in range(ranks)]
    assert all(torch.equal(mine, mine.sort().values) for mine in held)
    assert torch.equal(torch.cat(held).sort().values, torch.arange(LENGTH))


def test_in_a_ring_each_rank_sees_as_many_keys():
    seen = {int((positions(LENGTH, place, 4, "ring") + 1).sum()) for place in range(4)}
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("by", "message"),
    [
        (
            "ring",
            "cuts a sequence into 14 equal chunks, and 48 positions cannot be cut so; the nearest that work are layout.context = 6 and ",
        ),
        (
            "ulysses",
            "cuts a sequence into 7 equal chunks, and 48 positions cannot be cut so; .* layout.context = 6 and data.sequence = 42 or 49",
        ),
    ],
)
def test_a_length_that_cannot_be_cut_is_refused_with_what_would_work(by, message):
    with pytest.raises(RunFileError, match=message):
        positions(LENGTH, 0, 7, by)


def test_a_model_in_which_positions_do_not_meet_is_refused():
    with pytest.raises(RunFileError, match=r"Linear has no plait\.model\.attention\.Mix"):
        insert(nn.Linear(2, 2), lambda *_: torch.empty(0))


# attention alone


@pytest.mark.parametrize(("by", "ranks"), PLACES)
def test_attention_and_its_gradients_are_those_of_whole_samples(tmp_path, by, ranks):
    for errors in distributed("attention", ranks, tmp_path, by=by):
        assert max(errors.values()) < 1e-10, errors


def test_positions_that_are_not_zig_zag_are_seen(tmp_path):
    for errors in distributed("attention_of_contiguous_positions", 2, tmp_path):
        assert errors["plain"] > 1e-3, errors


@pytest.mark.parametrize("by", ["ring", "ulysses"])
def test_a_cut_at_other_positions_is_refused(tmp_path, by):
    assert all("cut samples by plait.replica.context.positions" in message for message in distributed("refusals", 2, tmp_path, by=by))


def test_ulysses_refuses_heads_that_cannot_be_dealt_out(tmp_path):
    for message in distributed("refusals", 3, tmp_path, by="ulysses"):
        assert message == (
            "layout.context = 3 does not divide the 4 heads and 2 key and value heads that a rank has, as "
            'layout.context_by = "ulysses" needs; use layout.context = 2 or layout.context_by = "ring"'
        )


@pytest.mark.parametrize("by", ["ring", "ulysses"])
def test_under_autocast_it_computes_in_bf16_and_merges_in_fp32(tmp_path, by):
    for kind, error in distributed("autocast", 2, tmp_path, by=by):
        assert kind == "torch.bfloat16"
        assert error < 0.01


def test_what_travels_needs_no_more_memory_in_later_layers(tmp_path):
    blocks = 2 * (2 * B * 2 * (LENGTH // 2) * E)  # two of keys and values; as many of their gradients
    assert distributed("pool_sizes", 2, tmp_path) == [[2 * blocks * torch.float64.itemsize] * 3] * 2


@pytest.mark.parametrize(("by", "ranks"), PLACES)
def test_as_many_bytes_are_sent_in_bf16_as_the_page_says(tmp_path, by, ranks):
    H, G, C, width = 12, 12 if by == "ulysses" else 4, ranks, 2
    block = B * LENGTH // C * E
    if by == "ring":
        forward, backward = (C - 1) * 2 * G * block * width, (C - 1) * 2 * G * block * (width + 4)
    else:
        forward = backward = (C - 1) * (2 * H + 2 * G) * block * width // C
    assert distributed("bytes_sent", ranks, tmp_path, by=by, heads=[H, G]) == [[forward, backward]] * ranks


# whole models


@pytest.mark.parametrize(("by", "ranks"), [("ring", 2), ("ring", 3), ("ulysses", 2)])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_models_gradients_summed_over_ranks_are_those_of_one_process(tmp_path, family, by, ranks):
    for errors in distributed("model", ranks, tmp_path, by=by, family=family):
        assert max(errors.values()) < 1e-10, errors


@pytest.mark.slow
@pytest.mark.parametrize("by", ["ring", "ulysses"])
def test_compiled_blocks_exchange_too(tmp_path, by):
    for errors in distributed("model", 2, tmp_path, timeout=300, by=by, family="llama", compiled=True):
        assert max(errors.values()) < 1e-10, errors


# what ranks run


def distributed(name: str, ranks: int, folder: Path, timeout: float = 60.0, **arguments: Any) -> list[Any]:
    """Calls a function of this page on each rank of a context axis."""
    return run_distributed(
        "tests.replica.test_context:on_rank", ranks, timeout=timeout, name=name, store=str(folder / "store"), **arguments
    )


def on_rank(rank, size, group, name, store, **arguments):
    layout = spec.Layout.model_construct(context=size)
    mesh = make_mesh(layout, rank, torch.distributed.FileStore(store, size), CPU, loopback=True)
    return globals()[name](rank, size, mesh.group("context"), **arguments)


def attention(rank, size, group, by):
    """The largest errors of values and gradients, by case."""
    counts = {"plain": (size, size), "grouped": (4 * size, 2 * size), "one key head": (3, 1), "samples": (12, 4)}
    cases = {name: count for name, count in counts.items() if by == "ring" or count[1] % size == 0}
    ours = exchange(by, group)
    errors = {name: attention_error(ours, rank, size, by, count) for name, count in cases.items()}
    heads = (4 * size, 2 * size)
    errors["documents"] = attention_error(ours, rank, size, by, heads, masked=True)
    errors["dropout"] = attention_error(ours, rank, size, by, heads, rate=0.1)
    errors["documents, dropout"] = attention_error(ours, rank, size, by, heads, masked=True, rate=0.1)
    errors["dropout, half of the heads"] = attention_error(ours, rank, size, by, heads, rate=0.1, head_share=(1, 2))
    return errors


def attention_of_contiguous_positions(rank, size, group):
    context.positions = lambda length, place, ranks, by: torch.arange(length).chunk(ranks)[place]
    return {"plain": attention_error(Ring(group), rank, size, "ring", (4, 2))}


def attention_error(ours, rank, size, by, counts, *, masked=False, rate=0.0, head_share=(0, 1)):
    """Whole samples and all heads in this process, against the positions and heads of this rank."""
    dropout, mask = Dropout(rate, "a"), documents() if masked else None
    held = context.positions(LENGTH, rank, size, by)
    cut = Cut(LENGTH, held, held, head_share)
    leaves, outer = inputs([count * head_share[1] for count in counts])
    expected = attend(*leaves, mask, dropout, noise(None))
    theirs = [expected, *torch.autograd.grad(expected, leaves, outer)]
    parts = [x.detach().chunk(head_share[1], 1)[head_share[0]][:, :, held] for x in (*leaves, outer)]
    mine = [x.clone().requires_grad_() for x in parts[:3]]
    mixed = ours(*mine, None if mask is None else mask[:, :, held], dropout, noise(cut), cut)
    results = [mixed, *torch.autograd.grad(mixed, mine, parts[3])]
    wanted = [x.chunk(head_share[1], 1)[head_share[0]][:, :, held] for x in theirs]
    return max(float((one - other).detach().abs().max()) for one, other in zip(results, wanted, strict=True))


def refusals(rank, size, group, by):
    held = torch.arange(LENGTH).chunk(size)[size - 1 - rank]
    q, k, v = (x.detach()[:, :, held] for x in inputs((4, 2))[0])
    try:
        exchange(by, group)(q, k, v, None, Dropout(0.0, "a"), None, Cut(LENGTH, held, held))
    except ValueError as error:
        return str(error)
    return "not refused"


def autocast(rank, size, group, by):
    held = positions(LENGTH, rank, size, by)
    leaves, outer = inputs((4, 2))
    expected = attend(*leaves, None, Dropout(0.0, "a"), None)
    theirs = [expected, *torch.autograd.grad(expected, leaves, outer)]
    mine = [x.detach()[:, :, held].float().requires_grad_() for x in leaves]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = exchange(by, group)(*mine, None, Dropout(0.0, "a"), None, Cut(LENGTH, held, held))
    results = [mixed, *torch.autograd.grad(mixed, mine, outer[:, :, held].bfloat16())]
    errors = [float((one - other[:, :, held]).norm() / other.norm()) for one, other in zip(results, theirs, strict=True)]
    return str(mixed.dtype), max(errors)


def pool_sizes(rank, size, group):
    """After each of three passes, one of them of fewer samples."""
    ring, held = Ring(group), positions(LENGTH, rank, size, "ring")
    sizes = []
    for samples in (B, 1, B):
        mine = [x.detach()[:samples, :, held].requires_grad_() for x in inputs((4, 2))[0]]
        ring(*mine, None, Dropout(0.0, "a"), None, Cut(LENGTH, held, held)).sum().backward()
        sizes.append(ring.pool.size)
    return sizes


def bytes_sent(rank, size, group, by, heads):
    """In the forward and in the backward pass, as handed to torch.distributed for other ranks."""
    sent = 0
    batch, all_to_all = torch.distributed.batch_isend_irecv, torch.distributed.all_to_all_single

    def counted_batch(operations):
        nonlocal sent
        sent += sum(operation.tensor.nbytes for operation in operations if operation.op is torch.distributed.isend)
        return batch(operations)

    def counted_all_to_all(received, pieces, **named):
        nonlocal sent
        sent += pieces.nbytes // size * (size - 1)
        return all_to_all(received, pieces, **named)

    torch.distributed.batch_isend_irecv, torch.distributed.all_to_all_single = counted_batch, counted_all_to_all
    held = positions(LENGTH, rank, size, by)
    mine = [x.detach()[:, :, held].bfloat16().requires_grad_() for x in inputs(heads)[0]]
    mixed = exchange(by, group)(*mine, None, Dropout(0.0, "a"), None, Cut(LENGTH, held, held))
    forward = sent
    mixed.backward(torch.ones_like(mixed))
    return [forward, sent - forward]


def model(rank, size, group, by, family, compiled=False):
    """The errors of the loss and of each parameter's gradient, relative to the whole gradient's norm."""
    kv_heads = 2 if family == "llama" else None
    settings = spec.Model(family=family, layers=2, width=32, heads=4, kv_heads=kv_heads, dropout=0.1, recompute="full")
    tokens, numbers = torch.randint(0, VOCABULARY, (B, LENGTH), generator=torch.Generator().manual_seed(3)), document_numbers()
    whole, ours = (build(settings, VOCABULARY, LENGTH, seed=0, dtype=torch.float64) for _ in range(2))
    expected = cross_entropy(whole(tokens, numbers, noise(None)), tokens.roll(-1, 1))
    expected.backward()

    insert(ours, exchange(by, group))
    if compiled:
        from plait.model.decoder import compile_blocks

        compile_blocks(ours)
    held = positions(LENGTH, rank, size, by)
    cut = Cut(LENGTH, held, held)
    loss = cross_entropy(ours(tokens[:, held], numbers, noise(cut), cut=cut), tokens.roll(-1, 1)[:, held])
    loss.backward()
    total = loss.detach().clone()
    torch.distributed.all_reduce(total, group=group)
    errors = {"loss": float((total - expected).detach().abs() / expected.detach())}
    norm = torch.stack([parameter.grad.norm() for parameter in whole.parameters()]).norm()
    for (path, parameter), other in zip(ours.named_parameters(), whole.parameters(), strict=True):
        torch.distributed.all_reduce(parameter.grad, group=group)
        errors[path] = float((parameter.grad - other.grad).norm() / norm)
    assert any(isinstance(part, Mix) and part.exchange is not None for part in ours.modules())
    return errors


def inputs(counts):
    """q, k and v to learn, and a gradient of what they are mixed to, as a model lays them out."""
    heads, groups = counts
    generator = torch.Generator().manual_seed(heads)
    shapes = [(B, LENGTH, count, E) for count in (heads, groups, groups, heads)]
    *leaves, outer = (torch.randn(shape, generator=generator, dtype=torch.float64).transpose(1, 2) for shape in shapes)
    return [leaf.requires_grad_() for leaf in leaves], outer


def noise(cut):
    return Noise(5, 1, torch.arange(B) + 7, cut)


def document_numbers():
    return torch.stack([torch.arange(LENGTH) // size for size in (7, 30)])


def documents():
    numbers = document_numbers()
    return ((numbers[:, :, None] == numbers[:, None, :]) & causal_mask(LENGTH, CPU))[:, None]
