"""How one global batch is dealt out: contiguous shares by capacity, zero included."""

from __future__ import annotations

from collections.abc import Sequence

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


def pieces(size: int, micro_batch: int) -> list[list[int]]:
    """Positions [0, size) cut into micro-batches."""
    return [[first, min(first + micro_batch, size)] for first in range(0, size, micro_batch)]


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
