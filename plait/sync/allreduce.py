"""All-reduce: every replica holds a share of each global batch, and gradients are summed over all of them.

    backward   ▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓
    buckets         ░░░ ░░░ ░░░ ░░      each sent as soon as it is final
    settle                      wait ─► vote ─► verdict ─► clip and step, or skip

Losses were divided by the target tokens of the whole global batch, so the sum is the gradient: no share needs a weight.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed import Work as Collective

from plait.ledger.messages import Verdict, Work
from plait.replica.replica import Replica
from plait.sync.strategy import PeerLost, Rate, Report, Votes


class AllReduce:
    """One curve: the update is that of the global batch in one process. `group` is None for a replica alone."""

    def __init__(self, group: ProcessGroup | None, rate: Rate) -> None:
        self._group = group
        self._rate = rate
        self._sent: list[Collective] = []

    def begin(self, work: Work, replica: Replica) -> None:
        self._sent = []
        if self._group is not None:
            replica.gradients.watch(self._send)

    def settle(self, work: Work, replica: Replica, ledger: Votes, report: Report) -> Verdict:
        replica.finish()
        began = time.perf_counter()
        self._wait()
        waited = time.perf_counter() - began
        verdict = ledger.vote(report(replica.gradients.squared_norm(), waited))
        if verdict.decision == "commit":
            replica.apply(verdict.grad_norm, self._rate(work.step), verdict.load)
        return verdict

    def state(self) -> dict[str, Any]:
        return {}

    def close(self) -> None:
        """Free the group's sockets and threads."""
        self._group = None

    def _wait(self) -> None:
        try:
            for collective in self._sent:
                collective.wait()
        except RuntimeError as error:
            raise PeerLost(str(error)) from error

    def _send(self, bucket: Tensor) -> None:
        assert self._group is not None
        self._sent.append(self._group.allreduce([bucket], torch.distributed.AllreduceOptions()))
