"""All-reduce: every replica holds a share of each global batch, and gradients are summed over all of them.

    backward   ▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓
    buckets         ░░░ ░░░ ░░░ ░░      each sent as soon as it is final
    end                         wait
    settle                           vote ─► verdict ─► clip and step, or skip

Losses were divided by the target tokens of the whole global batch, so the sum is the gradient: no share needs a weight.
"""

from __future__ import annotations

import time
from collections.abc import Collection

from plait.ledger.messages import Part, Verdict, Work
from plait.replica.replica import Replica
from plait.sync.deal import ByReplica, by_path, resize_buckets
from plait.sync.reduce import Reducer
from plait.sync.strategy import Rate, Report, State, Traffic, Votes


class AllReduce:
    """One curve: the update is that of the global batch in one process. `reducer` is None for a replica alone."""

    def __init__(self, reducer: Reducer | None, peers: ByReplica | None, rate: Rate) -> None:
        self._reducer = reducer
        self._peers = peers
        self._rate = rate
        self._waited = 0.0

    def meet(self, servers: list[str]) -> None:
        """None is needed."""

    def join(self, verdict: Verdict, replica: Replica) -> Verdict:
        """Nothing comes with it: replicas began alike."""
        return verdict

    def enter(self, replica: Replica, owed: State) -> None:
        replica.gradients.owe(owed)
        if self._reducer is not None:
            self._reducer.residuals = {}
            replica.gradients.watch(self._reducer.launch)

    def begin(self, work: Work, replica: Replica) -> Verdict | None:
        if self._reducer is not None:
            self._reducer.begin(work.step)
        return None

    def end(self, part: Part, replica: Replica) -> float:
        replica.finish()
        began = time.perf_counter()
        if self._reducer is not None:
            self._reducer.wait()
        self._waited = time.perf_counter() - began
        return replica.gradients.squared_norm()

    def settle(self, work: Work, replica: Replica, ledger: Votes, report: Report) -> Verdict:
        reducer = self._reducer
        traffic = Traffic() if reducer is None else Traffic(reducer.sent, reducer.seconds, self._waited)
        verdict = ledger.vote(report(traffic))
        committed = verdict.decision == "commit"
        if reducer is not None:
            reducer.keep(committed)
        if committed:
            replica.apply(verdict.grad_norm, self._rate(work.step), verdict.load)
        return verdict

    def leave(self, replica: Replica) -> State:
        replica.gradients.watch(None)
        return {} if self._reducer is None else by_path(replica, self._reducer.residuals)

    def state(self, replica: Replica) -> State:
        return {} if self._peers is None else self._peers.residuals(replica, self._reducer)

    def state_to_load(self, replica: Replica, names: Collection[str]) -> State:
        return {} if self._peers is None else self._peers.residuals_to_load(replica, names)

    def restore(self, replica: Replica, state: State) -> None:
        if self._peers is not None:
            self._peers.restore_residuals(replica, self._reducer, state)

    def resize(self, replica: Replica, bucket_bytes: int) -> None:
        resize_buckets(replica, self._reducer, bucket_bytes)

    def close(self) -> None:
        self._reducer = None
