"""Attention written out by chunks equals the plain formula, gradients, masks, shared keys and dropout included."""

import math

import pytest
import torch

from plait.model import attention
from plait.model.attention import attend, causal_mask
from plait.model.noise import Dropout, Noise

B, L, E = 3, 21, 4


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setattr(attention, "CHUNK", 8)
    monkeypatch.setattr(attention, "LONG", 0)


def inputs(heads, groups, dtype=torch.float64):
    generator = torch.Generator().manual_seed(heads)
    shapes = [(B, L, count, E) for count in (heads, groups, groups, heads)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).transpose(1, 2).requires_grad_() for shape in shapes]


def plain(q, k, v, mask, dropout=None, noise=None):
    repeats = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
    scores = (q @ k.transpose(-1, -2) / math.sqrt(E)).masked_fill(~mask, -math.inf)
    weights = scores.softmax(-1)
    return (weights if dropout is None else dropout(weights, noise)) @ v


def documents():
    numbers = torch.stack([torch.arange(L) // size for size in (5, 9, 100)])
    return ((numbers[:, :, None] == numbers[:, None, :]) & causal_mask(L, numbers.device))[:, None]


@pytest.mark.parametrize("rate", [0.0, 0.3])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (6, 2), (3, 1)])
def test_value_and_gradients_are_the_formulas(heads, groups, masked, rate):
    dropout, noise = Dropout(rate, "a"), Noise(0, 1, torch.arange(B)) if rate else None
    *ours, outer = inputs(heads, groups)
    theirs = [x.detach().clone().requires_grad_() for x in ours]
    mixed = attend(*ours, documents() if masked else None, dropout, noise)
    expected = plain(*theirs, documents() if masked else causal_mask(L, outer.device), dropout if rate else None, noise)
    torch.testing.assert_close(mixed, expected, rtol=1e-12, atol=1e-13)
    gradients = (torch.autograd.grad(result, args, outer.detach()) for result, args in ((mixed, ours), (expected, theirs)))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)


def test_without_gradients_torchs_kernel_gives_the_same():
    *args, _ = inputs(6, 2)
    written_out = attend(*args, None, Dropout(0.0, "a"), None)
    with torch.no_grad():
        torch.testing.assert_close(attend(*args, None, Dropout(0.0, "a"), None), written_out, rtol=1e-12, atol=1e-13)


def test_large_weights_go_to_torchs_kernel(monkeypatch):
    monkeypatch.setattr(attention, "KEPT_BYTES", 0)
    *args, _ = inputs(4, 4)
    assert "WrittenOut" not in type(attend(*args, None, Dropout(0.0, "a"), None).grad_fn).__name__


def test_bf16_gradients_are_summed_in_fp32():
    *rough, outer = inputs(4, 2, torch.bfloat16)
    exact = [x.detach().double().requires_grad_() for x in rough]
    attend(*rough, None, Dropout(0.0, "a"), None).backward(outer.detach())
    plain(*exact, causal_mask(L, outer.device)).backward(outer.detach().double())
    for one, other in zip(rough, exact, strict=True):
        assert one.grad.dtype == torch.bfloat16
        assert (one.grad.double() - other.grad).norm() / other.grad.norm() < 0.01
