"""A run's strategies, one after the other; a run without phases has one.

    phase 0            │ leave: all replicas alike │ enter      phase 1
    ── settle ── verdict with the next lease, which names its phase ──► begin

Which phase a unit belongs to is the ledger's to say. What compression held back in one phase goes into the next.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from plait.errors import PlaitError
from plait.ledger.messages import Broken, Part, Verdict, Vote, Work
from plait.ledger.progress import progress
from plait.replica.fingerprint import fingerprints
from plait.replica.replica import Replica
from plait.sync.handing import heal
from plait.sync.peers import Peers
from plait.sync.strategy import PeerLost, Report, State, Sync, Votes


class Phases:
    """`strategies` by phase. elastic: whether those who lose a peer go on without it."""

    def __init__(self, strategies: Sequence[Sync], peers: Peers, elastic: bool = False) -> None:
        self._strategies = strategies
        self._peers = peers
        self._elastic = elastic
        self._phase: int | None = None

    @property
    def _now(self) -> Sync:
        assert self._phase is not None
        return self._strategies[self._phase]

    def join(self, verdict: Verdict, replica: Replica) -> Verdict:
        """What the ledger answered to a member that joined; or what it answered then."""
        for strategy in self._strategies:
            strategy.meet(verdict.servers)
        verdict = verdict if verdict.work is None else self._strategies[verdict.work.phase].join(verdict, replica)
        self._note(verdict)
        return verdict

    def compare(self, work: Work, replica: Replica, ledger: Votes) -> Verdict:
        """Tell the ledger what this rank holds of what all hold alike, or hand it to those that hold something else."""
        alike = self._now.alike(replica)
        told: dict[str, str] = {}
        if work.check == "heal":
            heal(self._peers, work, replica, alike)
        else:
            progress("takes the fingerprint of its state")
            told = fingerprints(alike, each=work.check == "each")
        verdict = ledger.vote(Vote(work.unit, [], 0.0, fingerprints=told))
        self._noted(verdict, replica)
        return verdict

    def begin(self, work: Work, replica: Replica) -> Verdict | None:
        """A lease of nothing, for replicas that agree together, is a meeting."""
        self._go_to(work.phase, replica)
        meeting = not work.parts and not work.era
        return self._noted(self._peers.meet(work) if meeting else self._now.begin(work, replica), replica)

    def end(self, part: Part, replica: Replica) -> float:
        return self._now.end(part, replica)

    def settle(self, work: Work, replica: Replica, ledger: Votes, report: Report) -> Verdict:
        verdict = self._now.settle(work, replica, ledger, report)
        self._noted(verdict, replica)
        return verdict

    def go_on(self, work: Work, replica: Replica, ledger: Votes, lost: PeerLost) -> Verdict:
        """A unit broke, as others are gone or are told to do it again: what follows is what the ledger says. Raises `lost` where nobody
        goes on without them."""
        if not self._elastic:
            raise lost
        why = str(lost)
        lost.__traceback__ = lost.__cause__ = lost.__context__ = None  # what they refer to keeps connections open
        self._peers.part()
        self._now.void(replica)
        ledger.tell(Broken(work.unit, why))
        verdict = ledger.hear()
        self._noted(verdict, replica)
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
        if self._phase is None:
            replica.gradients.resize(bucket_bytes)
        else:
            self._now.resize(replica, bucket_bytes)

    def close(self) -> None:
        for strategy in self._strategies:
            strategy.close()

    def _noted(self, verdict: Verdict | None, replica: Replica) -> Verdict | None:
        if verdict is not None and verdict.decision in ("void", "rollback"):
            self._now.void(replica)
        if verdict is not None and verdict.decision == "rollback":
            self._phase = None  # what comes is the state of a checkpoint, whatever its phase
        self._note(verdict)
        return verdict

    def _note(self, verdict: Verdict | None) -> None:
        if verdict is not None and verdict.work is not None:
            self._peers.note(verdict.work)

    def _go_to(self, phase: int, replica: Replica) -> None:
        if phase == self._phase:
            return
        self._enter(phase, replica, {} if self._phase is None else self._leave(replica))

    def _leave(self, replica: Replica) -> State:
        try:
            return self._now.leave(replica)
        except PeerLost as lost:  # what it does cannot be made undone, so that others go on without this replica
            raise PlaitError(f"another replica was lost while the phase changed: {lost}") from lost

    def _enter(self, phase: int, replica: Replica, owed: State) -> None:
        replica.gradients.watch(None)
        self._phase = phase
        self._now.enter(replica, owed)
