"""Who gets how much: shares follow speeds where that gains something, noise moves nothing, and why is told."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from plait import events
from plait.ledger import shares
from plait.ledger.balance import KNOWN, Balance
from plait.ledger.messages import Verdict, Work
from plait.ledger.plan import Agreement
from plait.ledger.sizing import Sizing
from plait.ledger.stragglers import WARM
from tests.ledger.simulation import Simulation, coverage
from tests.ledger.test_serving import UPDATES, served
from tests.ledger.test_state import House, covered, plan, vote
from tests.ledger.test_together import SIZE, elastic

Speed = Callable[[int, int], float]
"""Samples a second of a replica in a step."""


@given(some.integers(1, 12), some.lists(some.floats(0.1, 10), min_size=1, max_size=3))
def test_the_last_to_end_ends_as_early_as_can_be(size: int, speeds: list[float]) -> None:
    def seconds(counts: tuple[int, ...]) -> float:
        return max(count / speed for count, speed in zip(counts, speeds, strict=True))

    dealt = tuple(shares.by_speed(size, speeds))
    least = 1 if size >= len(speeds) else 0
    ways = (way for way in itertools.product(range(least, size + 1), repeat=len(speeds)) if sum(way) == size)
    assert sum(dealt) == size
    assert min(dealt) >= least
    assert seconds(dealt) == pytest.approx(min(map(seconds, ways)))


@given(some.integers(1, 200), some.lists(some.floats(0.01, 100), min_size=1, max_size=9), some.integers(1, 8))
def test_shares_by_speed_are_whole_pieces_but_for_one(size: int, speeds: list[float], piece: int) -> None:
    dealt = shares.by_speed(size, speeds, piece)
    assert sum(dealt) == size
    assert min(dealt) >= 0
    assert sum(count % piece != 0 for count in dealt) <= 1


def drive(house: House, speed: Speed, waits: bool = True) -> list[events.Step]:
    """Whole runs, each replica as fast as it is told to be; a step takes as long as its slowest replica, and the others wait."""
    work: Any = house.join()
    while any(lease is not None and lease.parts for lease in work.values()):
        step = next(lease.step for lease in work.values())
        computed = {member: samples(lease) / speed(member[0], step) for member, lease in work.items()}
        longest = max(computed.values())
        for member, lease in work.items():
            mine = computed[member]
            told = replace(vote(lease), seconds=longest, waited=longest - mine if waits else 0.0, computed=0.9 * mine, data=0.1 * mine)
            house.say(member, told)
        work = house.met({member: house.take(member, Verdict).work for member in work})
    steps: list[events.Step] = house.of(events.Step)
    assert all(covered(step) == list(range(house.ledger.plan.size(step.step))) for step in steps)
    return steps


def samples(lease: Work) -> int:
    return sum(end - first for part in lease.parts for first, end in part.ranges)


def counts(step: events.Step) -> list[int]:
    return [sum(end - first for first, end in ranges) for ranges in step.shares.values()]


def slow_between(begin: int, end: int, by: float = 3.0) -> Speed:
    """Replica 0 is slow for some steps."""
    return lambda replica, step: 10.0 / by if replica == 0 and begin <= step < end else 10.0


def test_static_shares_stay_whoever_is_slow() -> None:
    house = House(plan(size=8, steps=20))
    assert {tuple(counts(step)) for step in drive(house, slow_between(5, 99))} == {(4, 4)}
    assert not house.of(events.Rebalanced)


def test_dynamic_shares_follow_load_that_comes_and_goes() -> None:
    house = House(plan(size=16, steps=60, balance="dynamic"))
    steps = drive(house, slow_between(11, 31))
    assert counts(steps[9]) == [8, 8]
    assert counts(steps[29]) == [4, 12]
    assert counts(steps[59]) == [8, 8]
    slowed = next(step.step for step in steps if counts(step) == [4, 12])
    assert slowed <= 11 + 6
    changes = house.of(events.Rebalanced)
    assert all(event.policy == "dynamic" and sum(event.shares.values()) == pytest.approx(1) for event in changes)
    assert "replica 0 computes" in changes[0].why
    assert len(changes) <= 8


def test_one_step_that_is_held_up_moves_nothing() -> None:
    house = House(plan(size=16, steps=40, balance="dynamic"))
    assert {tuple(counts(step)) for step in drive(house, lambda replica, step: 1.0 if replica == 0 and step % 10 == 0 else 10.0)} == {
        (8, 8)
    }


@given(some.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_noise_moves_nothing(seed: int) -> None:
    chance = random.Random(seed)
    house = House(plan(replicas=3, size=24, steps=40, balance="dynamic"))
    assert {tuple(counts(step)) for step in drive(house, lambda *_: 10 * chance.uniform(0.97, 1.03))} == {(8, 8, 8)}


def test_stated_capacities_are_where_dynamic_shares_begin() -> None:
    house = House(plan(size=8, steps=20, capacity=(3.0, 1.0), balance="dynamic"))
    steps = drive(house, lambda *_: 10.0)
    assert [counts(steps[0]), counts(steps[-1])] == [[6, 2], [4, 4]]


def test_measured_capacities_are_measured_once() -> None:
    house = House(plan(size=16, steps=40, balance="measured"))
    steps = drive(house, lambda replica, step: (30.0 if replica else 10.0) if step < 20 else 10.0)
    assert [tuple(counts(step)) for step in steps] == [(8, 8)] * (WARM + KNOWN) + [(4, 12)] * (40 - WARM - KNOWN)
    (event,) = house.of(events.Rebalanced)
    assert (event.step, event.policy, event.shares) == (WARM + KNOWN, "static", {"0": 0.25, "1": 0.75})
    assert "measured over 3 steps" in event.why


def test_auto_leaves_shares_as_stated_until_someone_is_waited_for_and_then_returns_to_them() -> None:
    house = House(plan(size=16, steps=60, balance="auto", micro_batch=4))
    steps = drive(house, slow_between(11, 31))
    assert [counts(steps[9]), counts(steps[29]), counts(steps[59])] == [[8, 8], [4, 12], [8, 8]]
    changes = house.of(events.Rebalanced)
    assert [changes[0].policy, changes[-1].policy] == ["dynamic", "static"]
    assert "of a step" in changes[0].why
    assert "as stated cost" in changes[-1].why


def test_auto_does_nothing_about_a_slowness_that_nobody_waits_for() -> None:
    """Where the sum takes longer than any replica's passes, other shares gain nothing."""
    house = House(plan(size=16, steps=30, balance="auto"))
    drive(house, slow_between(5, 99), waits=False)
    assert not house.of(events.Rebalanced)


