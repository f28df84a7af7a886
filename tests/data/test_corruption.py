"""Masks and spans: exact counts, a pure function of the key, and nothing lost."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.data import chance, corruption

SAMPLES = np.arange(40)


def keys(samples: np.ndarray = SAMPLES, seed: int = 3) -> np.ndarray:
    return chance.keys(seed, "test", samples)


def test_what_is_drawn_for_a_sample_hangs_on_no_other_sample() -> None:
    together = chance.uniform(keys(), 16)
    assert np.array_equal(together[7:9], chance.uniform(keys(np.array([7, 8])), 16))
    assert np.array_equal(together[:, 4:9], chance.uniform(keys(), 5, first=4))
    assert not np.array_equal(together, chance.uniform(keys(seed=4), 16))
    assert not np.array_equal(together, chance.uniform(chance.keys(3, "other", SAMPLES), 16))
    assert abs(chance.uniform(keys(np.arange(2000)), 50).mean() - 0.5) < 0.005


def test_exactly_so_many_are_chosen_and_every_place_alike() -> None:
    many = np.arange(6000)
    counts, among = many % 5, np.full(6000, 12)
    few = chance.chosen(keys(many), 16, counts, among)
    assert np.array_equal(few.sum(axis=1), counts)
    assert not few[:, 12:].any()
    shares = few[:, :12].mean(axis=0)
    assert abs(shares - counts.sum() / 6000 / 12).max() < 0.02


def test_masking_changes_what_it_tells_and_nothing_else() -> None:
    tokens = np.arange(4000 * 40).reshape(4000, 40) % 900 + 50
    lengths = np.full(4000, 40)
    lengths[1] = 3
    corrupted, told = corruption.mask(tokens, lengths, keys(np.arange(4000)), 0.15, mask_token=7, vocabulary=40)
    assert told.sum(axis=1)[[0, 1]].tolist() == [6, 1]
    assert np.array_equal(corrupted[~told], tokens[~told])
    masked, kept = (corrupted[told] == 7).mean(), (corrupted[told] == tokens[told]).mean()
    assert abs(masked - 0.8 - 0.1 / 40) < 0.01  # 7 is one of the 40 that a token may be exchanged for
    assert abs(kept - 0.1) < 0.01
    assert corrupted[told & (corrupted != tokens)].max() < 40


@given(length=st.integers(2, 90), rate=st.sampled_from([0.05, 0.15, 0.5, 0.9]), mean=st.sampled_from([1.0, 3.0, 8.0]))
@settings(deadline=None)
def test_spans_have_the_counts_that_arithmetic_tells(length: int, rate: float, mean: float) -> None:
    noise = corruption.spans(keys(), length, rate, mean)
    tokens, count = corruption.span_counts(length, rate, mean)
    begins = noise & ~np.pad(noise, ((0, 0), (1, 0)))[:, :-1]
    assert (noise.sum(axis=1) == tokens).all()
    assert (begins.sum(axis=1) == count).all()
    assert not noise[:, 0].any()
    text = np.arange(40 * length).reshape(40, length) + 1000
    inputs, targets = corruption.collapse(text, noise, first_sentinel=999)
    assert (inputs.shape[1], targets.shape[1]) == corruption.span_widths(length, rate, mean)
    for row in range(40):
        assert put_back(inputs[row].tolist(), targets[row].tolist()) == text[row].tolist()


def put_back(inputs: list[int], targets: list[int]) -> list[int]:
    """The text again, each sentinel exchanged for what follows it in the targets."""
    held: dict[int, list[int]] = {}
    for token in targets:
        if token < 1000:
            held[token] = here = []
        else:
            here.append(token)
    return [token for each in inputs for token in (held[each] if each < 1000 else [each])]


def test_the_example_of_the_docstring() -> None:
    noise = np.array([[0, 0, 0, 1, 0, 0, 0, 0, 1, 0]], dtype=bool)
    inputs, targets = corruption.collapse(np.arange(10)[None], noise, first_sentinel=99)
    assert inputs.tolist() == [[0, 1, 2, 99, 4, 5, 6, 7, 98, 9]]
    assert targets.tolist() == [[99, 3, 98, 8, 97]]


@pytest.mark.parametrize("seed", [1, 2])
def test_spans_differ_from_key_to_key(seed: int) -> None:
    noise = corruption.spans(keys(seed=seed), 60, 0.15, 3.0)
    assert len({row.tobytes() for row in noise}) == 40
    assert abs(noise.mean(axis=0)[5:-5].mean() - 0.15) < 0.05
