"""Promise 1 while speeds change: shares follow them, and the curve does not."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from plait import events
from plait.cluster import local
from plait.cluster.faults import Fault
from plait.cluster.nursery import Nursery
from plait.proof.coverage import verify_run
from plait.tasks.pretrain import train
from tests.runs import differences, history_of, slow, steps_of, tiny

LOSS, GRAD_NORM = 1e-9, 1e-7
STEPS = 40


class Trainer:
    """Trains with scripted speeds, and proves that nothing was lost or used twice."""

    def __init__(self, folder: Path, corpus: Path, prepared: Path, nursery: Nursery) -> None:
        self._folder = folder
        self._given = corpus, prepared
        self._nursery = nursery

    def __call__(self, name: str, *faults: Fault, **changes: Any) -> list[events.Step]:
        settings = {"train__duration": f"{STEPS} steps", "model__dropout": 0.1, **changes}
        out = self._folder / name
        train(tiny(*self._given, **settings), out, nursery=self._nursery, quiet=True, faults=[asdict(fault) for fault in faults])
        assert verify_run(out).wrong == []
        return steps_of(out)

    def of(self, name: str, kind: type) -> list[Any]:
        return [event for event in history_of(self._folder / name) if isinstance(event, kind)]


@pytest.fixture
def curve(tmp_path: Path, corpus: Path, prepared: Path, nursery: Nursery, monkeypatch: pytest.MonkeyPatch) -> Trainer:
    monkeypatch.setattr(local, "WORKER", "tests.paces:main")
    return Trainer(tmp_path, corpus, prepared, nursery)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, corpus: Path, prepared: Path, nursery: Nursery) -> list[events.Step]:
    return Trainer(tmp_path_factory.mktemp("alone"), corpus, prepared, nursery)("alone")


def assert_one_curve(one: list[events.Step], other: list[events.Step]) -> None:
    loss, grad_norm = differences(one, other)
    assert loss <= LOSS
    assert grad_norm <= GRAD_NORM


def counts(step: events.Step) -> list[int]:
    return [sum(end - first for first, end in ranges) for ranges in step.shares.values()]


@pytest.mark.parametrize("policy", [slow("dynamic"), "auto"])
def test_shares_follow_load_that_comes_and_goes_and_the_curve_does_not(curve: Trainer, alone: list[events.Step], policy: str) -> None:
    steps = curve("shared", layout__replicas=2, balance__policy=policy)
    assert_one_curve(alone, steps)
    assert [counts(steps[at]) for at in (4, 16, 25, 39)] == [[4, 4], [2, 6], [4, 4], [7, 1]]
    assert [event.policy for event in curve.of("shared", events.Rebalanced)][:1] == ["dynamic"]
    assert [(event.replica, event.recovered) for event in curve.of("shared", events.Straggler)][:2] == [(0, False), (0, True)]


@pytest.mark.slow
def test_pieces_follow_load_that_comes_and_goes_and_the_curve_does_not(curve: Trainer, alone: list[events.Step]) -> None:
    steps = curve("served", layout__replicas=2, sync__strategy="server", sync__push_every=2, balance__policy="auto")
    assert_one_curve(alone, steps)
    assert len(curve.of("served", events.Rebalanced)) >= 3
    assert [event.replica for event in curve.of("served", events.Straggler)][:2] == [0, 0]


@pytest.mark.slow
@pytest.mark.parametrize("axis", ["tensor", "pipeline", "shard"])
def test_shares_of_spread_replicas_draw_one_curve(curve: Trainer, alone: list[events.Step], axis: str) -> None:
    layout = {"replicas": 2, axis: 2}
    steps = curve("spread", layout=layout, balance__policy="dynamic")
    assert_one_curve(alone, steps)
    assert [counts(steps[at]) for at in (4, 16, 25, 39)] == [[4, 4], [2, 6], [4, 4], [7, 1]]


@pytest.mark.slow
def test_measured_shares_draw_one_curve(curve: Trainer, alone: list[events.Step]) -> None:
    assert_one_curve(alone, curve("measured", layout__replicas=3, balance__capacity="measured"))
    assert len(curve.of("measured", events.Rebalanced)) == 1


@pytest.mark.slow
def test_replicas_die_while_shares_follow_speeds(curve: Trainer, alone: list[events.Step]) -> None:
    """Their clocks are true here: whatever shares come of that, the curve is the same."""
    faults = (Fault("computing", 9, 0), Fault("reduced", 20, 2), Fault("voted", 30, 1))
    assert_one_curve(alone, curve("killed", *faults, layout__replicas=3, balance__policy="dynamic"))
    assert len(curve.of("killed", events.Lost)) == 3


@pytest.mark.slow
def test_a_divisor_by_share_is_seen(curve: Trainer, alone: list[events.Step], monkeypatch: pytest.MonkeyPatch) -> None:
    """The check above is able to fail."""
    monkeypatch.setattr(local, "WORKER", "tests.paces:dividing_by_share")
    loss, grad_norm = differences(alone, curve("wrong", layout__replicas=2, balance__policy="dynamic"))
    assert loss > LOSS
    assert grad_norm > 1e-3
