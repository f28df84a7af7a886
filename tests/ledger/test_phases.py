"""Any phases after each other, whoever dies whenever: nothing is lost, nothing counts twice, and every run ends."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from plait import events
from plait.ledger.plan import Agreement
from tests.ledger.simulation import Simulation
from tests.ledger.test_serving import UPDATES
from tests.ledger.test_together import assert_all_counted, elastic

KINDS = [Agreement(), *(Agreement("local_sgd", "round", every=every) for every in (1, 2, 3)), *UPDATES.values()]


@some.composite
def phases(draw: some.DrawFn) -> tuple[Agreement, ...]:
    lengths = draw(some.lists(some.integers(1, 3), min_size=1, max_size=4))
    ends = [*(sum(lengths[: place + 1]) for place in range(len(lengths))), None]
    return tuple(Agreement(**{**draw(some.sampled_from(KINDS)).__dict__, "until": end}) for end in ends)


CASES = (
    phases(),
    some.integers(1, 3),
    some.integers(1, 2),
    some.integers(1, 2),
    some.sampled_from([None, 1, 2]),
    some.sampled_from([None, 1, 3]),
    some.integers(0, 5),
    some.integers(0, 10**9),
)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(*CASES)
def test_any_phases_lose_nothing_whoever_dies(agreements, replicas, ranks, servers, check_every, save_every, kills, seed):
    run(agreements, replicas, ranks, servers, check_every, save_every, kills, seed)


@pytest.mark.slow
@settings(max_examples=4000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(*CASES)
def test_any_phases_lose_nothing_whoever_dies_many_times(agreements, replicas, ranks, servers, check_every, save_every, kills, seed):
    run(agreements, replicas, ranks, servers, check_every, save_every, kills, seed)


def test_a_server_that_is_lost_when_nobody_needs_it_any_more_does_not_hold_up_the_end():
    local = Agreement("local_sgd", "round", every=2)
    for seed in range(60):
        run((Agreement(**{**UPDATES["bounded"].__dict__, "until": 1}), local), 1, 1, 2, None, None, 2, seed)


def run(agreements, replicas, ranks, servers, check_every, save_every, kills, seed):
    served = servers if any(each.served for each in agreements) else 0
    how = {"servers": served, "ranks": ranks, "check_every": check_every, "save_every": save_every}
    simulation = Simulation(elastic(replicas=replicas, agreements=agreements, **how), seed, kills)
    simulation.run()
    assert all(event.tokens == 5 * ranks for event in simulation.recorded if isinstance(event, events.Evaluated))
    if simulation.ledger.failure is None:
        assert_all_counted(simulation)
    else:
        assert "lost 3 times in a row" in simulation.ledger.failure
