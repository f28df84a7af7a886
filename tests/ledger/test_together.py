"""Replicas that agree together, as the ledger sees them: whoever dies whenever, the others go on, and each sample counts exactly once."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from plait import events
from plait.ledger.messages import Broken, Failed, Verdict
from plait.ledger.plan import Agreement, Plan
from tests.ledger.simulation import Simulation, coverage
from tests.ledger.test_state import HELLO, House, plan, vote

SIZE = 6
STEPS = 8
UNITS = {
    "allreduce": Agreement(),
    "local_sgd": Agreement("local_sgd", "round", every=3),
}


def elastic(unit: str = "allreduce", replicas: int = 3, **changes: object) -> Plan:
    values = {"size": SIZE, "steps": STEPS, "elastic": True, "save_every": 3, "agreements": (UNITS[unit],)}
    values |= {"evaluate_every": 2, "evaluation_size": 5}
    return plan(replicas, **{**values, **changes})


def assert_all_counted(simulation: Simulation, steps: int = STEPS) -> None:
    assert coverage(simulation.recorded) == [list(range(SIZE))] * steps


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    some.sampled_from(sorted(UNITS)),
    some.integers(1, 4),
    some.integers(1, 2),
    some.integers(0, 6),
    some.integers(1, 3),
    some.integers(0, 1),
    some.integers(0, 10**9),
)
def test_deaths_at_any_point_lose_nothing_and_count_nothing_twice(
    unit: str, replicas: int, ranks: int, kills: int, fewest: int, late: int, seed: int
) -> None:
    fewest, late = min(fewest, replicas), late if replicas > 1 else 0
    beginning = max(fewest, replicas - late)
    simulation = Simulation(elastic(unit, replicas, ranks=ranks, fewest=fewest, beginning=beginning), seed, kills)
    simulation.run()
    if simulation.ledger.failure is None:
        assert_all_counted(simulation)
    else:
        assert "lost 3 times in a row" in simulation.ledger.failure


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(some.integers(1, 3), some.integers(0, 4), some.sampled_from([None, 1, 2]), some.integers(0, 10**9))
def test_phases_hand_over_whoever_dies(servers: int, kills: int, check_every: int | None, seed: int) -> None:
    served = Agreement("synchronous", "step", served=True, piece=2)
    phases = (Agreement(until=2), Agreement("local_sgd", "round", every=2, until=4), Agreement(until=5), served)
    simulation = Simulation(elastic(agreements=phases, servers=servers, evaluate_every=None, check_every=check_every), seed, kills)
    simulation.run()
    if simulation.ledger.failure is None:
        assert_all_counted(simulation)


@settings(max_examples=100, deadline=None)
@given(some.integers(2, 4), some.integers(0, 5), some.integers(0, 10**9))
def test_each_evaluation_is_of_the_whole_split_whoever_dies(replicas: int, kills: int, seed: int) -> None:
    simulation = Simulation(elastic(replicas=replicas), seed, kills)
    simulation.run()
    evaluated = [event for event in simulation.recorded if isinstance(event, events.Evaluated)]
    assert all(event.tokens == 5 for event in evaluated)
    if simulation.ledger.failure is None:
        assert {event.step for event in evaluated} == {2, 4, 6, 8}


def begun(replicas: int = 3, **changes: object) -> tuple[House, dict]:
    house = House(elastic(replicas=replicas, evaluate_every=None, save_every=None, **changes))
    return house, house.join()


def gathered(house: House, members: list) -> dict:
    """What those are leased that heard that their unit is void."""
    void = {member: house.take(member, Verdict) for member in members}
    assert {verdict.decision for verdict in void.values()} == {"void"}
    return house.met({member: verdict.work for member, verdict in void.items()})


def test_a_loss_makes_the_unit_void_and_the_others_do_the_same_step_again() -> None:
    house, work = begun()
    house.say((0, 0), vote(work[0, 0]))
    house.deliver(house.ledger.lose((2, 0), "killed"))
    again = gathered(house, [(0, 0), (1, 0)])
    assert again[0, 0].step == work[0, 0].step
    assert again[0, 0].peers == [0, 1]
    assert sorted(part.ranges[0] for lease in again.values() for part in lease.parts) == [[0, 3], [3, 6]]
    _, verdict = house.round(again)
    assert verdict.decision == "commit"
    assert house.of(events.Step)[0].shares == {"0": [[0, 3]], "1": [[3, 6]]}
    assert house.of(events.Regrouped)[0].replicas == [0, 1]


def test_a_joiner_gets_the_state_in_a_unit_of_which_it_has_no_share_and_then_a_share() -> None:
    house, _ = begun()
    house.deliver(house.ledger.lose((2, 0), "killed"))
    work = gathered(house, [(0, 0), (1, 0)])
    assert house.ledger.take_wanted() == [(2, 0)]
    house.say((2, 0), HELLO)
    assert not house.inbox[2, 0], "it came amid a unit"
    for member, lease in work.items():
        house.say(member, vote(lease))
    members = [(0, 0), (1, 0), (2, 0)]
    work = house.met({member: house.take(member, Verdict).work for member in members})
    assert [work[member].new for member in members] == [[2]] * 3
    assert [part.ranges for part in work[2, 0].parts] == [[]]
    work, _ = house.round(work)
    assert [work[member].new for member in members] == [[]] * 3
    assert all(part.ranges for part in work[2, 0].parts)


def test_below_the_fewest_the_run_waits_and_goes_on_when_it_can() -> None:
    house, _ = begun(replicas=2, fewest=2)
    house.deliver(house.ledger.lose((1, 0), "killed"))
    gathered(house, [(0, 0)])
    assert [(event.replicas, event.fewest) for event in house.of(events.Waiting)] == [(1, 2)]
    house.say((1, 0), HELLO)
    work = house.met({member: house.take(member, Verdict).work for member in [(0, 0), (1, 0)]})
    assert work[0, 0].new == [1]


def test_when_all_are_lost_they_return_to_the_last_checkpoint() -> None:
    house, _ = begun(replicas=2)
    for replica in (0, 1):
        house.deliver(house.ledger.lose((replica, 0), "killed"))
    assert sorted(house.ledger.take_wanted()) == [(0, 0), (1, 0)]
    assert [event.to_step for event in house.of(events.RolledBack)] == [0]


def test_connections_that_break_without_a_death_are_made_again_and_not_for_ever() -> None:
    house, work = begun(replicas=2)
    for _ in range(3):
        for member, lease in work.items():
            house.say(member, Broken(lease.unit, "connection reset"))
        work = gathered(house, list(work))
    for member, lease in work.items():
        house.say(member, Broken(lease.unit, "connection reset"))
    assert "broke 4 times in a row" in house.ledger.failure


@pytest.mark.parametrize("worked", [False, True])
def test_an_error_in_the_first_unit_ends_the_run_and_a_later_one_the_replica(worked: bool) -> None:
    house, work = begun(replicas=2)
    if worked:
        house.round(work)
    house.say((1, 0), Failed("Traceback: a bug"))
    assert (house.ledger.failure is None) == worked


def test_an_error_that_comes_again_and_again_ends_the_run() -> None:
    house, work = begun(replicas=4)
    house.round(work)
    for replica in (1, 2, 3):
        house.say((replica, 0), Failed("Traceback: a bug"))
    assert "a bug" in house.ledger.failure
