"""The ledger as a pure machine: whatever the order of messages, each sample of a committed unit counts exactly once."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plait import events
from plait.ledger.messages import (
    SERVING,
    Asked,
    Closed,
    Did,
    Failed,
    Join,
    Kept,
    Left,
    Link,
    Measured,
    Member,
    Message,
    Outbox,
    Verdict,
    Vote,
    Work,
)
from plait.ledger.plan import Agreement, Plan
from plait.ledger.state import Ledger

HELLO = Join("host", 1, "cpu", 10)


def plan(replicas: int = 2, steps: int = 3, size: int = 8, **changes: object) -> Plan:
    values: dict = {
        "replicas": replicas,
        "ranks": 1,
        "steps": steps,
        "size": lambda step: size,
        "targets": lambda step: size * 4,
        "capacity": (1.0,) * replicas,
        "save_every": None,
        "evaluate_every": None,
        "evaluation_size": 0,
        "nonfinite_limit": 2,
        "version": "0",
        "flops_per_token": 1.0,
        "peak_flops": lambda device: None,
    }
    return Plan(**{**values, **changes})


def vote(work: Work, loss: float = 1.0, norm: float = 4.0) -> Vote:
    return Vote(work.unit, [Did(loss, norm, 0.1) for _ in work.parts], 0.5)


class House:
    """A ledger with members that can be driven one message at a time."""

    def __init__(self, plan: Plan, position: dict | None = None) -> None:
        self.recorded: list[events.Event] = []
        self.ledger = Ledger(plan, self.recorded.append, lambda: 0.0, position)
        self.inbox: dict[Member, list[Message]] = {member: [] for member in self.ledger.expected}

    def say(self, member: Member, message: Message) -> None:
        self.deliver(self.ledger.handle(member, message))

    def deliver(self, outbox: Outbox) -> None:
        for member, message in outbox:
            self.inbox[member].append(message)

    def join(self) -> dict[Member, Work | None]:
        for member in self.ledger.expected:
            self.say(member, HELLO)
        return self.met({member: self.take(member, Verdict).work for member in self.ledger.plan.workers})

    def met(self, work: dict[Member, Work | None]) -> dict[Member, Work | None]:
        """What there is to do once all have answered leases of nothing."""
        while any(lease is not None and not lease.parts for lease in work.values()):
            for member, lease in work.items():
                if lease is not None:
                    self.say(member, Vote(lease.unit, [], 0.0))
            if not all(self.inbox[member] for member, lease in work.items() if lease is not None):
                break
            work = {member: self.take(member, Verdict).work if lease is not None else None for member, lease in work.items()}
        return work

    def take(self, member: Member, kind: type) -> Message:
        message = self.inbox[member].pop(0)
        assert isinstance(message, kind), message
        return message

    def of(self, kind: type) -> list:
        return [event for event in self.recorded if isinstance(event, kind)]

    def round(self, work: dict[Member, Work | None], **how: float) -> tuple[dict[Member, Work | None], Verdict]:
        for member, lease in work.items():
            self.say(member, vote(lease, **how))
        verdicts = {member: self.take(member, Verdict) for member in work}
        return self.met({member: verdict.work for member, verdict in verdicts.items()}), verdicts[0, 0]


def covered(step: events.Step) -> list[int]:
    return sorted(position for ranges in step.shares.values() for first, end in ranges for position in range(first, end))


def test_no_verdict_before_the_last_vote() -> None:
    house = House(plan())
    work = house.join()
    house.say((0, 0), vote(work[0, 0]))
    assert not house.inbox[0, 0]
    assert not house.of(events.Step)
    house.say((1, 0), vote(work[1, 0]))
    assert house.of(events.Step)[0].step == 1


def test_loss_is_the_sum_over_replicas_divided_once() -> None:
    house = House(plan())
    work = house.join()
    house.say((0, 0), vote(work[0, 0], loss=3.0))
    house.say((1, 0), vote(work[1, 0], loss=5.0))
    assert house.of(events.Step)[0].loss == 8.0 / 32


def test_grad_norm_sums_over_the_ranks_of_one_replica() -> None:
    house = House(plan(replicas=2, ranks=2))
    work = house.join()
    house.round(work, norm=8.0)
    assert house.of(events.Step)[0].grad_norm == 4.0


def test_loads_are_summed_over_all_ranks_and_sent_with_a_commit_alone() -> None:
    """Two stages of a pipeline, of which each tells of its own layer; the third layer is nobody's mixture."""
    house = House(plan(replicas=2, ranks=2, steps=9))
    loads = {(0, 0): [[], [1, 2]], (0, 1): [[], [], [], [5, 0]], (1, 0): [[], [10, 20]], (1, 1): [[], [], [], [50, 0]]}
    work = house.join()
    for loss in (1.0, math.nan):
        for member, lease in work.items():
            house.say(member, replace(vote(lease), did=[Did(loss, 4.0, 0.1, loads[member])]))
        verdicts = [house.take(member, Verdict) for member in work]
        work = {member: verdict.work for member, verdict in zip(work, verdicts, strict=True)}
        assert {str(verdict.load) for verdict in verdicts} == {str([[], [11, 22], [], [55, 0]] if loss == 1.0 else [])}
    assert [step.load for step in house.of(events.Step)] == [[[], [11, 22], [], [55, 0]]] * 2


