"""How a run is doing now: DIR/status.json while it lives, and what `plait status` makes of it.

events (who is here, the last step) ┐
pulses (who does what, since when)  ┴─► status.json, rewritten whole, every PERIOD at most
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from plait import events
from plait.errors import CheckpointError
from plait.ledger.messages import SERVING, Beat, Member

FILE = "status.json"
PERIOD = 0.5
"""Seconds."""


@dataclass
class Worker:
    """Of one rank of a replica, or of a parameter server. state: "starting", "here", "lost" or "left"; doing: by its last pulse, for
    `seconds`. step: the last that it had a share of; samples_per_s: of its share, while it computed."""

    replica: int
    rank: int
    host: str = ""
    pid: int = 0
    state: str = "starting"
    doing: str = "starts"
    seconds: float = 0.0
    step: int = 0
    samples_per_s: float | None = None


@dataclass
class Now:
    """Of a run. state: "starting", "training", "waiting", "stopped", "finished" or "failed"; pid: of the process that keeps the ledger."""

    time: float = 0.0
    pid: int = 0
    state: str = "starting"
    generation: int = 1
    step: int = 0
    steps: int | None = None
    loss: float | None = None
    tokens_per_s: float | None = None
    saved: int | None = None
    """the newest checkpoint's step"""
    workers: list[Worker] = field(default_factory=list)


class Status:
    """Follows a run and writes its status file. A disk that cannot take it holds nothing up."""

    def __init__(self, folder: Path, clock: Callable[[], float] = time.time) -> None:
        self._path = folder / FILE
        self._clock = clock
        self._now = Now(pid=os.getpid())
        self._workers: dict[Member, Worker] = {}
        self._written = 0.0
        self._one_at_a_time = threading.Lock()

    def on(self, event: events.Event) -> None:
        with self._one_at_a_time:
            self._take(event)
            self._write(at_once=not isinstance(event, events.Step))

    def beat(self, member: Member, beat: Beat) -> None:
        """From the thread that keeps the ledger; events may come from others."""
        with self._one_at_a_time:
            worker = self._worker(member)
            worker.doing, worker.seconds = beat.doing, round(beat.seconds, 1)
            self._write(at_once=False)

    def close(self) -> None:
        if self._now.state in ("starting", "training", "waiting"):
            self._now.state = "failed"
        self._write(at_once=True)

    def _worker(self, member: Member) -> Worker:
        return self._workers.setdefault(member, Worker(*member))

    def _take(self, event: events.Event) -> None:
        now = self._now
        match event:
            case events.Started():
                now.state, now.steps = "training", event.steps
            case events.Resumed():
                now.state, now.step = "training", event.from_step
            case events.Joined():
                self._workers[event.replica, event.rank] = Worker(event.replica, event.rank, event.host, event.pid, "here", "has joined")
            case events.Lost():
                self._lose(event)
            case events.Waiting():
                now.state = "waiting"
            case events.Regrouped():
                now.state, now.generation = "training", event.generation
            case events.RolledBack():
                now.step = event.to_step
            case events.Step():
                self._step(event)
            case events.Saved():
                now.saved = max(event.step, now.saved or 0)
            case events.Stopped() | events.Finished():
                now.state = "stopped" if isinstance(event, events.Stopped) else "finished"
                for worker in self._workers.values():
                    worker.state, worker.doing, worker.seconds = "left", "", 0.0

    def _lose(self, event: events.Lost) -> None:
        """Its whole replica ends with it."""
        for (replica, rank), worker in self._workers.items():
            if replica == event.replica and (replica != SERVING or rank == event.rank):
                worker.state, worker.doing, worker.seconds, worker.samples_per_s = "lost", event.why.strip().splitlines()[-1], 0.0, None

    def _step(self, event: events.Step) -> None:
        now = self._now
        now.state, now.step, now.generation = "training", event.step, event.generation
        now.loss, now.tokens_per_s = event.loss, event.tokens_per_s
        for (replica, _), worker in self._workers.items():
            if str(replica) in event.shares:
                samples = sum(end - first for first, end in event.shares[str(replica)])
                computing = event.computed.get(str(replica), 0.0) + event.data.get(str(replica), 0.0)
                worker.step, worker.samples_per_s = event.step, round(samples / computing, 3) if computing > 0 else None

    def _write(self, at_once: bool) -> None:
        now = self._clock()
        if not at_once and now < self._written + PERIOD:
            return
        self._written = self._now.time = now
        self._now.workers = [worker for _, worker in sorted(self._workers.items())]
        partial = self._path.with_name(f".{FILE}.partial")
        with suppress(OSError):
            partial.write_text(json.dumps(asdict(self._now), indent=1) + "\n", encoding="utf-8")
            partial.replace(self._path)


def read(folder: Path) -> dict[str, Any]:
    """What a run's folder says. A run whose process is gone without a word has failed. Raises CheckpointError."""
    path = folder / FILE
    try:
        status: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{folder}: no run has been started here (no {FILE}); name the folder that plait train printed") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from None
    if status["state"] in ("starting", "training", "waiting") and not _is_alive(status["pid"]):
        status["state"] = "failed"
    return status


def _is_alive(pid: int) -> bool:
    """Of this host: a folder that several share is asked on the host that trains."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
