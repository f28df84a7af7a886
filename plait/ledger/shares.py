"""How one global batch is dealt out: contiguous shares by capacity, zero included."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from plait.events import Ranges


def deal(size: int, capacities: Sequence[float]) -> list[Ranges]:
    """Positions [0, size) cut into one contiguous share for each capacity, by largest remainder.

    deal(10, [1, 1, 2]) is [[[0, 3]], [[3, 5]], [[5, 10]]]. A share of nothing is [].
    """
    return contiguous(counts(size, capacities))


def contiguous(counts: Sequence[int]) -> list[Ranges]:
    """contiguous([3, 0, 2]) is [[[0, 3]], [], [[3, 5]]]."""
    shares: list[Ranges] = []
    first = 0
    for count in counts:
        shares.append([[first, first + count]] if count else [])
        first += count
    return shares


def counts(size: int, capacities: Sequence[float]) -> list[int]:
    """How many of `size` fall to each capacity, by largest remainder."""
    total = sum(capacities)
    exact = [size * capacity / total for capacity in capacities]
    counts = [int(amount) for amount in exact]
    by_remainder = sorted(range(len(exact)), key=lambda index: (counts[index] - exact[index], index))
    for index in by_remainder[: size - sum(counts)]:
        counts[index] += 1
    return counts


def by_speed(size: int, speeds: Sequence[float], piece: int = 1) -> list[int]:
    """How many of `size` fall to each speed, in whole pieces but for one, so that the last to end ends as early as can be.

    Each piece goes to who would end it first, and one at least to everyone, where there are so many: who has nothing to do is not
    measured. (D'Hondt's method, which gives each its proportion rounded down at least: it begins from there.)
    """
    pieces, total = -(-size // piece), sum(speeds)
    everyone, least = range(len(speeds)), int(pieces >= len(speeds))
    counts = [max(least, int(pieces * speed / total)) for speed in speeds]
    for _ in range(sum(counts) - pieces):
        counts[max(everyone, key=lambda index: counts[index] / speeds[index] * (counts[index] > 1))] -= 1
    for _ in range(pieces - sum(counts)):
        counts[min(everyone, key=lambda index: (counts[index] + 1) / speeds[index])] += 1
    last = max(everyone, key=lambda index: counts[index] / speeds[index])
    return [piece * count - (index == last) * (piece * pieces - size) for index, count in enumerate(counts)]


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
