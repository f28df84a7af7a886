"""Skew: what the pieces of a step cost, of rows of unlike lengths, as they come and as they are dealt."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from plait import spec
from plait.data import dealing
from plait.data.batches import Batches
from plait.data.dealing import Cost
from plait.data.tokens import Prepared

STEPS = 20


@dataclass(frozen=True)
class Pieces:
    """Of some steps. filled: the share of places that hold tokens of those that are computed. micro_batch, half: the costliest
    micro-batch of a step, and half of a step, by their mean, on average over steps."""

    way: str
    filled: float
    micro_batch: float
    half: float


def pieces(prepared: Prepared, train: spec.Train, cost: Cost | None) -> list[Pieces]:
    """Rows as they come and with their padding; as they come without it; and dealt. Empty where all rows cost the same, or nobody knows how
    many are computed at once."""
    size = train.micro_batch
    if cost is None or size == "auto":
        return []
    batches = Batches(prepared.split("train", cost.whole), train, prepared.fingerprint)
    if batches.lengths(1) is None:
        return []
    come: Callable[[np.ndarray], list[np.ndarray]] = lambda lengths: np.split(lengths, range(size, len(lengths), size))  # noqa: E731
    whole = Cost(cost.whole, cost.whole, cost.knee)
    return [
        _of("padded", list(_as_they_come(batches)), whole, come),
        _of("without padding", list(_as_they_come(batches)), cost, come),
        _of("dealt", list(_dealt(batches)), cost, lambda lengths: [lengths[rows] for rows in dealing.micro_batches(lengths, size, cost)]),
    ]


def _dealt(batches: Batches) -> Iterator[np.ndarray]:
    """The lengths of each step's rows."""
    for step in range(1, min(STEPS, batches.steps) + 1):
        lengths = batches.lengths(step)
        assert lengths is not None
        yield lengths


def _as_they_come(batches: Batches) -> Iterator[np.ndarray]:
    return (lengths[batches.along(step)] for step, lengths in enumerate(_dealt(batches), 1))


def _of(way: str, steps: list[np.ndarray], cost: Cost, cut: Callable[[np.ndarray], list[np.ndarray]]) -> Pieces:
    widths = [[len(rows) * cost.widths(rows).max() for rows in cut(lengths)] for lengths in steps]
    costs = [[len(rows) * cost.of(cost.widths(rows)).max() for rows in cut(lengths)] for lengths in steps]
    halves = [[cost.of(cost.widths(half)).sum() for half in np.array_split(lengths, 2) if len(half)] for lengths in steps]
    filled = sum(int(lengths.sum()) for lengths in steps) / sum(map(sum, widths))
    return Pieces(way, float(filled), *(float(np.mean([max(each) / np.mean(each) for each in found])) for found in (costs, halves)))
