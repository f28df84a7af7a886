"""Spikes: found against what was usual, left out with their data, and the run goes on as one that had left it out from the beginning."""

from __future__ import annotations

import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from plait import events
from plait.data.skipping import Skipped
from plait.ledger.messages import Did, Verdict, Vote
from plait.ledger.plan import Agreement, Plan, SpikeRules
from plait.ledger.spikes import LEAST, WINDOW, Spikes
from tests.ledger.simulation import Simulation, coverage
from tests.ledger.test_serving import UPDATES
from tests.ledger.test_state import House
from tests.ledger.test_together import SIZE, STEPS, UNITS, elastic

USUAL = {"step": 0, "spikes": {"loss": [1.0] * LEAST}}
"""A run that has seen enough to judge."""


class Order:
    """A run's order as a ledger's plan sees it."""

    def __init__(self) -> None:
        self.skipped: events.Ranges = []

    def samples(self, step: int) -> events.Ranges:
        return Skipped(self.skipped).spans((step - 1) * SIZE, step * SIZE)

    def leave_out(self, skipped: events.Ranges) -> None:
        self.skipped = skipped


def spiking(order: Order, agreement: Agreement, rules: SpikeRules, **changes: object) -> Plan:
    settings = {"samples": order.samples, "leave_out": order.leave_out, "spikes": rules, "targets": lambda step: SIZE * 4}
    return elastic(agreements=(agreement,), evaluate_every=None, **{**settings, **changes})


def told(values: list[float], **rules: float) -> list[int]:
    """Places of the values that are spikes."""
    spikes = Spikes(SpikeRules(**{"loss": 5.0, **rules}))
    return [place for place, value in enumerate(values) if spikes.judge(place, loss=value, grad_norm=1.0)]


def test_a_value_far_above_the_median_is_a_spike_and_no_other() -> None:
    wave = [3.0 + 0.1 * math.sin(place) for place in range(LEAST + 20)]
    assert told(wave) == []
    assert told([*wave, 9.0, *wave]) == [len(wave)]
    assert told([*wave, 0.1, *wave]) == []


def test_before_enough_is_known_nothing_is() -> None:
    assert told([1.0] * (LEAST - 1) + [9.0]) == []
    assert told([1.0] * LEAST + [9.0]) == [LEAST]


def test_what_hardly_moves_does_not_spike_at_each_breath() -> None:
    assert told([1.0] * LEAST + [1.04]) == []
    assert told([1.0] * LEAST + [1.06]) == [LEAST]


def test_spikes_do_not_become_usual_and_a_slow_rise_does() -> None:
    assert told([*[1.0] * LEAST, *[9.0] * WINDOW]) == list(range(LEAST, LEAST + WINDOW))
    assert told([1.0 + 0.005 * place for place in range(300)]) == []


def test_norms_are_judged_by_their_own_bound() -> None:
    spikes = Spikes(SpikeRules(grad_norm=5.0))
    for place in range(LEAST):
        assert not spikes.judge(place, loss=1.0, grad_norm=2.0)
    assert spikes.judge(LEAST, loss=1.0, grad_norm=4.0)
    assert str(spikes.taken()) == f"grad_norm 4 of step {LEAST} is beyond 2.1, usual is 2"
    assert not spikes.judge(LEAST, loss=50.0, grad_norm=2.0)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    some.sampled_from([*UNITS, "synchronous"]),
    some.integers(1, 3),
    some.integers(1, 2),
    some.sets(some.integers(0, SIZE * STEPS + 10), max_size=4),
    some.integers(1, 3),
    some.integers(0, 3),
    some.sampled_from([None, 2]),
    some.sampled_from([None, 3]),
    some.integers(0, 10**9),
)
def test_poisoned_samples_are_left_out_and_all_others_used_once(
    unit: str,
    replicas: int,
    ranks: int,
    poison: set[int],
    skips: int,
    kills: int,
    save_every: int | None,
    check_every: int | None,
    seed: int,
) -> None:
    order, agreement = Order(), UNITS.get(unit) or UPDATES[unit]
    servers = 1 if unit == "synchronous" else 0
    changes = {"replicas": replicas, "ranks": ranks, "servers": servers, "save_every": save_every, "check_every": check_every}
    plan = spiking(order, agreement, SpikeRules(5.0, None, skips), **changes)
    simulation = Simulation(plan, seed, kills, USUAL)
    simulation.poison = poison
    simulation.run()
    if simulation.ledger.failure is not None:
        assert "for spikes" in simulation.ledger.failure or "times in a row" in simulation.ledger.failure
        return
    assert coverage(simulation.recorded) == [list(range(SIZE))] * STEPS
    used = [sample for step in events.committed(simulation.recorded) for first, end in step.samples for sample in range(first, end)]
    assert not poison & set(used)
    left_out = {sample for first, end in order.skipped for sample in range(first, end)}
    assert sorted(used) == [sample for sample in range(max(used) + 1) if sample not in left_out], "a sample was lost, or used twice"
    spiked = [event for event in simulation.recorded if isinstance(event, events.Spiked)]
    assert (spiked[-1].skipped if spiked else []) == order.skipped
    assert bool(spiked) == bool(poison & set(range(max(used) + 1)))


