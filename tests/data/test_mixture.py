"""Mixtures draw in exact proportion, and no draw twice."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.data import mixture


@given(weights=st.lists(st.sampled_from([0.1, 0.2, 0.25, 0.5, 1.0, 2.0, 3.0, 7.0]), min_size=1, max_size=5), key=st.integers(0, 2**64 - 1))
@settings(deadline=None)
def test_proportions_are_exact_in_every_block_and_no_draw_is_left_out(weights: list[float], key: int) -> None:
    counts = mixture.proportions(weights)
    blocks = 4
    sources, draws = mixture.Mixture(weights, key).draw(np.arange(blocks * sum(counts)))
    for source, count in enumerate(counts):
        mine = draws[sources == source]
        assert np.array_equal(np.sort(mine), np.arange(blocks * count))
    assert np.array_equal(np.bincount(sources[: sum(counts)], minlength=len(counts)), counts)


@pytest.mark.parametrize(
    ("weights", "counts"),
    [([1.0], [1]), ([3.0, 1.0], [3, 1]), ([0.7, 0.3], [7, 3]), ([0.5, 0.25, 0.25], [2, 1, 1]), ([1e-9, 1.0], [1, 1 << 20])],
)
def test_proportions_are_the_smallest_whole_numbers(weights: list[float], counts: list[int]) -> None:
    assert mixture.proportions(weights) == counts


def test_places_far_out_cost_no_more() -> None:
    sources, draws = mixture.Mixture([3.0, 1.0], 5).draw(np.arange(10**12, 10**12 + 400))
    assert np.bincount(sources).tolist() == [300, 100]
    assert draws[sources == 1].min() == 10**12 // 4
