"""How one global batch is dealt out: contiguous shares by capacity, zero included."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from plait.events import Ranges


def deal(size: int, capacities: Sequence[float]) -> list[Ranges]:
    """Positions [0, size) cut into one contiguous share for each capacity, by largest remainder.

    deal(10, [1, 1, 2]) is [[[0, 3]], [[3, 5]], [[5, 10]]]. A share of nothing is [].
    """
    counts = _counts(size, capacities)
    shares: list[Ranges] = []
    first = 0
    for count in counts:
        shares.append([[first, first + count]] if count else [])
        first += count
    return shares


def pieces(ranges: Ranges, micro_batch: int) -> list[list[int]]:
    """Ranges cut into micro-batches."""
    return [[start, min(start + micro_batch, end)] for first, end in ranges for start in range(first, end, micro_batch)]


def gaps(size: int, done: Ranges) -> Ranges:
    """What of the positions [0, size) is not in `done`."""
    edges = [[0, 0], *merge(done), [size, size]]
    return [[end, first] for (_, end), (first, _) in pairwise(edges) if end < first]


def merge(ranges: Ranges) -> Ranges:
    """Sorted ranges, with those that touch made one."""
    merged: Ranges = []
    for first, end in sorted(ranges):
        if merged and merged[-1][1] == first:
            merged[-1][1] = end
        else:
            merged.append([first, end])
    return merged


def _counts(size: int, capacities: Sequence[float]) -> list[int]:
    total = sum(capacities)
    exact = [size * capacity / total for capacity in capacities]
    counts = [int(amount) for amount in exact]
    by_remainder = sorted(range(len(exact)), key=lambda index: (counts[index] - exact[index], index))
    for index in by_remainder[: size - sum(counts)]:
        counts[index] += 1
    return counts
