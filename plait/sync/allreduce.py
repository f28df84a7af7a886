"""All-reduce: every replica holds a share of each global batch, and gradients are summed over all of them.

    backward   ▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓
    buckets         ░░░ ░░░ ░░░ ░░      each sent as soon as it is final
    end                         wait
    settle                           vote ─► verdict ─► clip and step, or skip

Losses were divided by the target tokens of the whole global batch, so the sum is the gradient: no share needs a weight.
"""

from __future__ import annotations

from collections.abc import Collection

from plait.ledger.messages import Part, Verdict, Work
from plait.replica import device as devices
from plait.replica.replica import Replica
from plait.sync.deal import ByReplica, by_path, resize_buckets
from plait.sync.handing import Handing, hand_over
from plait.sync.peers import Peers
from plait.sync.reduce import Reducer
from plait.sync.strategy import Rate, Report, Sparsity, State, Traffic, Votes


class AllReduce:
    """One curve: the update is that of the global batch in one process."""

    def __init__(self, reducer: Reducer, peers: Peers, rate: Rate, sparsity: Sparsity = lambda step: None) -> None:
        self._reducer = reducer
        self._peers = peers
        self._by_replica = ByReplica(peers)
        self._rate, self._sparsity = rate, sparsity
        self._waited = 0.0
        self._handing: Handing | None = None
        peers.follow(reducer.regroup)

    def meet(self, servers: list[str]) -> None:
        """None is needed."""

    def join(self, verdict: Verdict, replica: Replica) -> Verdict:
        """The state comes with the first unit, where it is not the one to begin with."""
        return verdict

    def enter(self, replica: Replica, owed: State) -> None:
        replica.gradients.owe(owed)
        self._reducer.residuals = {}
        replica.gradients.watch(self._reducer.launch)

    def begin(self, work: Work, replica: Replica) -> Verdict | None:
        self._handing = hand_over(self._peers, work, replica, {})
        self._reducer.begin(work.step)
        return None

    def end(self, part: Part, replica: Replica) -> float:
        replica.finish()
        began = devices.mark(replica.device)
        self._reducer.wait()
        reduced = devices.mark(replica.device)
        squared_norm = replica.squared_norm()
        self._waited = devices.between(began, reduced)
        return squared_norm

    def settle(self, work: Work, replica: Replica, ledger: Votes, report: Report) -> Verdict:
        if self._handing is not None:
            self._handing.wait()
        verdict = ledger.vote(report(Traffic(self._reducer.sent, self._reducer.seconds, self._waited)))
        committed = verdict.decision == "commit"
        self._reducer.keep(committed)
        if committed:
            replica.apply(verdict.grad_norm, self._rate(work.step), verdict.load, self._sparsity(work.step))
        return verdict

    def void(self, replica: Replica) -> None:
        """Nothing has changed before the verdict but what was staged."""
        self._handing = None
        self._reducer.keep(False)

    def leave(self, replica: Replica) -> State:
        replica.gradients.watch(None)
        return by_path(replica, self._reducer.residuals)

    def alike(self, replica: Replica) -> State:
        return replica.state()

    def state(self, replica: Replica) -> State:
        return self._by_replica.residuals(replica, self._reducer)

    def state_to_load(self, replica: Replica, names: Collection[str]) -> State:
        return self._by_replica.residuals_to_load(replica, names)

    def restore(self, replica: Replica, state: State) -> None:
        self._by_replica.restore_residuals(replica, self._reducer, state)

    def resize(self, replica: Replica, bucket_bytes: int) -> None:
        resize_buckets(replica, self._reducer, bucket_bytes)

    def close(self) -> None:
        self._reducer.regroup(None)