def test_a_run_ends_when_all_have_left() -> None:
    house = House(plan(steps=1))
    work, verdict = house.round(house.join())
    assert verdict.save
    assert all(lease.last for lease in work.values())
    assert not house.inbox[1, 0], "it went before the checkpoint stood"
    house.say((0, 0), Kept(1, "step-1", 10, 0.1, 0.0))
    assert [house.take((replica, 0), Verdict).work for replica in (0, 1)] == [None, None]
    house.say((0, 0), Left())
    assert not house.ledger.ended
    house.say((1, 0), Left())
    assert house.ledger.ended
    assert isinstance(house.recorded[-1], events.Finished)


def test_nothing_finite_is_skipped_together_and_rolled_back_in_the_end() -> None:
    house = House(plan(steps=9, save_every=1))
    work, _ = house.round(house.join())
    house.say((0, 0), Kept(1, "x", 1, 0.0, 0.0))
    work, first = house.round(work, loss=math.nan)
    work, second = house.round(work, norm=math.inf)
    assert (first.decision, second.decision, second.to_step) == ("skip", "rollback", 1)
    assert [step.skipped for step in house.of(events.Step)] == [False, True, True]
    assert house.of(events.RolledBack)[0].to_step == 1
    assert work[0, 0].step == 2
    assert [step.step for step in events.committed(house.recorded)] == [1]


def test_the_same_trouble_after_a_rollback_ends_the_run() -> None:
    house = House(plan(steps=9))
    work = house.join()
    for _ in range(2):
        work, _ = house.round(work, loss=math.nan)
    work, _ = house.round(work, loss=math.nan)
    house.say((0, 0), vote(work[0, 0], loss=math.nan))
    house.say((1, 0), vote(work[1, 0], loss=math.nan))
    assert "not finite" in house.ledger.failure
    house.take((0, 0), Closed)


def test_stop_saves_at_the_next_verdict() -> None:
    house = House(plan(steps=9))
    work = house.join()
    house.ledger.handle((SERVING, 0), Asked("stop"))
    work, verdict = house.round(work)
    assert verdict.save
    house.say((0, 0), Kept(1, "step-1", 10, 0.1, 0.0))
    assert [house.take((replica, 0), Verdict).work for replica in (0, 1)] == [None, None]
    for member in work:
        house.say(member, Left())
    assert isinstance(house.recorded[-1], events.Stopped)


def test_save_goes_on() -> None:
    house = House(plan(steps=9))
    house.ledger.handle((0, 0), Asked("save"))
    work, verdict = house.round(house.join())
    _, following = house.round(work)
    assert verdict.save
    assert not following.save


def test_a_lost_member_closes_the_run_and_is_named() -> None:
    house = House(plan())
    house.join()
    house.say((1, 0), Failed("Traceback ..."))
    assert house.take((0, 0), Closed).why == "replica 1 rank 0 failed"
    assert house.of(events.Lost)[0].replica == 1


def test_a_complaint_of_a_peer_does_not_name_the_complainer() -> None:
    house = House(plan())
    house.join()
    house.say((0, 0), Failed("connection closed", "peer"))
    assert house.ledger.failure is None
    house.deliver(house.ledger.lose((1, 0), "killed"))
    assert house.of(events.Lost) == [events.Lost(0.0, 1, 0, "killed")]


def test_an_evaluation_is_summed_when_all_parts_are_in() -> None:
    house = House(plan(evaluate_every=1, evaluation_size=5))
    _, verdict = house.round(house.join())
    assert verdict.evaluate == [[0, 3]]
    house.say((0, 0), Measured(1, verdict.unit, "validation", 6.0, 1, 3))
    assert not house.of(events.Evaluated)
    house.say((1, 0), Measured(1, verdict.unit, "validation", 4.0, 1, 2))
    assert (house.of(events.Evaluated)[0].loss, house.of(events.Evaluated)[0].accuracy) == (2.0, 0.4)


