"""Rows of unlike lengths: shares of a step cost the same, and so do micro-batches; every row is in one of them."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from plait.data.dealing import Cost, micro_batches, spread

COST = Cost(whole=64, grain=8, knee=256.0)
lengths = st.lists(st.integers(1, 64), min_size=0, max_size=80).map(lambda found: np.array(found, dtype=np.int64))


@given(lengths)
def test_every_row_has_one_place(found: np.ndarray) -> None:
    assert sorted(spread(found).tolist()) == list(range(len(found)))
    assert sorted(row for rows in micro_batches(found, 4, COST) for row in rows.tolist()) == list(range(len(found)))


@given(lengths, st.integers(1, 8))
def test_no_micro_batch_has_more_places_than_it_may(found: np.ndarray, size: int) -> None:
    cut = micro_batches(found, size, COST)
    assert all(len(rows) * COST.widths(found[rows]).max() <= size * COST.whole for rows in cut)
    assert len(cut) <= -(-len(found) // size), "no more than rows as they come"


@given(lengths)
def test_halves_are_apart_by_one_row_at_most(found: np.ndarray) -> None:
    along = found[spread(found)]
    half = -(-len(along) // 2)
    assert abs(int(along[:half].sum()) - int(along[half:].sum())) <= int(found.max(initial=0))


def skewed(count: int) -> np.ndarray:
    """A few long rows among many short ones."""
    return np.minimum(np.random.default_rng(0).lognormal(4, 1, count).astype(np.int64) + 1, 512)


def unevenness(costs: list[float]) -> float:
    """The largest by the mean."""
    return max(costs) / (sum(costs) / len(costs))


def test_shares_and_micro_batches_of_a_skewed_step_cost_the_same() -> None:
    cost, found = Cost(whole=512, grain=8, knee=2000.0), skewed(128)
    costs = cost.of(cost.widths(found))
    along = costs[spread(found)]
    for shares in (2, 3, 4, 8):
        assert unevenness([part.sum() for part in np.array_split(along, shares)]) < 1.06
    assert unevenness([part.sum() for part in np.array_split(costs, 4)]) > 1.15, "as they come they do not"
    cut = micro_batches(found, 8, cost)
    each = [len(rows) * float(cost.of(cost.widths(found[rows])).max()) for rows in cut]
    assert unevenness(each) < 1.15
    assert sum(each) < 1.2 * costs.sum(), "and little of them is padding"
    assert len(cut) < len(found) / 8
