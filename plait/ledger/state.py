"""The ledger: who is here, what is leased to whom, what has been committed.

A pure state machine. Messages go in, messages come out, and events are recorded; it knows no process, socket or clock but
those it is handed, so that tests can explore any order of messages. Two kinds of unit:

    step   all replicas hold one unit, the global batch, in shares; it commits when each rank has voted
    piece  each replica holds a micro-batch of its own, committed alone; a step is recorded when its last piece is in
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from plait import events
from plait.events import Event, Load, Ranges
from plait.ledger import shares
from plait.ledger.messages import (
    SERVER,
    Asked,
    Closed,
    Decision,
    Failed,
    Join,
    Kept,
    Lease,
    Left,
    Measured,
    Member,
    Message,
    Unkept,
    Verdict,
    Vote,
    Work,
    name,
)
from plait.ledger.pieces import Pieces
from plait.ledger.plan import Plan

Outbox = list[tuple[Member, Message]]


@dataclass
class Ballot:
    """Votes on one unit."""

    work: dict[int, Work]
    votes: dict[Member, Vote]


class Ledger:
    """Hands out work, decides units, records what counts.

    handle(member, message) returns the messages to send. `record` is told each event. A ledger that goes on from a
    checkpoint gets its `position`. `failure` says why the run ended badly, `mistaken` that a user's mistake was the reason;
    `ended` that there is nothing more to do.
    """

    def __init__(
        self,
        plan: Plan,
        record: Callable[[Event], None],
        clock: Callable[[], float],
        position: dict[str, Any] | None = None,
    ) -> None:
        self.plan = plan
        self.generation = 1
        self.failure: str | None = None
        self.mistaken = False
        self.stopping = False
        self._record = record
        self._clock = clock
        self._committed: int = (position or {"step": 0})["step"]
        self._resumed = position is not None
        self._joined: dict[Member, Join] = {}
        self._left: set[Member] = set()
        self._echoes: list[tuple[Member, str]] = []
        self._units = 0
        self._ballot: Ballot | None = None
        self._measured: dict[tuple[int, str], dict[Member, Measured]] = {}
        self._save_asked = False
        self._in_a_row = 0
        self._kept = self._committed
        self._rolled_back_at: int | None = None
        self._pieces = Pieces(plan, position) if plan.piece else None

    @property
    def committed(self) -> int:
        """The last committed step."""
        return self._committed

    @property
    def ended(self) -> bool:
        return self.failure is not None or self._left == set(self.expected)

    def handle(self, member: Member, message: Message) -> Outbox:
        """Take one message; returns what to send to whom."""
        match message:
            case Join():
                return self._join(member, message)
            case Vote():
                return self._vote(member, message)
            case Measured():
                self._measure(member, message)
            case Kept():
                self._kept = max(self._kept, message.step)
                self._record(events.Saved(self._clock(), message.step, message.path, message.bytes, message.seconds, message.stalled))
            case Unkept():
                self._record(events.SaveFailed(self._clock(), message.step, message.why))
            case Asked():
                self._ask(message.request)
            case Failed(cause="peer"):
                self._echoes.append((member, message.why))
            case Failed():
                self.mistaken = message.cause == "user"
                return self.lose(member, message.why)
            case Left():
                self._leave(member)
            case _:
                raise ValueError(f"{type(message).__name__} is not for a ledger")
        return []

    def lose(self, member: Member, why: str) -> Outbox:
        """A member is gone: the run ends here, and the others are told to stop."""
        if self.ended or member in self._left:
            return []
        replica, rank = member
        self.failure = why if self.mistaken else f"{name(member)}: {why}"
        self._record(events.Lost(self._clock(), replica, rank, why))
        return [(other, Closed(f"{name(member)} failed")) for other in self.expected if other != member]

    def has_spoken(self, member: Member) -> bool:
        """Whether a member took its leave, or complained of a peer, before it ended."""
        return member in self._left or any(member == other for other, _ in self._echoes)

    def believe_echoes(self) -> Outbox:
        """Nobody but members that saw a peer fail has failed: take the first at its word."""
        return self.lose(*self._echoes[0]) if self._echoes else []

    # --- joining ---------------------------------------------------------------------------------------------

    @property
    def expected(self) -> list[Member]:
        """All who take part: the ranks of all replicas, and the server where there is one."""
        return [*self.plan.members, SERVER] if self._pieces else self.plan.members

    def _join(self, member: Member, hello: Join) -> Outbox:
        if member not in self.expected or member in self._joined:
            return [(member, Closed(f"{name(member)} is not expected here"))]
        self._joined[member] = hello
        self._record(events.Joined(self._clock(), member[0], member[1], hello.host, hello.pid, hello.device))
        if len(self._joined) < len(self.expected):
            return []
        self._start(hello.device)
        return self._first_leases()

    def _start(self, device: str) -> None:
        plan, now = self.plan, self._clock()
        parameters = sum(hello.parameters for (replica, _), hello in self._joined.items() if replica == 0)
        if self._resumed:
            self._record(events.Resumed(now, self._committed, plan.replicas, plan.layout))
        else:
            self._record(events.Started(now, plan.version, plan.replicas, parameters, plan.steps, device, plan.layout))

    def _first_leases(self) -> Outbox:
        if self._pieces:
            leases: Outbox = [(member, Lease(self._next_piece(member))) for member in self.plan.members]
            return [*leases, (SERVER, Lease(None))]
        work = self._next_step()
        return [(member, Lease(work.get(member[0]))) for member in self.plan.members]

    # --- leases ----------------------------------------------------------------------------------------------

    def _next_step(self) -> dict[int, Work]:
        """One lease for each replica, or none when the run is over."""
        step = self._committed + 1
        if step > self.plan.steps or self.stopping:
            return {}
        size = self.plan.size(step)
        self._units += 1
        work = {
            replica: Work(self._units, self.generation, step, share, [[0, size]])
            for replica, share in enumerate(shares.deal(size, self.plan.capacity))
        }
        self._ballot = Ballot(work, {})
        return work

    def _next_piece(self, member: Member) -> Work | None:
        assert self._pieces is not None
        if self.stopping:
            return None
        self._units += 1
        return self._pieces.lease(self._units, self.generation, member[0])

    # --- votes and verdicts ----------------------------------------------------------------------------------

    def _vote(self, member: Member, vote: Vote) -> Outbox:
        if vote.request:
            self._ask(vote.request)
        if self._pieces:
            return self._vote_on_piece(vote)
        ballot = self._ballot
        if ballot is None or vote.unit != self._units or member not in self.plan.members:
            return [(member, Closed(f"unit {vote.unit} is not leased to {name(member)}"))]
        ballot.votes[member] = vote
        if len(ballot.votes) < len(self.plan.members):
            return []
        return self._decide_step(ballot)

    def _decide_step(self, ballot: Ballot) -> Outbox:
        step = self._committed + 1
        votes = [ballot.votes[member] for member in self.plan.members]
        loss = math.fsum(vote.loss_sum for vote in votes) / self.plan.targets(step)
        grad_norm = math.sqrt(math.fsum(vote.squared_norm for vote in votes[: self.plan.ranks]))
        decision = self._judge(step, loss, grad_norm)
        if self.failure:
            return [(member, Closed(self.failure)) for member in self.plan.members]
        by_replica = {replica: work.ranges for replica, work in ballot.work.items()}
        self._record_step(step, loss, grad_norm, decision != "commit", votes, by_replica)
        self._committed = step
        if decision == "rollback":
            self._roll_back(step)
        return self._tell(step, decision, grad_norm, _sum_of_loads(votes) if decision == "commit" else [])

    def _tell(self, step: int, decision: Decision, grad_norm: float, load: Load) -> Outbox:
        """The verdict of a step for all, with what is due and the next leases."""
        unit = self._units
        due = self._due(step) if decision != "rollback" else _NOTHING
        work = self._next_step()
        to_step = self._committed if decision == "rollback" else 0
        evaluation = shares.deal(self.plan.evaluation_size, self.plan.capacity) if due.evaluate else None
        return [
            (
                (replica, rank),
                Verdict(
                    unit,
                    step,
                    decision,
                    grad_norm,
                    to_step,
                    evaluate=evaluation[replica] if evaluation else None,
                    save=due.save,
                    position={"step": step} if due.save else None,
                    work=work.get(replica),
                    load=load,
                ),
            )
            for replica, rank in self.plan.members
        ]

    def _vote_on_piece(self, vote: Vote) -> Outbox:
        assert self._pieces is not None
        work = self._pieces.leased.get(vote.unit)
        if work is None:
            return [(SERVER, Closed(f"unit {vote.unit} is not leased"))]
        replica, lease = work
        grad_norm = math.sqrt(vote.squared_norm)
        decision = self._judge(lease.step, vote.loss_sum, grad_norm)
        if self.failure:
            return [(member, Closed(self.failure)) for member in self.expected]
        if decision == "rollback":
            self.failure = f"{self.plan.nonfinite_limit} pieces in a row were not finite; lower train.optimizer.lr"
            return [(member, Closed(self.failure)) for member in self.expected]
        self._pieces.commit(vote, decision == "skip")
        due = self._record_whole_steps()
        following = self._next_piece((replica, 0))
        last = self._pieces.idle and following is None
        save = due.save or (last and self.stopping)
        verdict = Verdict(
            vote.unit,
            self._committed,
            decision,
            grad_norm,
            evaluate=[[0, self.plan.evaluation_size]] if due.evaluate else None,
            save=save,
            position=self._pieces.position(self._committed) if save else None,
            work=following,
        )
        return [(SERVER, verdict)]

    def _record_whole_steps(self) -> Due:
        """Record each step whose last piece came in, in order; what is due after them."""
        assert self._pieces is not None
        due = _NOTHING
        while (done := self._pieces.finished(self._committed + 1)) is not None:
            step, votes, by_replica, skipped = done
            loss = math.fsum(vote.loss_sum for vote in votes) / self.plan.targets(step)
            grad_norm = math.sqrt(math.fsum(vote.squared_norm for vote in votes) / len(votes))
            self._record_step(step, loss, grad_norm, skipped, votes, by_replica)
            self._committed = step
            due = due.and_also(self._due(step))
        return due

    def _judge(self, step: int, loss: float, grad_norm: float) -> Decision:
        if math.isfinite(loss) and math.isfinite(grad_norm):
            self._in_a_row = 0
            return "commit"
        self._in_a_row += 1
        if self._in_a_row < self.plan.nonfinite_limit:
            return "skip"
        if self._rolled_back_at is not None and step <= self._rolled_back_at:
            self.failure = (
                f"{self._in_a_row} steps in a row were not finite up to step {step}, and again after rolling back to step {self._kept}; "
                "lower train.optimizer.lr, lengthen the warm-up, or use fp32"
            )
        return "rollback"

    def _roll_back(self, step: int) -> None:
        self._record(
            events.RolledBack(self._clock(), self._kept, f"{self._in_a_row} steps in a row were not finite, the last of them step {step}")
        )
        self._committed, self._rolled_back_at, self._in_a_row = self._kept, step, 0

    def _due(self, step: int) -> Due:
        plan, last = self.plan, step == self.plan.steps
        asked = self._save_asked or (self.stopping and not self._pieces)  # pieces stop, and save, once none is out
        save = last or asked or bool(plan.save_every and step % plan.save_every == 0)
        evaluate = bool(plan.evaluate_every and plan.evaluation_size and (last or step % plan.evaluate_every == 0))
        self._save_asked = False
        return Due(save, evaluate)

    def _record_step(
        self, step: int, loss: float, grad_norm: float, skipped: bool, votes: list[Vote], by_replica: dict[int, Ranges]
    ) -> None:
        tokens, seconds = self.plan.targets(step), max(vote.seconds for vote in votes)
        rate = tokens / seconds if seconds else 0.0
        memory, waited = ({}, {}) if self._pieces else self._by_replica(votes)
        self._record(
            events.Step(
                self._clock(),
                step,
                self.generation,
                loss,
                grad_norm,
                max(vote.lr for vote in votes),
                tokens,
                seconds,
                rate,
                self._mfu(rate),
                {str(replica): ranges for replica, ranges in sorted(by_replica.items())},
                skipped,
                memory,
                waited,
                _sum_of_loads(votes),
                {} if self._pieces else self._bubbles(votes),
            )
        )

    def _by_replica(self, votes: list[Vote]) -> tuple[dict[str, int], dict[str, float]]:
        """Peak memory and seconds waited of each replica: of its rank that has most."""
        memory: dict[str, int] = {}
        waited: dict[str, float] = {}
        for (replica, _), vote in zip(self.plan.members, votes, strict=True):
            memory[str(replica)] = max(vote.memory, memory.get(str(replica), 0))
            waited[str(replica)] = max(vote.waited, waited.get(str(replica), 0.0))
        return memory, waited

    def _bubbles(self, votes: list[Vote]) -> dict[str, float]:
        """A pipeline's time is that of its first rank, which begins first and ends last."""
        of_replica: dict[str, list[Vote]] = {}
        for (replica, _), vote in zip(self.plan.members, votes, strict=True):
            of_replica.setdefault(str(replica), []).append(vote)
        whole = {replica: max(vote.under_way for vote in ranks) for replica, ranks in of_replica.items()}
        return {
            replica: 1.0 - math.fsum(vote.busy for vote in of_replica[replica]) / (len(of_replica[replica]) * seconds)
            for replica, seconds in whole.items()
            if seconds
        }

    def _mfu(self, tokens_per_s: float) -> float | None:
        peaks = [self.plan.peak_flops(hello.device) for member, hello in self._joined.items() if member != SERVER]
        known = [peak for peak in peaks if peak is not None]
        return tokens_per_s * self.plan.flops_per_token / sum(known) if known and len(known) == len(peaks) else None

    # --- facts -----------------------------------------------------------------------------------------------

    def _ask(self, request: str) -> None:
        if request == "stop":
            self.stopping = True
        else:
            self._save_asked = True

    def _measure(self, member: Member, part: Measured) -> None:
        parts = self._measured.setdefault((part.step, part.split), {})
        parts[member] = part
        if len(parts) < (1 if self._pieces else len(self.plan.members)):
            return
        del self._measured[part.step, part.split]
        ordered = [parts[key] for key in sorted(parts)]
        targets = sum(one.targets for one in ordered)
        loss = math.fsum(one.loss_sum for one in ordered) / targets
        accuracy = sum(one.correct for one in ordered) / targets
        self._record(events.Evaluated(self._clock(), part.step, part.split, loss, events.perplexity(loss), accuracy, targets))

    def _leave(self, member: Member) -> None:
        self._left.add(member)
        if self._left == set(self.expected):
            now = self._clock()
            done = self._committed >= self.plan.steps
            self._record(events.Finished(now, self._committed) if done else events.Stopped(now, self._committed, "asked to"))


def _sum_of_loads(votes: list[Vote]) -> Load:
    """By layer and expert, over the members that tell of a layer."""
    total: Load = []
    for vote in votes:
        total += [[] for _ in range(len(total), len(vote.load))]
        for layer, load in enumerate(vote.load):
            if load:
                total[layer] = [sum(both) for both in zip(total[layer] or [0] * len(load), load, strict=True)]
    return total


@dataclass(frozen=True)
class Due:
    save: bool
    evaluate: bool

    def and_also(self, other: Due) -> Due:
        return Due(self.save or other.save, self.evaluate or other.evaluate)


_NOTHING = Due(save=False, evaluate=False)
