"""A run's strategies, one after the other; a run without phases has one.

    phase 0            │ leave: all replicas alike │ enter      phase 1
    ── settle ── verdict with the next lease, which names its phase ──► begin

Which phase a unit belongs to is the ledger's to say. What compression held back in one phase goes into the next.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from plait.ledger.messages import Part, Verdict, Work
from plait.replica.replica import Replica
from plait.sync.strategy import Report, State, Sync, Votes


class Phases:
    """`strategies` by phase."""

    def __init__(self, strategies: Sequence[Sync]) -> None:
        self._strategies = strategies
        self._phase: int | None = None

    @property
    def _now(self) -> Sync:
        assert self._phase is not None
        return self._strategies[self._phase]

    def join(self, verdict: Verdict, replica: Replica) -> Verdict:
        """What the ledger answered to a member that joined; or what it answered then."""
        for strategy in self._strategies:
            strategy.meet(verdict.servers)
        return verdict if verdict.work is None else self._strategies[verdict.work.phase].join(verdict, replica)

    def begin(self, work: Work, replica: Replica) -> Verdict | None:
        self._go_to(work.phase, replica)
        return self._noted(self._now.begin(work, replica))

    def end(self, part: Part, replica: Replica) -> float:
        return self._now.end(part, replica)

    def settle(self, work: Work, replica: Replica, ledger: Votes, report: Report) -> Verdict:
        verdict = self._now.settle(work, replica, ledger, report)
        self._noted(verdict)
        return verdict

    def state(self, replica: Replica) -> State:
        return self._now.state(replica)

    def state_to_load(self, replica: Replica, phase: int, names: Collection[str]) -> State:
        """Of a checkpoint that was saved in a phase."""
        self._enter(phase, replica, {})
        return self._now.state_to_load(replica, names)

    def restore(self, replica: Replica, state: State) -> None:
        self._now.restore(replica, state)

    def resize(self, replica: Replica, bucket_bytes: int) -> None:
        """Buckets of another size, between two units."""
        self._now.resize(replica, bucket_bytes)

    def close(self) -> None:
        for strategy in self._strategies:
            strategy.close()

    def _noted(self, verdict: Verdict | None) -> Verdict | None:
        if verdict is not None and verdict.decision == "rollback":
            self._phase = None  # what comes is the state of a checkpoint, whatever its phase
        return verdict

    def _go_to(self, phase: int, replica: Replica) -> None:
        if phase == self._phase:
            return
        owed = {} if self._phase is None else self._now.leave(replica)
        self._enter(phase, replica, owed)

    def _enter(self, phase: int, replica: Replica, owed: State) -> None:
        replica.gradients.watch(None)
        self._phase = phase
        self._now.enter(replica, owed)
