"""An emulated link holds back; the one that there is is measured alike by all."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from plait.sync import link
from plait.sync.link import Link, Span, measure
from plait.testing.processes import run_distributed


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(link, "time", clock)
    return clock


def test_bytes_queue_and_latencies_pass_side_by_side(clock: Clock) -> None:
    slow = Link(latency=1.0, bandwidth=10.0)
    assert [slow.book(20), slow.book(30)] == [100 + 2 + 1, 100 + 2 + 3 + 1]
    clock.now = 200.0
    assert slow.book(10) == 200 + 1 + 1


def test_messages_that_follow_one_another_take_their_latency_each(clock: Clock) -> None:
    assert Link(latency=1.0).book(10**9, messages=6) == 106.0


def test_nothing_leaves_before_it_may(clock: Clock) -> None:
    slow = Link(bandwidth=10.0)
    assert slow.book(10, after=150.0) == 151.0


def test_what_is_held_back_comes_when_it_would(clock: Clock) -> None:
    slow = Link()
    slow.hold(103.5)
    assert clock.now == 103.5
    slow.hold(50.0)
    assert clock.now == 103.5


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 10))))
def test_a_span_is_the_length_of_a_union(intervals: list[tuple[int, int]]) -> None:
    span = Span()
    for began, length in intervals:
        span.add(began, began + length)
    assert span.seconds == len({second for began, length in intervals for second in range(began, began + length)})
    span.clear()
    assert span.seconds == 0.0


def measured(rank: int, size: int, group: Any, slow: list[float] | None) -> list[float]:
    began = time.monotonic()
    return [*measure(group, torch.device("cpu"), Link(*slow) if slow else None), time.monotonic() - began]


def test_all_members_measure_the_same() -> None:
    (latency, bandwidth, _), *others = run_distributed("tests.sync.test_link:measured", 3, slow=None)
    assert latency > 0
    assert bandwidth > 0
    assert all(other[:2] == [latency, bandwidth] for other in others)


def test_an_emulated_link_is_measured_as_what_it_emulates() -> None:
    """A ring of two: each sends as many bytes as a bucket has, in two messages that follow one another."""
    (latency, bandwidth, taken), _ = run_distributed("tests.sync.test_link:measured", 2, slow=[5e-3, 20e6])
    assert 10e-3 <= latency < 30e-3
    assert 4e6 < bandwidth < 21e6
    assert taken < 2.0
