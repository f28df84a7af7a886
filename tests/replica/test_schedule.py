"""The learning rate of each step: its bounds, its ends and its corners."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plait import spec
from plait.replica.schedule import rate

NAMES = ("constant", "cosine", "linear", "wsd")
lengths = st.tuples(st.integers(2, 300), st.integers(0, 300), st.integers(0, 300))


def curve(name: str, steps: int, warmup: int = 0, decay: int = 0, floor: float = 0.1, lr: float = 1.0) -> list[float]:
    schedule = spec.Schedule(name=name, floor=floor)
    return [rate(schedule, lr, step, steps, warmup, decay) for step in range(1, steps + 1)]


@given(st.sampled_from(NAMES), lengths, st.floats(0.001, 1), st.floats(1e-6, 1e3))
def test_the_rate_lies_above_zero_and_at_most_at_lr(name, length, floor, lr):
    rates = curve(name, *length, floor=floor, lr=lr)
    assert all(0 < value <= lr * (1 + 1e-12) for value in rates)


@given(st.sampled_from(NAMES[1:]), lengths, st.floats(0, 1))
def test_the_last_step_has_the_floor_unless_warm_up_fills_the_run(name, length, floor):
    steps, warmup, decay = length
    last = curve(name, steps, warmup, max(decay, 1), floor=floor)[-1]
    assert last == pytest.approx(floor if warmup < steps else steps / warmup)


@given(st.sampled_from(NAMES), lengths)
def test_no_step_jumps_further_than_a_straight_line_or_half_a_cosine_does(name, length):
    steps, warmup, decay = length
    rates = curve(name, steps, warmup, max(decay, 1))
    falling = max(1, min(steps - max(warmup, 1), max(decay, 1)) if name == "wsd" else steps - max(warmup, 1))
    steepest = max(1 / max(warmup, 1) if warmup else 0, math.pi / 2 / falling)
    assert all(abs(after - before) <= steepest + 1e-9 for before, after in itertools.pairwise(rates))


@given(st.sampled_from(NAMES), lengths)
def test_it_rises_through_the_warm_up_and_never_after(name, length):
    steps, warmup, decay = length
    rates = curve(name, steps, warmup, decay)
    assert rates[: min(warmup, steps)] == sorted(rates[: min(warmup, steps)])
    assert rates[max(warmup, 1) - 1 :] == sorted(rates[max(warmup, 1) - 1 :], reverse=True)


@pytest.mark.parametrize("name", NAMES)
def test_a_run_of_one_step_trains_at_lr(name):
    assert curve(name, 1, decay=1) == [1.0]


def test_without_warm_up_the_first_step_has_lr():
    assert curve("linear", 5, floor=0.0) == pytest.approx([1.0, 0.75, 0.5, 0.25, 0.0])


def test_warm_up_reaches_lr_at_its_last_step():
    assert curve("constant", 6, warmup=4) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_wsd_is_stable_until_its_decay():
    assert curve("wsd", 10, warmup=2, decay=4, floor=0.2) == pytest.approx([0.5, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2])


def test_wsd_falls_at_once_when_its_decay_is_longer_than_the_run():
    assert curve("wsd", 3, decay=99, floor=0.5) == pytest.approx([1, 0.75, 0.5])


def test_steps_after_the_last_keep_its_rate():
    assert rate(spec.Schedule(name="cosine", floor=0.1), 1.0, 12, 10, 0, 0) == pytest.approx(0.1)
