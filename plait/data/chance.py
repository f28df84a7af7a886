"""Chance that has no state: numbers that are a hash of (seed, what for, sample, place), and of nothing else.

    seed, what ── blake2b ── key ─┐
    samples_B ────────────────────┴─ splitmix64 ─ key_B ─┐
    places 0, 1, 2, ... ─────────────────────────────────┴─ splitmix64 ─ 64 bits a place

So what is drawn for a sample follows no layout, no micro-batch and no resume, and no generator is ever saved. (plait/model/noise.py is the
same for dropout, on torch's tensors.)
"""

from __future__ import annotations

import numpy as np

from plait.data import order


def keys(seed: int, what: str, samples_B: np.ndarray) -> np.ndarray:
    """A key for each sample, uint64 [B]; different for each purpose that `what` names."""
    return order.keys_of(order.key_of(seed, what), samples_B)


def uniform(keys_B: np.ndarray, places: int, first: int = 0) -> np.ndarray:
    """Numbers in [0, 1) for places first, first + 1, ... of each key, float64 [B, places]."""
    return (order.draws(keys_B[:, None], np.arange(first, first + places)) >> np.uint64(11)) * 2.0**-53


def chosen(keys_B: np.ndarray, most: int, counts_B: np.ndarray, among_B: np.ndarray, groups_BL: np.ndarray | None = None) -> np.ndarray:
    """For each key exactly counts_B of its first among_B places, all subsets alike; bool [B, most].

    groups_BL: numbers below `most`; places of a group are chosen together, the first ones of the last group where not all of it fits.

    Exactly, so that how many there are is known before anything is drawn: a global batch's divisor is told by arithmetic.
    """
    drawn_BL = uniform(keys_B, most)
    if groups_BL is not None:
        drawn_BL = np.take_along_axis(drawn_BL, groups_BL, axis=1)
    drawn_BL[np.arange(most) >= among_B[:, None]] = 2.0
    ranks_BL = drawn_BL.argsort(axis=1, kind="stable").argsort(axis=1, kind="stable")
    few: np.ndarray = ranks_BL < counts_B[:, None]
    return few
