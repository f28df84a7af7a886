"""Promise 1 while speeds change: shares follow them, and the curve does not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from plait import events
from plait.cluster import local
from plait.cluster.faults import Fault
from tests.curves import LOSS, Curves, assert_one_curve
from tests.runs import differences, slow

STEPS = 40


@pytest.fixture
def curve(curves: Callable[..., Curves], corpus: Path, monkeypatch: pytest.MonkeyPatch) -> Curves:
    monkeypatch.setattr(local, "WORKER", "tests.paces:main")
    return curves(corpus, train__duration=f"{STEPS} steps", model__dropout=0.1)


@pytest.fixture
def alone(curve: Curves) -> list[events.Step]:
    return curve("alone")


def counts(step: events.Step) -> list[int]:
    return [sum(end - first for first, end in ranges) for ranges in step.shares.values()]


@pytest.mark.parametrize("policy", [slow("dynamic"), "auto"])
def test_shares_follow_load_that_comes_and_goes_and_the_curve_does_not(curve: Curves, alone: list[events.Step], policy: str) -> None:
    steps = curve("shared", layout__replicas=2, balance__policy=policy)
    assert_one_curve(alone, steps)
    assert [counts(steps[at]) for at in (4, 16, 25, 39)] == [[4, 4], [2, 6], [4, 4], [7, 1]]
    assert [event.policy for event in curve.of("shared", events.Rebalanced)][:1] == ["dynamic"]
    assert [(event.replica, event.recovered) for event in curve.of("shared", events.Straggler)][:2] == [(0, False), (0, True)]


@pytest.mark.slow
def test_pieces_follow_load_that_comes_and_goes_and_the_curve_does_not(curve: Curves, alone: list[events.Step]) -> None:
    steps = curve("served", layout__replicas=2, sync__strategy="server", sync__push_every=2, balance__policy="auto")
    assert_one_curve(alone, steps)
    assert len(curve.of("served", events.Rebalanced)) >= 3
    assert [event.replica for event in curve.of("served", events.Straggler)][:2] == [0, 0]


@pytest.mark.slow
@pytest.mark.parametrize("axis", ["tensor", "pipeline", "shard"])
def test_shares_of_spread_replicas_draw_one_curve(curve: Curves, alone: list[events.Step], axis: str) -> None:
    layout = {"replicas": 2, axis: 2}
    steps = curve("spread", layout=layout, balance__policy="dynamic")
    assert_one_curve(alone, steps)
    assert [counts(steps[at]) for at in (4, 16, 25, 39)] == [[4, 4], [2, 6], [4, 4], [7, 1]]


@pytest.mark.slow
def test_measured_shares_draw_one_curve(curve: Curves, alone: list[events.Step]) -> None:
    assert_one_curve(alone, curve("measured", layout__replicas=3, balance__capacity="measured"))
    assert len(curve.of("measured", events.Rebalanced)) == 1


@pytest.mark.slow
def test_replicas_die_while_shares_follow_speeds(curve: Curves, alone: list[events.Step]) -> None:
    """Their clocks are true here: whatever shares come of that, the curve is the same."""
    faults = (Fault("computing", 9, 0), Fault("reduced", 20, 2), Fault("voted", 30, 1))
    assert_one_curve(alone, curve("killed", *faults, layout__replicas=3, balance__policy="dynamic"))
    assert len(curve.of("killed", events.Lost)) == 3


@pytest.mark.slow
def test_a_divisor_by_share_is_seen(curve: Curves, alone: list[events.Step], monkeypatch: pytest.MonkeyPatch) -> None:
    """The check above is able to fail."""
    monkeypatch.setattr(local, "WORKER", "tests.paces:dividing_by_share")
    loss, grad_norm = differences(alone, curve("wrong", layout__replicas=2, balance__policy="dynamic"))
    assert loss > LOSS
    assert grad_norm > 1e-3
