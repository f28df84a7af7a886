"""Attention by parts of the keys: added up, they are attention."""

import math

import pytest
import torch
from torch.nn import functional

from plait.model import attention, partial
from plait.model.attention import Keep, attend, causal_mask
from plait.model.noise import Dropout, Noise
from plait.model.partial import FLASH_CPU, FLASH_CUDA, WRITTEN_OUT, Sight, attend_part, merge, part_gradients

B, L, E = 2, 20, 8
SPLIT = 13  # keys of the first part
KERNELS = pytest.mark.parametrize("kernel", [FLASH_CPU, WRITTEN_OUT], ids=["flash", "written_out"])


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setattr(attention, "CHUNK", 8)
    monkeypatch.setattr(partial, "CHUNK", 8)


def inputs(heads, groups, dtype=torch.float64, samples=B):
    generator = torch.Generator().manual_seed(heads)
    shapes = [(samples, L, count, E) for count in (heads, groups, groups, heads)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).transpose(1, 2) for shape in shapes]


def documents(samples=B):
    numbers = torch.stack([torch.arange(L) // size for size in (5, 9)])[:samples]
    return ((numbers[:, :, None] == numbers[:, None, :]) & causal_mask(L, numbers.device))[:, None]


def by_parts(q, k, v, outer, sights):
    """mixed and the gradients of q, k and v, from parts of the keys."""
    spans = [slice(0, SPLIT), slice(SPLIT, L)] if len(sights) == 2 else [slice(0, L)]
    wide = torch.promote_types(q.dtype, torch.float32)
    mixed, lse = torch.zeros(q.shape, dtype=wide), torch.full(q.shape[:3], -math.inf, dtype=wide)
    for span, sight in zip(spans, sights, strict=True):
        merge(mixed, lse, *attend_part(q, k[:, :, span], v[:, :, span], sight))
    mixed = mixed.to(q.dtype)
    parts = [part_gradients(outer, q, k[:, :, span], v[:, :, span], mixed, lse, sight) for span, sight in zip(spans, sights, strict=True)]
    dq, dk, dv = zip(*parts, strict=True)
    return mixed, sum(dq), torch.cat(dk, 2), torch.cat(dv, 2)


def whole(q, k, v, outer, mask, dropout=None, noise=None):
    leaves = [x.detach().clone().requires_grad_() for x in (q, k, v)]
    mixed = attend(*leaves, mask, dropout or Dropout(0.0, "a"), noise)
    return mixed.detach(), *torch.autograd.grad(mixed, leaves, outer)


def assert_same(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)


@KERNELS
@pytest.mark.parametrize("samples", [1, B])
@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (6, 2), (3, 1)])
def test_parts_add_up_where_some_queries_see_nothing_of_a_part(monkeypatch, kernel, heads, groups, samples):
    monkeypatch.setattr(partial, "_kernel", lambda *_: kernel)
    given, mask = inputs(heads, groups, samples=samples), documents(samples)
    sights = [Sight(mask=mask[..., :SPLIT]), Sight(mask=mask[..., SPLIT:])]
    assert not mask[..., SPLIT:].any(-1).all()
    assert_same(by_parts(*given, sights), whole(*given, mask))


@KERNELS
@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (6, 2), (3, 1)])
def test_one_causal_part_is_causal_attention(monkeypatch, kernel, heads, groups):
    monkeypatch.setattr(partial, "_kernel", lambda *_: kernel)
    given = inputs(heads, groups)
    assert_same(by_parts(*given, [Sight(causal=True)]), whole(*given, None))


@KERNELS
def test_without_a_mask_every_key_is_seen(monkeypatch, kernel):
    monkeypatch.setattr(partial, "_kernel", lambda *_: kernel)
    given = inputs(4, 2)
    assert_same(by_parts(*given, [Sight(), Sight()]), whole(*given, torch.ones(1, 1, L, L, dtype=torch.bool)))


def test_dropout_drops_what_it_drops_in_the_whole():
    given, mask, dropout, noise = inputs(6, 2), documents(), Dropout(0.3, "a"), Noise(0, 1, torch.arange(B))
    heads, places = torch.arange(6), torch.arange(L)
    sights = [
        Sight(mask=mask[..., span], keep=Keep(dropout, noise, heads, places, places[span], L))
        for span in (slice(0, SPLIT), slice(SPLIT, L))
    ]
    assert_same(by_parts(*given, sights), whole(*given, mask, dropout, noise))


@KERNELS
def test_bf16_is_merged_in_fp32(monkeypatch, kernel):
    monkeypatch.setattr(partial, "_kernel", lambda *_: kernel)
    rough, mask = inputs(4, 2, torch.bfloat16), documents()
    assert attend_part(*rough[:3], Sight(mask=mask))[1].dtype == torch.float32
    ours = by_parts(*rough, [Sight(mask=mask[..., :SPLIT]), Sight(mask=mask[..., SPLIT:])])
    for one, other in zip(ours, whole(*(x.double() for x in rough), mask), strict=True):
        assert (one.double() - other).norm() / other.norm() < 0.01


def test_a_gpus_kernel_takes_what_it_is_given():
    """Shapes alone: torch checks the arguments of its GPU kernels anywhere."""
    q, k, v, outer = (x.to("meta", torch.bfloat16) for x in inputs(6, 2))
    mixed, lse = FLASH_CUDA.attend(q, k, v, Sight(causal=True))
    gradients = FLASH_CUDA.gradients(outer, q, k, v, mixed, lse, Sight(causal=True))
    assert [x.shape for x in (mixed, lse, *gradients)] == [q.shape, q.shape[:3], q.shape, k.shape, v.shape]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_on_a_gpu(dtype):
    q, k, v, outer = (x.to("cuda", dtype) for x in inputs(6, 2))
    leaves = [x.detach().double().requires_grad_() for x in (q, k, v)]
    expected = functional.scaled_dot_product_attention(*leaves, is_causal=True, enable_gqa=True)
    mixed, lse = attend_part(q, k, v, Sight(causal=True))
    gradients = part_gradients(outer, q, k, v, mixed.to(dtype), lse, Sight(causal=True))
    theirs = (expected.detach(), *torch.autograd.grad(expected, leaves, outer.double()))
    for one, other in zip((mixed, *gradients), theirs, strict=True):
        assert (one.double() - other).norm() / other.norm() < (0.01 if dtype == torch.bfloat16 else 1e-5)
