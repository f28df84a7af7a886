"""Failures on purpose, at a point of a unit: a worker that follows a script, for proofs and tests.

    begin ─► computing ─► reducing ─► reduced ─► voted ─► applying ─► applied        one unit of a worker
             pushing (to parameter servers)      averaged (local steps)      saving, in the writer's thread
    meeting ─► joining ─► ...    one that comes in another's place          comparing: fingerprints of state are asked for

What is scripted happens in the worker's own process, by wrapping what it is made of: nothing of it is in a run without a script.
"""

from __future__ import annotations

import functools
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch

from plait.cluster import worker
from plait.ledger.messages import Vote
from plait.ledger.wire import LedgerClient
from plait.replica.placed import local_values
from plait.replica.replica import Replica
from plait.sync.handing import Handing
from plait.sync.line import Line
from plait.sync.local import LocalSteps
from plait.sync.peers import Peers
from plait.sync.phases import Phases
from plait.sync.reduce import Reducer
from plait.train.checkpoint import Checkpoints

Point = Literal[
    "computing", "reducing", "reduced", "voted", "applying", "applied", "averaged", "saving", "meeting", "joining", "pushing", "comparing"
]
Action = Literal["kill", "stop", "hang", "raise", "flip", "flip_optimizer"]


@dataclass(frozen=True)
class Fault:
    """At a point of the unit that holds `step`, in the worker's `attempt`-th life: kill -9, SIGSTOP, a loop without end, an error, or one
    bit turned over, of a parameter or of what the optimizer keeps."""

    point: Point
    step: int
    replica: int
    rank: int = 0
    attempt: int = 0
    action: Action = "kill"

    def __str__(self) -> str:
        return f"{self.action} replica {self.replica} rank {self.rank} at step {self.step}, {self.point}"


def main(values: dict[str, Any]) -> int:
    """A worker whose config has `faults`."""
    me = (*values["member"], values.get("attempt", 0))
    faults = [fault for fault in map(_fault, values["faults"]) if (fault.replica, fault.rank, fault.attempt) == me]
    if faults:
        _Script(faults).install()
    return worker.main(values)


def _fault(values: dict[str, Any]) -> Fault:
    return Fault(**values)


class _Script:
    def __init__(self, faults: list[Fault]) -> None:
        self._faults = faults
        self._steps = range(0)
        self._replica: Replica | None = None

    def install(self) -> None:
        begin, vote, init = Phases.begin, LedgerClient.tell, Replica.__init__

        def begin_noting(phases: Phases, work: Any, replica: Replica) -> Any:
            if work.parts:
                self._steps = range(work.parts[0].step, work.step + 1)
            return begin(phases, work, replica)

        def tell_and_strike(client: LedgerClient, message: Any) -> None:
            if isinstance(message, Vote) and message.did:
                self.at("reduced")
            vote(client, message)
            if isinstance(message, Vote) and message.did:
                self.at("voted")

        def init_noting(replica: Replica, *arguments: Any, **named: Any) -> None:
            init(replica, *arguments, **named)
            self._replica = replica

        patched: Any = (Phases, LedgerClient, Replica)
        patched[0].begin, patched[1].tell, patched[2].__init__ = begin_noting, tell_and_strike, init_noting
        self._wrap(Replica, "accumulate", before="computing")
        self._wrap(Reducer, "launch", after="reducing")
        self._wrap(Replica, "apply", before="applying", after="applied")
        self._wrap(Checkpoints, "_write_pieces", before="saving")
        self._wrap(Peers, "_group", before="meeting")
        self._wrap(Handing, "receive", before="joining")
        self._wrap(Line, "send", before="pushing")
        self._wrap(LocalSteps, "_step_outside", after="averaged")
        self._wrap(Phases, "compare", before="comparing")

    def _wrap(self, kind: type, method: str, before: Point | None = None, after: Point | None = None) -> None:
        wrapped: Callable[..., Any] = getattr(kind, method)

        @functools.wraps(wrapped)
        def call(*arguments: Any, **named: Any) -> Any:
            if before:
                self.at(before)
            result = wrapped(*arguments, **named)
            if after:
                self.at(after)
            return result

        setattr(kind, method, call)

    def at(self, point: Point) -> None:
        for fault in list(self._faults):
            if fault.point == point and (fault.step in self._steps or fault.step == 0):
                self._faults.remove(fault)
                self._strike(fault)

    def _strike(self, fault: Fault) -> None:
        match fault.action:
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            case "hang":
                while True:
                    time.sleep(0.1)
            case "raise":
                raise ArithmeticError(f"told to fail: {fault}")
            case "flip":
                self._flip("model.")
            case "flip_optimizer":
                self._flip("optimizer.")

    def _flip(self, kind: str) -> None:
        """One bit of the largest value of the first matrix of a kind, one that changes it by a part in four or more."""
        assert self._replica is not None
        values = (local_values(value) for name, value in self._replica.state().items() if name.startswith(kind))
        flat = next(value for value in values if value.ndim > 1).detach().view(-1)
        largest = flat[int(flat.abs().argmax())].view(1)
        largest.view(torch.uint8)[largest.element_size() - 2] ^= 16
