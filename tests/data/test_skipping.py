"""Samples that are left out: the others come in their order, each once, and what stands before a gap does not move."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as some

from plait.data.skipping import Skipped

RANGES = some.lists(some.tuples(some.integers(0, 60), some.integers(0, 12)).map(lambda pair: [pair[0], pair[0] + pair[1]]), max_size=6)


def left(ranges: list[list[int]], count: int) -> list[int]:
    """As one would do it by hand."""
    out = {sample for first, end in ranges for sample in range(first, end)}
    return [sample for sample in range(count + 100) if sample not in out][:count]


@given(RANGES, some.integers(0, 80), some.integers(0, 40))
def test_what_is_taken_is_what_is_left(ranges: list[list[int]], first: int, size: int) -> None:
    skipped = Skipped(ranges)
    assert skipped.samples(first, first + size).tolist() == left(ranges, first + size)[first:]
    spans = skipped.spans(first, first + size)
    assert [sample for low, high in spans for sample in range(low, high)] == left(ranges, first + size)[first:]
    assert all(one[1] < other[0] for one, other in itertools.pairwise(spans))


@given(RANGES, RANGES, some.integers(0, 40))
def test_a_later_gap_moves_nothing_before_it(ranges: list[list[int]], more: list[list[int]], size: int) -> None:
    later = [[first + 200, end + 200] for first, end in more]
    assert np.array_equal(Skipped(ranges).samples(0, size), Skipped([*ranges, *later]).samples(0, size))


def test_gaps_that_meet_are_one() -> None:
    assert Skipped([[4, 6], [0, 2], [6, 6], [5, 8], [8, 9]]).ranges == [[0, 2], [4, 9]]