def test_a_ledger_that_goes_on_leaves_out_what_the_one_before_did() -> None:
    order = Order()
    plan = spiking(order, UNITS["allreduce"], SpikeRules(5.0), save_every=1)
    first = Simulation(plan, 1, 0, USUAL)
    first.poison = {20}
    first.run()
    position = next(position for position in first.positions if position["step"] == 5)
    assert position["skipped"] == [[18, 24]]
    again = Simulation(plan, 2, 0, position)
    again.run()
    both = [events.committed(simulation.recorded) for simulation in (first, again)]
    assert [step.samples for step in both[1]] == [step.samples for step in both[0] if step.step > 5]


@pytest.mark.parametrize("corrupted", [False, True])
def test_before_data_is_blamed_replicas_are_compared(corrupted: bool) -> None:
    order = Order()
    house = House(spiking(order, UNITS["allreduce"], SpikeRules(5.0), replicas=3, save_every=None, check_every=100), USUAL)
    work = house.join()
    for member, lease in work.items():
        house.say(member, Vote(lease.unit, [Did(1e6, 1.0, 0.1)], 0.5))
    verdicts = {member: house.take(member, Verdict) for member in work}
    assert {verdict.decision for verdict in verdicts.values()} == {"skip"}
    for check in ("whole", "each") if corrupted else ("whole",):
        assert {verdict.work.check for verdict in verdicts.values()} == {check}
        for member, verdict in verdicts.items():
            odd = corrupted and member == (1, 0)
            house.say(member, Vote(verdict.work.unit, [], 0.0, fingerprints={"x": "odd" if odd else "even"}))
        verdicts = {member: house.take(member, Verdict) for member in work}
    assert {(verdict.decision, verdict.to_step) for verdict in verdicts.values()} == {("rollback", 0)}
    assert order.skipped == ([] if corrupted else [[0, SIZE]])
    assert len(house.of(events.Corrupted)) == corrupted
    assert len(house.of(events.Spiked)) == (not corrupted)
    assert len(house.of(events.RolledBack)) == 1


def test_too_many_spikes_after_one_checkpoint_end_the_run() -> None:
    order = Order()
    simulation = Simulation(spiking(order, UNITS["allreduce"], SpikeRules(5.0, limit=2), save_every=None), 1, 0, USUAL)
    simulation.poison = set(range(SIZE, SIZE * STEPS * 4))
    simulation.run()
    assert "returned to step 0 2 times for spikes" in (simulation.ledger.failure or "")
    assert len([event for event in simulation.recorded if isinstance(event, events.Spiked)]) == 2


@pytest.mark.parametrize("skips", [1, 2, 3])
def test_the_spikes_own_data_and_that_of_steps_before_it_is_left_out(skips: int) -> None:
    order = Order()
    simulation = Simulation(spiking(order, UNITS["allreduce"], SpikeRules(5.0, skips=skips), save_every=3), 1, 0, USUAL)
    simulation.poison = {SIZE * 4}
    simulation.run()
    (spiked,) = [event for event in simulation.recorded if isinstance(event, events.Spiked)]
    first = max(3, 5 - skips)
    assert (spiked.step, spiked.skipped) == (5, [[SIZE * first, SIZE * 5]])