def test_auto_has_pieces_as_large_as_they_may_be_and_splits_them_where_whole_ones_would_be_waited_for() -> None:
    whole = House(plan(size=32, steps=30, balance="auto", micro_batch=4))
    drive(whole, lambda replica, _: 10.0 if replica else 30.0)
    assert (whole.of(events.Rebalanced)[-1].piece, counts(whole.of(events.Step)[-1])) == (4, [24, 8])
    split = House(plan(size=16, steps=30, balance="auto", micro_batch=8))
    drive(split, lambda replica, _: 6.0 if replica else 10.0)
    assert (split.of(events.Rebalanced)[-1].piece, counts(split.of(events.Step)[-1])) == (2, [10, 6])


def test_compiled_replicas_get_whole_micro_batches() -> None:
    house = House(plan(size=16, steps=30, balance="dynamic", micro_batch=4, grain=4))
    assert counts(drive(house, lambda replica, _: 10.0 if replica else 18.0)[-1]) == [12, 4]


def test_a_spread_replica_is_as_fast_as_its_slowest_rank() -> None:
    house = House(plan(replicas=2, ranks=2, size=16, steps=20, balance="dynamic"))
    work: Any = house.join()
    for _ in range(20):
        for member, lease in work.items():
            seconds = samples(lease) * (0.3 if member == (1, 1) else 0.1)
            house.say(member, replace(vote(lease), seconds=seconds, computed=seconds))
        work = {member: house.take(member, Verdict).work for member in work}
    assert counts(house.of(events.Step)[-1]) == [12, 4]


def test_rounds_are_dealt_as_stated_whatever_speeds_were_before() -> None:
    phases = (Agreement(until=15), Agreement("local_sgd", "round", every=2))
    house = House(plan(size=8, steps=25, balance="dynamic", agreements=phases))
    steps = drive(house, slow_between(1, 99))
    assert [counts(steps[14]), counts(steps[15])] == [[2, 6], [4, 4]]


def test_a_straggler_is_told_what_was_done_about_it() -> None:
    for policy, action in (("dynamic", "its share of a step is 25%"), ("static", 'nothing: balance.policy = "static"')):
        house = House(plan(size=16, steps=40, balance=policy))
        drive(house, slow_between(1, 99))
        told = house.of(events.Straggler)
        assert {(event.replica, event.action) for event in told} == {(0, action)}
        assert [event.phase for event in told] == ["computing", "data"]


