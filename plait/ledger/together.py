"""Units that all replicas hold together: a step, or a round of steps, each dealt out in shares.

    lease ─► every rank votes ─► one verdict for all, with the next lease

A replica that is gone takes the unit with it: nobody else holds what it was to send.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from plait.ledger import shares
from plait.ledger.books import Books, Due, Told, sum_of_loads
from plait.ledger.messages import Closed, Decision, Member, Outbox, Part, Verdict, Vote, Work, name

Turn = Callable[[], tuple[dict[int, Work | None], Outbox]]


class Together:
    """All-reduce and local steps. `turn` tells what each replica does next, in this phase or another."""

    def __init__(self, books: Books, turn: Turn) -> None:
        self._books = books
        self._plan = books.plan
        self._turn = turn
        self._work: dict[int, Work] = {}
        self._votes: dict[Member, Vote] = {}

    def start(self) -> tuple[dict[int, Work | None], Outbox]:
        """One lease for each replica, or none when the run is over."""
        books = self._books
        self._votes, self._work = {}, {}
        if not books.over:
            first = books.committed + 1
            last = min(first + books.agreement.every - 1, books.last_step)
            dealt = [(step, shares.deal(self._plan.size(step), self._plan.capacity)) for step in range(first, last + 1)]
            unit = books.new_unit()
            self._work = {
                replica: Work(unit, books.generation, [self._part(step, share[replica]) for step, share in dealt], books.phase)
                for replica in range(self._plan.replicas)
            }
        return {replica: self._work.get(replica) for replica in range(self._plan.replicas)}, []

    def vote(self, member: Member, vote: Vote) -> Outbox:
        work = self._work.get(member[0])
        if work is not None and vote.unit < work.unit:
            return []  # of a unit that a rollback made void
        if work is None or vote.unit != work.unit or member not in self._plan.workers:
            return [(member, Closed(f"unit {vote.unit} is not leased to {name(member)}"))]
        self._votes[member] = vote
        return self._decide() if len(self._votes) == len(self._plan.workers) else []

    def _part(self, step: int, ranges: list[list[int]]) -> Part:
        """In a round losses are means over a replica's own share: each takes its own step."""
        alone = self._books.agreement.unit == "round"
        return Part(step, ranges, ranges if alone else [[0, self._plan.size(step)]])

    # --- verdicts --------------------------------------------------------------------------------------------

    def _decide(self) -> Outbox:
        books, unit = self._books, self._work[0].unit
        told = self._told()
        norms = [self._grad_norm(step, of_step) for step, of_step in told]
        decisions = [books.judge(step, books.loss(step, of_step), norm) for (step, of_step), norm in zip(told, norms, strict=True)]
        if books.failure:
            return [(member, Closed(books.failure)) for member in self._plan.workers]
        due, slowest = Due(), self._slowest()
        for (step, of_step), norm, judged in zip(told, norms, decisions, strict=True):
            by_replica = {replica: _of(work, step).ranges for replica, work in self._work.items()}
            books.record_step(step, of_step, by_replica, norm, judged != "commit", slowest)
            due |= books.due(step)
        last = books.committed
        decision: Decision = "rollback" if "rollback" in decisions else self._of_unit(decisions[-1])
        if decision == "rollback":
            books.roll_back_nonfinite(last)
        return self._tell(unit, last, decision, norms[-1], told[-1][1], due)

    def _tell(self, unit: int, step: int, decision: Decision, grad_norm: float, told: list[Told], due: Due) -> Outbox:
        """The verdict of a unit for all, with what is due and the next leases."""
        books, plan = self._books, self._plan
        due = Due() if decision == "rollback" else due
        load = sum_of_loads(each.did for each in told) if decision == "commit" else []
        evaluation = shares.deal(plan.evaluation_size, plan.capacity) if due.evaluate else None
        resize = books.resize() if decision == "commit" else 0
        following, besides = self._turn()
        position = books.position(step) if due.save else None
        to_step = books.committed if decision == "rollback" else None
        return [
            *(
                (
                    (replica, rank),
                    Verdict(
                        unit,
                        step,
                        decision,
                        grad_norm,
                        to_step,
                        evaluation[replica] if evaluation else None,
                        due.save,
                        position if replica == 0 else None,
                        following[replica],
                        load,
                        bucket_bytes=resize,
                    ),
                )
                for replica, rank in plan.workers
            ),
            *besides,
        ]

    def _of_unit(self, last: Decision) -> Decision:
        """In a round a replica leaves out its own step that was not finite; the round commits all the same."""
        return "commit" if self._books.agreement.unit == "round" else last

    def _told(self) -> list[tuple[int, list[Told]]]:
        """Of each step of the unit, what each rank said of it; of the unit's measures each step has its share."""
        steps = [part.step for part in self._work[0].parts]
        votes = [(member, self._votes[member]) for member in self._plan.workers]
        return [(step, [Told(member, vote.did[index], vote, 1 / len(steps)) for member, vote in votes]) for index, step in enumerate(steps)]

    def _grad_norm(self, step: int, told: list[Told]) -> float:
        """Of the one gradient, whose squares add up over a replica's ranks; in a round the root of the mean over replicas' own ones."""
        if self._books.agreement.unit == "step":
            return math.sqrt(math.fsum(each.did.squared_norm for each in told[: self._plan.ranks]))
        return math.sqrt(math.fsum(each.did.squared_norm for each in told) / self._plan.replicas)

    def _slowest(self) -> int | None:
        """The replica that computed longest."""
        computing = {member: vote.seconds - vote.waited for member, vote in self._votes.items()}
        return max(computing, key=lambda member: computing[member])[0] if self._plan.replicas > 1 else None


def _of(work: Work, step: int) -> Part:
    return next(part for part in work.parts if part.step == step)
