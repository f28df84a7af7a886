"""Who stays slower is told once, with what it is slow in, and again when it no longer is; noise is not told of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from plait import events
from plait.ledger.messages import Join, Verdict
from plait.ledger.stragglers import PATIENCE, WARM, Found, Pace, Stragglers
from tests.ledger.test_state import House, plan, vote

LEVEL = Pace(8, 0.8, 0.08, 0.0)


def told(paces: Sequence[dict[int, Pace]], watched: Stragglers | None = None) -> list[Found]:
    watched = watched or Stragglers()
    return [found for each in paces for found in watched.observe(each, seconds=1.0)]


def pair(**changes: float) -> dict[int, Pace]:
    return {0: LEVEL, 1: LEVEL._replace(**changes), 2: LEVEL}


@pytest.mark.parametrize("phase", ["computing", "data", "sending"])
def test_who_is_slow_is_told_once_with_its_phase_and_again_when_it_recovers(phase: str) -> None:
    usual = pair(sending=0.05) if phase == "sending" else pair()
    usual = {replica: pace._replace(sending=0.05) for replica, pace in usual.items()}
    slow = {**usual, 1: usual[1]._replace(**{phase: 3 * getattr(usual[1], phase)})}
    found = told([usual] * 5 + [slow] * 40 + [usual] * 40)
    assert [(each.replica, each.phase, each.recovered) for each in found] == [(1, phase, False), (1, phase, True)]
    assert found[0].slower == pytest.approx(3.0)


def test_it_is_told_when_it_has_been_slow_for_some_units_and_not_before() -> None:
    slow = pair(computing=2.4)
    assert not told([slow] * (WARM + PATIENCE - 1))
    assert len(told([slow] * (WARM + PATIENCE))) == 1


def test_neither_what_passes_nor_what_wavers_around_the_limit_is_told_again_and_again() -> None:
    assert not told(([pair(computing=8.0)] * (PATIENCE - 1) + [pair()]) * 10)
    wavering = [pair(computing=2.4)] * 20 + [pair(computing=1.15), pair(computing=1.3)] * 50
    assert len(told(wavering)) == 1


def test_a_smaller_share_does_not_hide_who_is_slow() -> None:
    assert len(told([pair(samples=3, computing=0.9, data=0.03)] * 20)) == 1


def test_what_costs_nothing_is_nobodys_concern() -> None:
    assert not told([pair(data=0.11)] * 20)  # 1.4 times
    assert not told([{replica: pace._replace(data=0.001 * (1 + 9 * replica)) for replica, pace in pair().items()}] * 20)


def test_who_computes_nothing_and_who_is_alone_is_not_judged() -> None:
    assert not told([{0: LEVEL, 1: Pace(0, 5.0, 0.0, 0.0)}] * 20)
    assert not told([{0: LEVEL}] * 20)


def test_another_process_begins_afresh() -> None:
    watched = Stragglers()
    told([pair(computing=2.4)] * 20, watched)
    watched.forget(1)
    assert not told([pair()] * 20, watched)


def test_the_event_names_the_process_and_the_slowest_rank() -> None:
    house = House(plan(replicas=2, ranks=2, steps=40))
    for member in house.ledger.plan.workers:
        house.say(member, Join(f"node{member[0]}", 100 + member[1], "cpu", 10))
    work = house.met({member: house.take(member, Verdict).work for member in house.ledger.plan.workers})
    for step in range(1, 31):
        for member, lease in work.items():
            computed = 0.3 if member == (1, 1) and step <= 15 else 0.1
            house.say(member, replace(vote(lease), computed=computed, data=0.01))
        work = {member: house.take(member, Verdict).work for member in work}
    slow, level = house.of(events.Straggler)
    assert (slow.replica, slow.rank, slow.host, slow.pid, slow.phase) == (1, 1, "node1", 101, "computing")
    assert (slow.step, slow.recovered, level.recovered) == (WARM + PATIENCE, False, True)
    assert slow.slower == pytest.approx(3.0)
    assert "nothing" in slow.action
    step = house.of(events.Step)[0]
    assert (step.computed, step.data) == ({"0": 0.1, "1": 0.3}, {"0": 0.01, "1": 0.01})
