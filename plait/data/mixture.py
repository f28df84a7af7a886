"""Mixtures: which source a position of the run draws from, in exact proportion, without counting.

Weights 3 and 1 make blocks of 4 positions; each block is permuted under its own key, and a position's place there says the
source and which of its draws it is:

    position 9 = block 2, offset 1 -> permuted place 3 -> source B (edges 0, 3, 4) -> B's draw 2 * 1 + (3 - 3)
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

from plait.data import order

LARGEST_BLOCK = 1 << 20


class Mixture:
    """Positions to (source, draw): in every block each source is drawn exactly its share of times."""

    def __init__(self, weights: list[float], key: int) -> None:
        self._key = order.key_of(key, "mixture")
        self._counts = np.array(proportions(weights))
        self._edges = np.concatenate([[0], np.cumsum(self._counts)])
        self._block = int(self._edges[-1])

    def draw(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Source of each position, and the number of its draw from that source; both int64, draws counted from 0."""
        if self._block == 1:
            return np.zeros_like(positions), positions
        blocks, offsets = np.divmod(positions, self._block)
        places = order.permute(offsets, self._block, order.keys_of(self._key, blocks))
        sources = np.searchsorted(self._edges, places, side="right") - 1
        return sources, blocks * self._counts[sources] + places - self._edges[sources]


def proportions(weights: list[float]) -> list[int]:
    """The smallest whole numbers in proportion to the weights as they are written (0.7 is 7/10).

    Where their sum would pass LARGEST_BLOCK they are rounded to it, none to zero.
    """
    exact = [Fraction(repr(weight)) for weight in weights]
    shares = [weight / sum(exact) for weight in exact]
    block = math.lcm(*(share.denominator for share in shares))
    if block <= LARGEST_BLOCK:
        return [int(share * block) for share in shares]
    return [max(1, round(share * LARGEST_BLOCK)) for share in shares]
