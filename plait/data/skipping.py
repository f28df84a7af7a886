"""Samples that a run leaves out: its steps take those that are left, in their order.

    samples of the run's order    0 1 2 3 4 5 6 7 8 9 ...        left out: [4, 6)
    taken, two a step             0 1 | 2 3 | 6 7 | 8 9 ...

The order is the same as without: what comes before the first gap is drawn as ever, whenever the gap was decided on.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from plait.events import Ranges


class Skipped:
    """`ranges`: half-open, in any order."""

    def __init__(self, ranges: Iterable[Sequence[int]] = ()) -> None:
        self.ranges = _union(ranges)
        lengths = np.array([end - first for first, end in self.ranges], dtype=np.int64)
        self._left_out = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths)])
        """before each gap, and after the last"""
        self._gaps = np.array([first for first, _ in self.ranges], dtype=np.int64) - self._left_out[:-1]
        """where each stands, counted in samples that are taken"""

    def samples(self, first: int, end: int) -> np.ndarray:
        """The first-th to the (end-1)-th of those that are taken, counted from 0, as numbers in the run's order; int64."""
        taken = np.arange(first, end, dtype=np.int64)
        samples: np.ndarray = taken + self._left_out[np.searchsorted(self._gaps, taken, side="right")]
        return samples

    def spans(self, first: int, end: int) -> Ranges:
        """The same as ranges."""
        samples = self.samples(first, end)
        breaks = np.flatnonzero(np.diff(samples) > 1) + 1
        return [[int(piece[0]), int(piece[-1]) + 1] for piece in np.split(samples, breaks) if len(piece)]


def _union(ranges: Iterable[Sequence[int]]) -> Ranges:
    united: Ranges = []
    for first, end in sorted((int(first), int(end)) for first, end in ranges):
        if first >= end:
            continue
        if united and first <= united[-1][1]:
            united[-1][1] = max(united[-1][1], end)
        else:
            united.append([first, end])
    return united
