"""Workers whose clocks are scripted, so that speeds change as a test wants and nobody sleeps: what they compute is real."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from plait.cluster import worker
from plait.ledger.messages import Part, Vote, Work
from plait.ledger.wire import LedgerClient
from plait.replica.replica import Replica
from plait.sync.phases import Phases
from plait.train.loop import Loader

LEVEL = 0.01
"""Seconds for a sample."""


def seconds(replica: int, step: int) -> float:
    """Load that comes and goes: replica 0 is three times as slow for a while, then replica 1 five times."""
    slow = {0: 3.0 if 6 <= step < 18 else 1.0, 1: 5.0 if step >= 26 else 1.0}
    return LEVEL * slow.get(replica, 1.0)


def main(values: dict[str, Any]) -> int:
    """A worker that tells of its speed what `seconds` says, and that it waited for whoever is slow."""
    number = values["member"][0]
    begin, tell = Phases.begin, LedgerClient.tell
    now: dict[str, int] = {"samples": 0, "step": 0}

    def begin_noting(phases: Phases, work: Work, replica: Replica) -> Any:
        now.update(samples=sum(end - first for part in work.parts for first, end in part.ranges), step=work.step)
        return begin(phases, work, replica)

    def tell_scripted(client: LedgerClient, message: Any) -> None:
        if isinstance(message, Vote) and message.did:
            pace = seconds(number, now["step"])
            message = replace(message, seconds=0.1, waited=0.05 if pace == LEVEL else 0.0, computed=now["samples"] * pace, data=0.0)
        tell(client, message)

    patched: Any = (Phases, LedgerClient)
    patched[0].begin, patched[1].tell = begin_noting, tell_scripted
    return worker.main(values)


def dividing_by_share(values: dict[str, Any]) -> int:
    """The classical mistake: each replica divides by the targets of its own share."""
    patched: Any = Loader
    patched.divisor = _of_share
    return main(values)


_of_share: Callable[[Loader, Part], int] = lambda loader, part: loader._batches.targets(part.step, part.ranges)  # noqa: E731
