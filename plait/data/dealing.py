"""Dealing: rows of unlike lengths laid out so that shares of a step cost the same, and cut into micro-batches that do.

    rows of a step, by length          ████████ ██████ █████ ████ ███ ██ █ █
    spread over its positions          any share of so many rows costs about as much as another of so many
    a share, cut into micro-batches    │████████│██████│████│██│           rows that are computed together are padded to the longest, so
                                       │        │█████ │███ │█ │           that like ones meet: many short ones for a few long ones
                                       │        │      │    │█ │

What a step consists of is decided before, and what each row draws hangs on its number: dealing changes no curve.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from plait import spec

PADDED_TO = 8
"""Rows are padded to a multiple of so many places, for each rank that shares them."""
_FEWEST = 3
"""Micro-batches for each that would do."""


_TRIMMED = ("gpt2", "llama", "bert")


def grain(run: spec.Run) -> int | None:
    """Of what lengths are made a multiple where padding is left out; None where rows are computed whole: stages of a pipeline send each
    other one shape, blocks are compiled for one, a mixture counts the choices of padding too, and your own model may want all places."""
    layout, labelled = run.layout, run.data.objective.labelled
    if layout.pipeline > 1 or run.model.family not in _TRIMMED or (layout.context > 1 if labelled else run.train.compile):
        return None
    return PADDED_TO * layout.context * layout.tensor


@dataclass(frozen=True)
class Cost:
    """What a row costs, in tokens. whole: places of one with all its padding; grain: of what its length is made a multiple; knee: tokens
    of a row whose attention costs as much as all else."""

    whole: int
    grain: int
    knee: float

    def widths(self, lengths_N: np.ndarray) -> np.ndarray:
        """Places that are computed."""
        widths: np.ndarray = np.minimum(-(-lengths_N // self.grain) * self.grain, self.whole)
        return widths

    def of(self, widths_N: np.ndarray) -> np.ndarray:
        cost: np.ndarray = widths_N * (1 + widths_N / self.knee)
        return cost


def spread(lengths_N: np.ndarray) -> np.ndarray:
    """An order of rows in which halves, their halves and so on hold equally many and as many tokens, as far as that can be, int64 [N].

    Of two rows that follow each other by length each half takes one, so that squares of lengths, which attention costs, are spread too.
    """
    return _halved(np.argsort(-lengths_N, kind="stable"), lengths_N)


def _halved(rows_N: np.ndarray, lengths_N: np.ndarray) -> np.ndarray:
    """rows_N: the longest first."""
    if len(rows_N) < 3:
        return rows_N
    longer, shorter = rows_N[0::2], rows_N[1::2]
    apart = lengths_N[longer[: len(shorter)]] - lengths_N[shorter]
    ahead, turned = 0, np.zeros(len(longer), dtype=bool)
    for pair, difference in enumerate(apart.tolist()):
        turned[pair] = ahead > 0  # the half that is ahead takes the shorter one
        ahead += -difference if turned[pair] else difference
    turned_pairs = turned[: len(shorter)]
    one, other = longer.copy(), shorter.copy()
    one[: len(shorter)][turned_pairs], other[turned_pairs] = shorter[turned_pairs], longer[: len(shorter)][turned_pairs]
    return np.concatenate([_halved(one, lengths_N), _halved(other, lengths_N)])


def micro_batches(lengths_N: np.ndarray, size: int, cost: Cost) -> list[np.ndarray]:
    """Rows by number, those of like length together, in micro-batches of equal cost, as far as that can be, the longest rows first.

    They are no more than rows in groups of `size` would be, and none has more places than `size` whole rows, padding included. Full ones
    would hold much padding, and small ones keep no processor busy: between, they are a third full or more.
    """
    if not len(lengths_N):
        return []
    rows_N = np.argsort(-lengths_N, kind="stable")
    widths_N = cost.widths(lengths_N[rows_N]).astype(np.float64)
    costs_N, most = cost.of(widths_N), size * cost.whole
    low, high = float(costs_N[0]), most * float(costs_N[0] / widths_N[0])
    edges = _edges(widths_N, costs_N, most, high)
    count = min(_FEWEST * len(edges), -(-len(rows_N) // size))
    while high - low > low / 100:
        middle = (low + high) / 2
        found = _edges(widths_N, costs_N, most, middle)
        if len(found) <= count:
            high, edges = middle, found
        else:
            low = middle
    return np.split(rows_N, edges[1:])


def _edges(widths_N: np.ndarray, costs_N: np.ndarray, most: int, budget: float) -> list[int]:
    """Where each of the micro-batches begins, that have so many places and cost so much at most."""
    edges, at = [], 0
    while at < len(widths_N):
        edges.append(at)
        at += max(1, int(min(most / widths_N[at], budget / costs_N[at])))
    return edges