def test_a_vote_on_another_unit_is_turned_away() -> None:
    house = House(plan())
    work = house.join()
    house.say((0, 0), Vote(work[0, 0].unit + 1, [Did(1.0, 1.0, 0.1)], 0.1))
    house.take((0, 0), Closed)
    assert not house.of(events.Step)


@given(st.integers(1, 5), st.integers(1, 20), st.data())
def test_every_sample_of_a_step_is_shared_out_once(replicas: int, size: int, data: st.DataObject) -> None:
    capacity = data.draw(st.lists(st.floats(0, 10), min_size=replicas, max_size=replicas).filter(lambda values: sum(values) > 0.1))
    house = House(plan(replicas, steps=2, size=size, capacity=tuple(capacity)))
    work = house.join()
    while not work[0, 0].last:
        work, _ = house.round(work)
    assert [covered(step) for step in house.of(events.Step)] == [list(range(size))] * 2


def test_a_round_is_one_unit_of_several_steps_each_recorded() -> None:
    house = House(plan(steps=5, agreements=(Agreement("diloco", "round", every=3),)))
    work = house.join()
    assert [(part.step, part.ranges, part.whole) for part in work[1, 0].parts] == [(step, [[4, 8]], [[4, 8]]) for step in (1, 2, 3)]
    work, verdict = house.round(work)
    assert (verdict.step, verdict.decision, verdict.save) == (3, "commit", False)
    assert [part.step for part in work[0, 0].parts] == [4, 5]
    house.round(work)
    assert [step.step for step in house.of(events.Step)] == [1, 2, 3, 4, 5]
    assert {step.seconds for step in house.of(events.Step)[:3]} == {0.5 / 3}
    assert all(step.sync == "diloco" and covered(step) == list(range(8)) for step in house.of(events.Step))


def test_what_is_due_within_a_round_is_done_at_its_end() -> None:
    house = House(plan(steps=9, save_every=2, agreements=(Agreement("diloco", "round", every=3),)))
    _, verdict = house.round(house.join())
    assert verdict.save
    assert verdict.position == {"step": 3}


def test_a_phase_ends_at_its_step_or_when_the_last_ten_say_so_and_stays_over_across_a_resume() -> None:
    agreements = (
        Agreement("allreduce", until=2),
        Agreement("local_sgd", "round", every=4, until_loss=2.0),
        Agreement("allreduce", until_waiting=0.5),
        Agreement("diloco", "round", every=2),
    )
    run = plan(replicas=1, steps=40, targets=lambda step: 1, save_every=1, agreements=agreements)
    history: list[events.Event] = []
    position, resumed = None, False
    while position is None or position["step"] < 40:
        house = House(run, position)
        work = house.join()
        while not work[0, 0].last and (resumed or house.ledger.committed < 9):  # in the middle of a phase, and of its condition
            house.say((0, 0), replace(vote(work[0, 0], loss=1.5 if house.ledger.committed >= 10 else 2.5), waited=0.3))
            verdict = house.take((0, 0), Verdict)
            work, position = {(0, 0): verdict.work}, verdict.position
        history += house.recorded
        resumed = True
    switched = [(event.step, event.sync) for event in history if isinstance(event, events.Switched)]
    assert switched == [(2, "local_sgd"), (18, "allreduce"), (28, "diloco")]


def test_buckets_are_resized_when_the_link_is_another_than_was_thought() -> None:
    house = House(plan(steps=9, bucket_bytes=2**26))
    house.ledger.handle((0, 0), Link(1e-4, 1e6, "gloo", False))
    _, verdict = house.round(house.join())
    assert verdict.bucket_bytes == 2**18
    assert house.of(events.Retuned)[0].bucket_mib == 0.25


@pytest.mark.parametrize("message", [Join("h", 1, "cpu", 1), Vote(1, [Did(1.0, 1.0, 1.0)], 1.0)])
def test_strangers_are_turned_away(message: Message) -> None:
    ledger = House(plan()).ledger
    assert isinstance(ledger.handle((7, 0), message)[0][1], Closed)


def test_the_bubble_is_what_the_ranks_of_a_pipeline_did_not_compute():
    house = House(plan(replicas=1, ranks=2))
    work = house.join()
    for rank, (busy, under_way) in enumerate([(3.0, 4.0), (2.0, 3.5)]):
        house.say((0, rank), replace(vote(work[0, rank]), busy=busy, under_way=under_way))
    assert house.of(events.Step)[0].bubble == {"0": 1 - 5.0 / 8.0}
