"""Which weights become zero: exactly those that sorting says, whoever holds parts of them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.model.sparse import smallest, two_of_four


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 99), share=st.floats(0, 0.999), zeros=st.floats(0, 0.5))
def test_the_smallest_are_those_that_sorting_says(dtype: torch.dtype, seed: int, share: float, zeros: float) -> None:
    chance = torch.Generator().manual_seed(seed)
    matrices = [torch.randn(shape, generator=chance).mul(10.0**seed / 1e40).to(dtype) for shape in ((5, 7), (3, 4, 2))]
    for matrix in matrices:
        matrix[torch.rand(matrix.shape, generator=chance) < zeros] = 0.0
    counts = [int(share * matrix.numel()) for matrix in matrices]
    for matrix, count, chosen in zip(matrices, counts, smallest(matrices, counts), strict=True):
        ordered = matrix.abs().flatten().sort().values
        assert torch.equal(chosen, matrix.abs() <= ordered[count - 1] if count else torch.zeros_like(chosen))


def test_parts_are_counted_together() -> None:
    """A rank's counts and, added by `total`, those of the other."""
    whole = torch.randn(8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    parts, seen = [whole[:5], whole[5:]], {}
    (expected,) = smallest([whole], [20])

    def spy(counts: torch.Tensor) -> torch.Tensor:
        seen.setdefault("of whole", []).append(counts)
        return counts

    smallest([whole], [20], spy)
    for part, mask in zip(parts, (expected[:5], expected[5:]), strict=True):
        digits = iter(seen["of whole"])
        (chosen,) = smallest([part], [20], lambda counts, digits=digits: next(digits))
        assert torch.equal(chosen, mask)


def test_two_of_each_four() -> None:
    chosen = two_of_four(torch.tensor([[4.0, -1.0, 2.0, -3.0, 0.0, 0.0, 0.0, 1.0]]))
    assert chosen.tolist() == [[False, True, True, False, False, True, True, False]]
