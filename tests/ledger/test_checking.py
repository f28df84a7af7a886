"""Replicas that are no longer alike: whoever differs whenever is found and named, and what it touched is done again or said."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from plait import events
from plait.ledger.checking import Finding, compare
from plait.ledger.messages import Did, Kept, Member, Verdict, Vote, Work
from tests.ledger.simulation import Simulation
from tests.ledger.test_state import House
from tests.ledger.test_together import assert_all_counted, elastic

ALIKE = {"a": "1", "b": "2"}
ODD = {"a": "1", "b": "3"}


def test_alike_is_nobody() -> None:
    assert compare({(0, 0): ALIKE, (1, 0): dict(ALIKE), (0, 1): ODD, (1, 1): ODD}) is None


def test_the_odd_one_is_named_with_what_differs() -> None:
    assert compare({(0, 0): ALIKE, (1, 0): ODD, (2, 0): ALIKE}) == Finding([0, 2], {(1, 0): ["b"]})


def test_ranks_are_compared_with_the_same_ranks_of_others() -> None:
    told = {(replica, rank): {"a": str(rank)} for replica in range(3) for rank in range(2)}
    assert compare(told) is None
    assert compare({**told, (2, 1): {"a": "9"}}) == Finding([0, 1], {(2, 1): ["a"]})


@pytest.mark.parametrize(
    "told",
    [
        {(0, 0): ALIKE, (1, 0): ODD},
        {(0, 0): ALIKE, (1, 0): ODD, (2, 0): {"a": "1", "b": "4"}},
        {(0, 0): ALIKE, (1, 0): ALIKE, (2, 0): ODD, (3, 0): ODD},
    ],
)
def test_without_a_majority_nobody_is_sound(told: dict[Member, dict[str, str]]) -> None:
    finding = compare(told)
    assert finding is not None
    assert finding.sound == []
    assert set(finding.odd) == set(told)
    assert all(names == ["b"] for names in finding.odd.values())


def test_where_each_replica_is_odd_at_some_rank_nobody_is_sound() -> None:
    told = {(replica, rank): {"a": "9" if replica == rank else "1"} for replica in range(3) for rank in range(3)}
    finding = compare(told)
    assert finding is not None
    assert finding.sound == []


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    some.sampled_from(["allreduce", "local_sgd"]),
    some.integers(2, 4),
    some.integers(1, 2),
    some.integers(1, 2),
    some.sampled_from([None, 2, 3]),
    some.integers(1, 5),
    some.integers(0, 10**9),
)
def test_flips_anywhere_are_found_and_the_curve_is_true_or_said_to_be_touched(
    unit: str, replicas: int, ranks: int, flips: int, save_every: int | None, check_every: int, seed: int
) -> None:
    plan = elastic(unit, replicas, ranks=ranks, save_every=save_every, check_every=check_every)
    simulation = Simulation(plan, seed, flips=flips)
    simulation.run()
    assert simulation.ledger.failure is None
    assert_all_counted(simulation)
    found = [event for event in simulation.recorded if isinstance(event, events.Corrupted)]
    assert bool(found) == bool(simulation.flipped), "a flip was not found, or something else was"
    healed = [event for event in found if event.repaired == "healed"]
    wrong = {worker.wrong for worker in simulation.workers.values()}
    assert len(wrong) == 1, "the run ended with replicas that are not alike"
    assert healed or wrong == {frozenset()}, "the curve is touched, and nothing says so"
    if healed:
        assert not any(event.step <= healed[0].since for event in simulation.recorded if isinstance(event, events.Saved))
        assert any(healed[0].since <= step <= healed[0].step for step in simulation.flipped)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    some.integers(2, 4),
    some.integers(1, 2),
    some.integers(0, 2),
    some.integers(1, 4),
    some.sampled_from([None, 3]),
    some.integers(0, 10**9),
)
def test_whoever_dies_meanwhile_each_sample_counts_once(
    replicas: int, ranks: int, flips: int, kills: int, save_every: int | None, seed: int
) -> None:
    plan = elastic(replicas=replicas, ranks=ranks, save_every=save_every, check_every=2)
    simulation = Simulation(plan, seed, kills, flips=flips)
    simulation.run()
    if simulation.ledger.failure is None:
        assert_all_counted(simulation)
    else:
        assert "times in a row" in simulation.ledger.failure


def answer(house: House, work: dict[Member, Work], told: dict[int, dict[str, str]]) -> dict[Member, Verdict]:
    for member, lease in work.items():
        house.say(member, Vote(lease.unit, [], 0.0, fingerprints=told[member[0]]))
    return {member: house.take(member, Verdict) for member in work}


def leased(verdicts: dict[Member, Verdict]) -> dict[Member, Work]:
    return {member: verdict.work for member, verdict in verdicts.items()}


def checked(house: House) -> dict[Member, Work]:
    """The leases after the first step, which ask for fingerprints."""
    work = house.join()
    for member, lease in work.items():
        house.say(member, Vote(lease.unit, [_did() for _ in lease.parts], 0.5))
    return {member: house.take(member, Verdict).work for member in work}


def _did() -> Did:
    return Did(1.0, 4.0, 0.1)


def house(replicas: int = 3, **changes: object) -> House:
    return House(elastic(replicas=replicas, evaluate_every=None, check_every=1, **changes))


def test_a_save_waits_for_the_comparison() -> None:
    here = house(save_every=1)
    work = checked(here)
    assert {lease.check for lease in work.values()} == {"whole"}
    verdicts = answer(here, work, dict.fromkeys(range(3), ALIKE))
    assert [verdict.save for verdict in verdicts.values()] == [True] * 3
    assert verdicts[0, 0].position == {"step": 1}
    assert verdicts[0, 0].work.step == 2


def test_what_was_hashed_wrongly_and_is_right_is_no_corruption() -> None:
    here = house()
    work = leased(answer(here, checked(here), {0: ALIKE, 1: ODD, 2: ALIKE}))
    assert {lease.check for lease in work.values()} == {"each"}
    assert answer(here, work, dict.fromkeys(range(3), ALIKE))[0, 0].work.step == 2
    assert not here.of(events.Corrupted)


def test_without_a_majority_all_return_and_three_times_are_enough() -> None:
    here = house(2)
    work, told = checked(here), {0: ALIKE, 1: ODD}
    for time in range(3):
        work = leased(answer(here, work, told))
        for member, lease in work.items():
            here.say(member, Vote(lease.unit, [], 0.0, fingerprints=told[member[0]]))
        if time == 2:
            break
        verdicts = {member: here.take(member, Verdict) for member in work}
        assert {(verdict.decision, verdict.to_step) for verdict in verdicts.values()} == {("rollback", 0)}
        for member, verdict in verdicts.items():
            here.say(member, Vote(verdict.work.unit, [_did()], 0.5))
        work = {member: here.take(member, Verdict).work for member in work}
    assert "unlike processors" in here.ledger.failure
    assert [(event.replica, event.differs) for event in here.of(events.Corrupted)] == [(None, ["b"])] * 3


def test_with_a_checkpoint_all_return_to_it_and_without_one_the_odd_one_takes_the_state_over() -> None:
    for saves in (True, False):
        here = house(save_every=1 if saves else None)
        work = leased(answer(here, checked(here), dict.fromkeys(range(3), ALIKE)))
        if saves:
            here.say((0, 0), Kept(1, "x", 1, 0.0, 0.0))
        for member, lease in work.items():
            here.say(member, Vote(lease.unit, [_did()], 0.5))
        work = {member: here.take(member, Verdict).work for member in work}
        work = leased(answer(here, work, {0: ALIKE, 1: ODD, 2: ALIKE}))
        verdicts = answer(here, work, {0: ALIKE, 1: ODD, 2: ALIKE})
        (event,) = here.of(events.Corrupted)
        assert (event.step, event.replica, event.rank, event.host, event.since) == (2, 1, 0, "host", 1)
        if saves:
            assert {(verdict.decision, verdict.to_step) for verdict in verdicts.values()} == {("rollback", 1)}
            assert event.repaired == "rolled back"
            continue
        assert [(lease.check, lease.new) for lease in leased(verdicts).values()] == [("heal", [1])] * 3
        work = leased(answer(here, leased(verdicts), {replica: {} for replica in range(3)}))
        assert answer(here, work, dict.fromkeys(range(3), ALIKE))[1, 0].work.step == 3
        assert event.repaired == "healed"
