"""The order is a permutation, whatever its length; any place of it is told without the others."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.data import order

keys = st.integers(0, 2**64 - 1)


@given(length=st.integers(1, 3000), key=keys)
@settings(deadline=None)
def test_every_place_is_taken_once(length: int, key: int) -> None:
    places = order.permute(np.arange(length), length, key)
    assert np.array_equal(np.sort(places), np.arange(length))


@given(length=st.integers(2**20, order.LONGEST), key=keys, data=st.data())
@settings(deadline=None)
def test_random_access_at_any_length(length: int, key: int, data: st.DataObject) -> None:
    index = data.draw(st.lists(st.integers(0, length - 1), min_size=2, max_size=20, unique=True))
    permutation = order.Permutation(length, key)
    together = permutation(np.array(index))
    assert len(set(together.tolist())) == len(index)
    assert together.min() >= 0
    assert together.max() < length
    assert [permutation(one) for one in index] == together.tolist()


def test_many_places_of_10_to_the_12_are_distinct_and_spread() -> None:
    length = 10**12
    places = order.Permutation(length, key=7)(np.arange(length - 200_000, length))
    assert len(np.unique(places)) == 200_000
    tenths = np.bincount(places // 10**11, minlength=10)
    assert np.all(np.abs(tenths - 20_000) < 5 * np.sqrt(20_000))


def test_short_permutations_come_about_equally_often() -> None:
    keys = order.keys_of(3, np.repeat(np.arange(24_000), 4))
    places = order.permute(np.tile(np.arange(4), 24_000), 4, keys).reshape(-1, 4)
    _, counts = np.unique(places @ [64, 16, 4, 1], return_counts=True)
    assert len(counts) == 24
    assert np.all(np.abs(counts - 1000) < 200)


def test_neighbours_do_not_stay_neighbours() -> None:
    places = order.permute(np.arange(10_000), 10_000, 1)
    assert abs(np.corrcoef(np.arange(10_000), places)[0, 1]) < 0.05
    assert (np.diff(places) == 1).sum() < 10


def test_a_key_is_the_same_everywhere() -> None:
    assert order.key_of("fingerprint", 7) == 4639437611534108681
    assert order.permute(np.arange(8), 8, 42).tolist() == order.permute(np.arange(8), 8, np.full(8, 42, np.uint64)).tolist()
