"""Dropout's masks: of the right rate, independent, and the same however the work is cut."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.model.noise import Dropout, Noise

SHAPE = (4, 64, 96)


def mask(rate=0.1, path="blocks.0.dropout1", seed=7, step=3, samples=(0, 1, 2, 3), shape=SHAPE):
    ones = torch.ones(len(samples), *shape[1:])
    return Dropout(rate, path)(ones, Noise(seed, step, torch.tensor(samples))) > 0


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.5, 0.9])
def test_drops_the_asked_share_and_keeps_the_mean(rate):
    x = Dropout(rate, "x")(torch.ones(8, 128, 256, dtype=torch.float64), Noise(1, 1, torch.arange(8)))
    spread = (rate * (1 - rate) / x.numel()) ** 0.5
    assert abs((x == 0).double().mean().item() - rate) < 4 * spread
    assert abs(x.mean().item() - 1) < 4 * spread / (1 - rate)


def test_each_row_column_and_sample_drops_the_asked_share():
    kept = mask(0.5, samples=tuple(range(64)), shape=(64, 64, 64)).double()
    for dims in [(0, 1), (0, 2), (1, 2)]:
        assert (kept.mean(dims) - 0.5).abs().max() < 5 * 0.5 / 64


def agreement(a, b):
    """How far, in standard deviations, two half-dropping masks are from independence."""
    return ((a == b).double().mean().item() - 0.5) / (0.5 / a.numel() ** 0.5)


@pytest.mark.parametrize(
    "other", [{"seed": 8}, {"step": 4}, {"path": "blocks.1.dropout1"}, {"samples": (4, 5, 6, 7)}, {"samples": (1, 2, 3, 0)}]
)
def test_another_seed_step_path_or_sample_is_independent(other):
    assert abs(agreement(mask(0.5), mask(0.5, **other))) < 4


@pytest.mark.parametrize("lag", [1, 2, 3, 8, 32])
def test_neighbours_are_independent(lag):
    kept = mask(0.5, samples=tuple(range(16)), shape=(16, 128, 128))
    assert abs(agreement(kept[:, :, lag:], kept[:, :, :-lag])) < 4
    assert abs(agreement(kept[:, lag:], kept[:, :-lag])) < 4
    assert abs(agreement(kept[lag:, :], kept[:-lag, :])) < 4 if lag < 16 else True


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 7), st.integers(0, 2**62), st.integers(0, 2**40))
def test_the_mask_follows_no_cut_of_the_micro_batch(cut, seed, first):
    samples = tuple(range(first, first + 8))
    whole = mask(0.3, seed=seed, samples=samples)
    parts = [mask(0.3, seed=seed, samples=samples[:cut]), mask(0.3, seed=seed, samples=samples[cut:])]
    assert torch.equal(whole, torch.cat(parts))


def test_the_mask_follows_no_cut_of_rows_or_columns():
    dropout, noise = Dropout(0.3, "x"), Noise(0, 1, torch.arange(2))
    rows, columns = torch.arange(12), torch.arange(10, dtype=torch.int32)
    whole = dropout.keep(noise, rows, columns)
    assert torch.equal(whole[:, 4:9], dropout.keep(noise, rows[4:9], columns))
    assert torch.equal(whole[:, :, 3:7], dropout.keep(noise, rows, columns[3:7]))


def test_the_mask_is_the_same_in_every_dtype():
    noise = Noise(0, 1, torch.arange(3))
    kept = [Dropout(0.2, "x")(torch.ones(3, 5, 7, dtype=dtype), noise) > 0 for dtype in (torch.float32, torch.float64, torch.bfloat16)]
    assert torch.equal(kept[0], kept[1])
    assert torch.equal(kept[0], kept[2])


def test_without_noise_or_rate_it_is_the_identity():
    x = torch.randn(2, 3)
    assert Dropout(0.5, "x")(x, None) is x
    assert Dropout(0.0, "x")(x, Noise(0, 1, torch.arange(2))) is x


def test_the_mask_is_a_contract():
    """These bits may not change: a resumed run must drop what it would have dropped."""
    kept = mask(0.5, "golden", 1, 2, (3,), (1, 2, 24))
    assert ["".join("01"[bit] for bit in row) for row in kept[0].int().tolist()] == GOLDEN


GOLDEN = ["011010101011000100111011", "100011000010100101101101"]
