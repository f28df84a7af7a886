"""Fingerprints: equal on equal bits, different after the least change, whatever a tensor's type, shape or place in memory."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some

from plait.replica.fingerprint import WHOLE, fingerprints
from plait.replica.part import Part
from plait.replica.placed import placed

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.uint8]


def of(tensor: torch.Tensor) -> str:
    return fingerprints({"x": tensor}, each=False)[WHOLE]


def raw(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(-1).view(torch.uint8)


@settings(deadline=None)
@given(some.sampled_from(DTYPES), some.sampled_from([1, 3, 4095, 4096, 4097, 2 * 4096 * 32 + 5]), some.data())
def test_one_bit_shows(dtype: torch.dtype, size: int, data: some.DataObject) -> None:
    tensor = torch.zeros(size, dtype=dtype)
    before = of(tensor)
    byte = data.draw(some.integers(0, raw(tensor).numel() - 1))
    raw(tensor)[byte] ^= 1 if dtype == torch.bool else 1 << data.draw(some.integers(0, 7))
    assert of(tensor) != before


@given(some.data())
def test_flips_that_cancel_in_a_plain_sum_show(data: some.DataObject) -> None:
    """The sign bits of two values, in a sum or an exclusive or of words nothing; two values that change places."""
    tensor = torch.arange(1.0, 101.0)
    one, other = data.draw(some.lists(some.integers(0, 99), min_size=2, max_size=2, unique=True))
    signs, swapped = tensor.clone(), tensor.clone()
    signs[[one, other]] *= -1
    swapped[[one, other]] = tensor[[other, one]]
    assert len({of(tensor), of(signs), of(swapped)}) == 3


@pytest.mark.parametrize("dtype", DTYPES)
def test_where_values_lie_does_not_matter(dtype: torch.dtype) -> None:
    values = torch.arange(35).to(dtype)
    shifted = torch.cat([torch.zeros(1, dtype=dtype), values])[1:]
    across = values.view(5, 7).t().contiguous().t()
    assert of(shifted) == of(values)
    assert of(across) == of(values.view(5, 7))


def test_names_shapes_types_and_plain_values_count() -> None:
    zeros = torch.zeros(4)
    states = [{"x": zeros}, {"y": zeros}, {"x": zeros.view(2, 2)}, {"x": zeros.int()}, {"x": -zeros}, {"x": zeros, "step": 1}]
    states += [{"x": zeros, "step": 2}, {"x": torch.zeros(5)}]
    assert len({fingerprints(state, each=False)[WHOLE] for state in states}) == len(states)


def test_each_tensor_is_named_and_a_part_is_its_own_values() -> None:
    state = {"b": torch.ones(3), "a": torch.zeros(2)}
    told = fingerprints(state, each=True)
    assert list(told) == ["a", "b"]
    half = Part.whole(torch.Size([4])).cut(0, [(2, 4)])
    assert fingerprints({"a": placed(state["a"], half)}, each=True) == {"a": told["a"]}