@settings(max_examples=60, deadline=None)
@given(
    some.sampled_from(["measured", "dynamic", "auto"]),
    some.integers(2, 4),
    some.integers(1, 2),
    some.integers(0, 5),
    some.integers(0, 1),
    some.integers(0, 10**9),
)
def test_whoever_dies_or_comes_and_however_fast_each_sample_counts_once(
    policy: str, replicas: int, ranks: int, kills: int, late: int, seed: int
) -> None:
    settings = {"ranks": ranks, "beginning": replicas - late, "balance": policy, "micro_batch": 2, "steps": 16, "evaluate_every": 5}
    simulation = Simulation(elastic(replicas=replicas, **settings), seed, kills, uneven=True)
    simulation.run()
    if simulation.ledger.failure is None:
        assert coverage(simulation.recorded) == [list(range(SIZE))] * 16
    else:
        assert "lost 3 times in a row" in simulation.ledger.failure


# --- pieces that are leased one by one ---------------------------------------------------------------------------


def sized(policy: Any, speeds: list[float], usual: int, size: int, pushing: float = 0.0, micro_batch: int = 2) -> tuple[Sizing, list]:
    """After some steps at such speeds, with what was chosen in them."""
    balance = Balance(policy, [1.0] * len(speeds))
    sizing = Sizing(balance, usual, micro_batch)
    chosen = []
    for _ in range(12):
        for replica, speed in enumerate(speeds):
            balance.observe(replica, 10, 10 / speed)
        chosen += [sizing.choose(range(len(speeds)), size, pushing)]
    return sizing, [choice for choice in chosen if choice]


def length_of_step(sizing: Sizing, speeds: list[float], size: int) -> float:
    """Seconds until the last piece of a step is done: who is free takes the next."""
    left, free = size, [(0.0, replica) for replica in range(len(speeds))]
    while left:
        now, replica = heapq.heappop(free)
        out = sum(max(0.0, until - now) * speeds[other] for until, other in free)
        taken = min(left, sizing.size(replica, range(len(speeds)), left, out))
        left -= taken
        heapq.heappush(free, (now + taken / speeds[replica], replica))
    return max(free)[0]


def test_pieces_are_split_for_who_is_slow_and_merged_for_who_is_quick() -> None:
    speeds = [3.0, 1.0]
    static, nothing = sized("static", speeds, 8, 24)
    dynamic, (choice,) = sized("dynamic", speeds, 8, 24)
    assert not nothing
    assert [dynamic.size(replica, [0, 1], 24, 0) for replica in (0, 1)] == [12, 4]
    assert (choice.shares, choice.piece) == ({0: 0.75, 1: 0.25}, 8)
    assert "3 times as many" in choice.why
    assert length_of_step(static, speeds, 24) == 8.0
    assert length_of_step(dynamic, speeds, 24) == 6.0


def test_nobody_takes_more_than_lets_it_end_with_the_others() -> None:
    dynamic, _ = sized("dynamic", [1.0, 1.0], 8, 24)
    assert dynamic.size(0, [0, 1], 24, 0) == 8
    assert dynamic.size(0, [0, 1], 6, 2) == 4
    assert dynamic.size(0, [0, 1], 1, 0) == 1


@pytest.mark.parametrize(("pushing", "piece"), [(0.0, 2), (0.01, 6), (10.0, 16)])
def test_auto_weighs_what_a_push_costs_against_the_wait_for_the_last(pushing: float, piece: int) -> None:
    _, chosen = sized("auto", [100.0, 100.0], 4, 32, pushing)
    assert chosen[-1].piece == piece
    assert f"a push costs {1e3 * pushing:.3g} ms" in chosen[-1].why


def test_equal_speeds_and_a_good_size_change_nothing() -> None:
    assert not sized("auto", [100.0, 104.0], 6, 32, 0.01)[1]


@settings(max_examples=60, deadline=None)
@given(
    some.sampled_from(["dynamic", "auto"]),
    some.integers(1, 4),
    some.integers(1, 2),
    some.integers(1, 4),
    some.integers(0, 5),
    some.integers(0, 10**9),
)
def test_pieces_of_any_size_lose_nothing_and_count_nothing_twice(
    policy: str, replicas: int, ranks: int, piece: int, kills: int, seed: int
) -> None:
    synchronous = replace(UPDATES["synchronous"], piece=piece)
    simulation = Simulation(
        served("synchronous", replicas, ranks, steps=14, agreements=(synchronous,), balance=policy), seed, kills, uneven=True
    )
    simulation.run()
    if simulation.ledger.failure is None:
        assert coverage(simulation.recorded) == [list(range(SIZE))] * 14
    else:
        assert "lost 3 times in a row" in simulation.ledger.failure
