"""What a worker is told when it is started, without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plait.ledger.messages import Member


@dataclass(frozen=True)
class Site:
    """Where a run is and what it goes on from: the same for all its workers. faults: failures on purpose."""

    run: dict[str, Any]
    folder: Path
    prepared: Path
    resume: Path | None
    faults: tuple[dict[str, Any], ...] = ()

    @property
    def hang_after(self) -> float:
        """Seconds."""
        seconds: float = self.run["elastic"]["hang_after"]
        return seconds


@dataclass(frozen=True)
class Config:
    """All that a worker is told, as plain values.

    store: where replicas meet, a folder on this host or "host:port". listen: where a parameter server waits for workers. attempt: how often
    this member has been started before. resume: a checkpoint, or None. elastic: whether others go on when a replica is lost.
    faults: a script of failures.
    """

    run: dict[str, Any]
    folder: str
    prepared: str
    member: Member
    local_rank: int
    workers_here: int
    ledger: str
    token: str
    store: str
    one_host: bool
    listen: str
    resume: str | None
    attempt: int = 0
    elastic: bool = False
    faults: tuple[dict[str, Any], ...] = ()
