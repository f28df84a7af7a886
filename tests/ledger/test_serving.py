"""Parameter servers as the ledger sees them: in whatever order messages come, whoever dies, nothing is lost and nothing counts twice."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from plait import events
from plait.ledger.plan import Agreement, Plan
from tests.ledger.simulation import Simulation, coverage
from tests.ledger.test_state import plan

SIZE = 6
UPDATES = {
    "synchronous": Agreement("synchronous", "step", served=True, piece=2),
    "bounded": Agreement("bounded", "piece", served=True, piece=2, staleness=2),
    "asynchronous": Agreement("asynchronous", "piece", served=True, piece=2, damped=True),
}


def served(update: str, replicas: int = 3, ranks: int = 1, servers: int = 2, steps: int = 6, **changes: object) -> Plan:
    values = {"size": SIZE, "steps": steps, "ranks": ranks, "servers": servers, "save_every": 2, "agreements": (UPDATES[update],)}
    return plan(replicas, **{**values, **changes})


@pytest.mark.parametrize("update", sorted(UPDATES))
def test_whole_runs_cover_each_step_once(update: str) -> None:
    simulation = Simulation(served(update), seed=1)
    simulation.run()
    assert coverage(simulation.recorded) == [list(range(SIZE))] * 6


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    some.sampled_from(sorted(UPDATES)),
    some.integers(1, 3),
    some.integers(1, 2),
    some.integers(1, 3),
    some.integers(0, 5),
    some.integers(0, 10**9),
)
def test_deaths_at_any_point_lose_nothing_and_count_nothing_twice(
    update: str, replicas: int, ranks: int, servers: int, kills: int, seed: int
) -> None:
    simulation = Simulation(served(update, replicas, ranks, servers), seed, kills)
    simulation.run()
    if simulation.ledger.failure is None:
        assert coverage(simulation.recorded) == [list(range(SIZE))] * 6
        late = [int(each) for step in events.committed(simulation.recorded) for each in step.staleness]
        assert update != "bounded" or max(late, default=0) <= 2
    else:
        assert "lost 3 times in a row" in simulation.ledger.failure


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(some.sampled_from(sorted(UPDATES)), some.integers(0, 10**9), some.data())
def test_from_any_position_that_was_saved_the_rest_is_covered(update: str, seed: int, data: some.DataObject) -> None:
    first = Simulation(served(update, save_every=1), seed)
    first.run()
    position = data.draw(some.sampled_from(first.positions))
    again = Simulation(served(update, replicas=2), seed + 1, position=position)
    again.run()
    assert coverage([*_until(first.recorded, position["step"]), *again.recorded]) == [list(range(SIZE))] * 6


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(some.permutations(sorted(UPDATES)), some.integers(0, 3), some.integers(0, 10**9))
def test_phases_hand_over_whoever_dies(order: list[str], kills: int, seed: int) -> None:
    agreements = [Agreement(**{**UPDATES[update].__dict__, "until": 2 * (place + 1)}) for place, update in enumerate(order)]
    simulation = Simulation(served("synchronous", steps=8, agreements=(*agreements, UPDATES["synchronous"])), seed, kills)
    simulation.run()
    if simulation.ledger.failure is None:
        assert coverage(simulation.recorded) == [list(range(SIZE))] * 8


def test_a_bounded_run_uses_the_staleness_that_it_may() -> None:
    late: set[int] = set()
    for seed in range(20):
        simulation = Simulation(served("bounded", replicas=3), seed)
        simulation.run()
        late |= {int(each) for step in events.committed(simulation.recorded) for each in step.staleness}
    assert max(late) == 2


@pytest.mark.slow
@settings(max_examples=1500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(some.sampled_from(sorted(UPDATES)), some.integers(1, 3), some.integers(1, 3), some.integers(0, 6), some.integers(0, 10**9))
def test_deaths_at_any_point_many_times(update: str, replicas: int, servers: int, kills: int, seed: int) -> None:
    simulation = Simulation(served(update, replicas, servers=servers), seed, kills)
    simulation.run()
    if simulation.ledger.failure is None:
        assert coverage(simulation.recorded) == [list(range(SIZE))] * 6


def _until(recorded: list[events.Event], step: int) -> list[events.Event]:
    """What a journal holds up to a step, as if the run had been cut off behind it."""
    return [event for event in recorded if not isinstance(event, events.Step) or event.step <= step]
