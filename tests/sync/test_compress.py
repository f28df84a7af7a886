"""Codecs: what comes back of what was encoded, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from plait.sync.compress import BLOCK, Codec, build_codec

NAMES: Any = ("bf16", "fp16", "int8", "topk")
DTYPES = (torch.float32, torch.float64)
LENGTHS = st.integers(0, 2 * BLOCK + 40)


def codec_of(name: Any, top_k: float = 0.1) -> Codec:
    codec = build_codec(name, top_k)
    assert codec is not None
    return codec


def sent(codec: Codec, values_N: Tensor, key: int = 0) -> Tensor:
    out_N = torch.full_like(values_N, 777.0)
    codec.decode(codec.encode(values_N, key), out_N)
    return out_N


def normal(length: int, dtype: torch.dtype = torch.float32, scale: float = 1.0, seed: int = 0) -> Tensor:
    return scale * torch.randn(length, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_none_is_no_codec() -> None:
    assert build_codec("none") is None


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=30, deadline=None)
@given(length=LENGTHS, dtype=st.sampled_from(DTYPES))
def test_a_payload_is_what_was_announced(name: str, length: int, dtype: torch.dtype) -> None:
    codec = codec_of(name)
    payload = codec.encode(normal(length, dtype), 1)
    assert [(tuple(part.shape), part.dtype) for part in payload] == [((part.length,), part.dtype) for part in codec.parts(length, dtype)]
    assert all(part.is_contiguous() for part in payload)
    assert codec.size(length, dtype) == sum(part.nbytes for part in payload)
    widths = [part.itemsize for part in payload]
    assert widths == sorted(widths, reverse=True), "a wider part behind a narrower one would lie between its multiples"


@pytest.mark.parametrize(("name", "most"), [("bf16", 0.5), ("fp16", 0.51), ("int8", 0.27), ("topk", 0.021)])
def test_payloads_are_small(name: str, most: float) -> None:
    assert codec_of(name, 0.01).size(2**21, torch.float32) <= most * 2**23


@pytest.mark.parametrize("name", NAMES)
def test_the_same_key_gives_the_same_payload(name: str) -> None:
    codec, values_N = codec_of(name), normal(1000)
    first = codec.encode(values_N, 5)
    codec.encode(values_N, 6)
    assert all(torch.equal(one, other) for one, other in zip(first, codec.encode(values_N, 5), strict=True))


def test_another_key_rounds_otherwise() -> None:
    assert not torch.equal(sent(codec_of("int8"), normal(1000), 1), sent(codec_of("int8"), normal(1000), 2))


@settings(max_examples=30, deadline=None)
@given(length=LENGTHS, dtype=st.sampled_from(DTYPES), power=st.integers(-30, 30), seed=st.integers(0, 99))
def test_precision_is_that_of_the_format(length: int, dtype: torch.dtype, power: int, seed: int) -> None:
    values_N = normal(length, dtype, 10.0**power, seed)
    largest = values_N.abs().amax() if length else 0.0
    assert ((sent(codec_of("bf16"), values_N) - values_N).abs() <= 2.0**-8 * values_N.abs()).all()
    assert ((sent(codec_of("fp16"), values_N) - values_N).abs() <= 2.0**-11 * values_N.abs() + 2.0**-38 * largest).all()
    assert ((sent(codec_of("int8"), values_N) - values_N).abs() <= largest / 127 * (1 + 1e-5)).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [0.0, 1e-30, 1e37, -1e37])
@pytest.mark.parametrize("name", NAMES)
def test_what_is_all_alike_comes_back(name: str, value: float, dtype: torch.dtype) -> None:
    """A tail shorter than a block included; int8 sends whole steps without chance, fp16 does not overflow."""
    values_N = torch.full((BLOCK + 3,), value, dtype=dtype)
    torch.testing.assert_close(sent(codec_of(name, 1.0), values_N), values_N, rtol=2**-8, atol=0.0)


@settings(max_examples=10, deadline=None)
@given(length=st.integers(1, BLOCK + 9), dtype=st.sampled_from(DTYPES), power=st.integers(-20, 20), seed=st.integers(0, 99))
def test_int8_is_right_on_average(length: int, dtype: torch.dtype, power: int, seed: int) -> None:
    keys, codec = 600, codec_of("int8")
    values_N = normal(length, dtype, 10.0**power, seed)
    mean_N = torch.stack([sent(codec, values_N, key) for key in range(keys)]).double().mean(0)
    steps = torch.cat([part.abs().amax().expand_as(part) for part in values_N.split(BLOCK)]) / 127
    deviation_N = steps / 2 / math.sqrt(keys)  # of a mean of two neighbouring steps, at most
    assert ((mean_N - values_N).abs() <= 6 * deviation_N).all()


@pytest.mark.parametrize("fraction", [0.003, 0.3, 0.5, 0.997])
def test_int8_moves_an_average_by_less_than_a_hundredth_of_a_step(fraction: float) -> None:
    values_BK = torch.full((2**10, BLOCK), fraction)
    values_BK[:, 0] = 127.0  # steps of 1
    sent_BK = sent(codec_of("int8"), values_BK.view(-1)).view(-1, BLOCK)
    assert abs(float(sent_BK[:, 1:].mean()) - fraction) < 0.01  # ten times its standard deviation


def test_whole_steps_are_never_moved() -> None:
    values_N = torch.arange(-127.0, 128.0)
    for key in range(50):
        assert torch.equal(sent(codec_of("int8"), values_N, key), values_N)


def test_int8_keeps_large_values_out_of_other_blocks() -> None:
    values_N = normal(2 * BLOCK)
    values_N[0] = 1e6
    lost_N = (sent(codec_of("int8"), values_N) - values_N).abs()
    assert lost_N[:BLOCK].max() > 0.1
    assert lost_N[BLOCK:].max() < 0.1


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=20, deadline=None)
@given(length=st.integers(1, 2 * BLOCK + 9), dtype=st.sampled_from(DTYPES), data=st.data())
def test_what_is_not_finite_is_seen(name: str, bad: float, length: int, dtype: torch.dtype, data: st.DataObject) -> None:
    values_N = normal(length, dtype)
    values_N[data.draw(st.integers(0, length - 1))] = bad
    assert not sent(codec_of(name, 0.001), values_N).isfinite().all()


@settings(max_examples=40, deadline=None)
@given(values=st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=60), share=st.floats(0.001, 1.0))
def test_topk_sends_the_largest(values: list[float], share: float) -> None:
    values_N = torch.tensor(values)
    sent_N = sent(codec_of("topk", share), values_N)
    kept = math.ceil(share * len(values))
    assert torch.equal(sent_N.abs().sort().values[-kept:], values_N.abs().sort().values[-kept:])
    assert int((sent_N != 0).sum()) <= kept
    assert torch.equal(sent_N[sent_N != 0], values_N[sent_N != 0])


WAVE_N = torch.arange(2**18, dtype=torch.float32)


@pytest.mark.parametrize(
    "values_N",
    [normal(2**18), WAVE_N, -WAVE_N, torch.zeros(2**18), WAVE_N % 8, (WAVE_N % 8 == 0) * WAVE_N, normal(2**18).bernoulli(0.001)],
    ids=["normal", "rising", "falling", "zeros", "periodic", "only where a sample looks", "sparse"],
)
def test_topk_of_many_is_exact(values_N: Tensor) -> None:
    """Only a few that a sample finds large are compared: the answer is the same."""
    kept = math.ceil(0.01 * len(values_N))
    sent_N = sent(codec_of("topk", 0.01), values_N)
    assert torch.equal(sent_N.abs().topk(kept).values, values_N.abs().topk(kept).values)


def test_topk_of_many_sees_what_is_not_finite() -> None:
    values_N = normal(2**18)
    values_N[12345] = math.nan
    assert sent(codec_of("topk", 0.01), values_N)[12345].isnan()


@pytest.mark.parametrize("indices", [[0, 1, 10], [-1, 1, 2], [0, 1, 1], [2, 1, 0], [2**31 - 1, 0, 1]])
def test_topk_refuses_indices_that_cannot_be(indices: list[int]) -> None:
    payload = [torch.ones(3), torch.tensor(indices, dtype=torch.int32)]
    with pytest.raises(ValueError, match="indices that do not rise within 0 to 9"):
        codec_of("topk", 0.3).decode(payload, torch.zeros(10))


ANY_TENSOR = st.builds(
    lambda shape, dtype, fill: torch.full(shape, fill).to(dtype),
    st.lists(st.integers(0, 5), max_size=2),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int8, torch.int32, torch.int64, torch.bool]),
    st.integers(-128, 127),
)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=150, deadline=None)
@given(payload=st.lists(ANY_TENSOR, max_size=3), length=st.integers(0, 5))
def test_whatever_comes_is_decoded_or_refused(name: str, payload: list[Tensor], length: int) -> None:
    codec, out_N = codec_of(name, 0.5), torch.full((length,), 777.0)
    refused = ""
    try:
        codec.decode(payload, out_N)
    except ValueError as error:
        refused = str(error)
    assert (name in refused and (out_N == 777.0).all()) if refused else (out_N != 777.0).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_refusal_says_what_would_fit(name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name}: a payload of \[7\] torch.int64 where 300 values of torch.float32 have \["):
        codec_of(name).decode([torch.zeros(7, dtype=torch.int64)], torch.zeros(300))
