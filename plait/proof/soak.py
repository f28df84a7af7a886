"""Promises 1 and 2 over many failures: processes of one run are killed at random, again and again.

    reference    one process, fp64, undisturbed
    soaked       the run's replicas and sync; kill -9 of whoever chance names, at a moment that chance names

The run has to end by itself, without a hang, on the reference's curve, with each sample used exactly once. The seed says who is killed, and
how long after which step; what they are in the midst of then is the machine's to say.
"""

from __future__ import annotations

import os
import random
import signal
import statistics
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from plait import events, spec
from plait.cluster.nursery import Nursery
from plait.ledger import journal
from plait.ledger.messages import SERVING, Member
from plait.ledger.state import TRIES
from plait.proof.coverage import Proof, verify_run
from plait.proof.faults import check_one_curve
from plait.proof.layouts import Compared, Prover, for_proof
from plait.tasks.pretrain import prepare

KILLS = 200
APART = 4
"""Most steps between two strikes."""
_AT_ONCE = (0.80, 0.95)
"""One process is killed with the first probability; two up to the second; beyond it, all."""
_EVERY = 25
"""Steps between checkpoints: what a death of all is allowed to cost."""
_HANG_AFTER = 30.0


@dataclass(frozen=True)
class Soaked:
    """killed: processes, by whom they were (a replica, or "server"). seconds: from a failure to the next commit, each. hung: processes that
    were found hanging. void: steps that were done again."""

    kills: int
    killed: dict[str, int]
    took: float
    compared: Compared
    proof: Proof
    hung: int

    @property
    def seconds(self) -> list[float]:
        return sorted(each.seconds for each in self.proof.recoveries if each.seconds is not None)

    @property
    def ok(self) -> bool:
        return self.compared.ok and self.proof.ok and self.proof.finished and not self.hung and sum(self.killed.values()) >= self.kills

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "proof": self.proof.as_dict(), "seconds": self.seconds, "ok": self.ok}


def soak(
    run: spec.Run, kills: int = KILLS, seed: int = 0, told: Callable[[int], None] = lambda _: None, nursery: Nursery | None = None
) -> Soaked:
    """Kill `kills` processes of a run at random, in a training long enough for it. told: how many have been.

    Raises RunFileError for a run whose curve follows who is there: it has no reference.
    """
    check_one_curve(run)
    proven = for_proof(run.model_copy(update={"sync": spec.Sync()}), kills * (APART + 2))
    sections = {
        "sync": run.resolved()["sync"],
        "balance": run.resolved()["balance"],
        "elastic": {"hang_after": _HANG_AFTER},
        "checkpoint": {"every": f"{_EVERY} steps"},
    }
    reaper = Reaper(kills, seed, told)
    with tempfile.TemporaryDirectory(prefix="plait-soak-") as folder, ExitStack() as stack:
        prover = Prover(proven, prepare(proven), Path(folder), nursery or stack.enter_context(Nursery(many=True)))
        began = time.monotonic()
        compared = prover.compare(run.resolved()["layout"], sections, listeners=[reaper])
        took = time.monotonic() - began
        history = journal.read(prover.last / "events.jsonl")
        hung = sum(isinstance(event, events.Hung) for event in history)
        return Soaked(kills, dict(reaper.killed), took, compared, verify_run(prover.last), hung)


class Reaper:
    """A listener that kills processes of its run: some steps after the last strike, at a random moment of a step.

    No replica is killed a third time before it has done anything, since it would be given up, as it should.
    """

    def __init__(self, kills: int, seed: int, told: Callable[[int], None]) -> None:
        self._kills, self._told = kills, told
        self._random = random.Random(seed)
        self._pids: dict[Member, int] = {}
        self._idle: Counter[int] = Counter()
        self._steps = APART
        self._paces: deque[float] = deque(maxlen=9)
        self._timer: threading.Timer | None = None
        self._lock = threading.Lock()
        self.killed: Counter[str] = Counter()

    def on(self, event: events.Event) -> None:
        with self._lock:
            match event:
                case events.Joined():
                    self._pids[event.replica, event.rank] = event.pid
                case events.Lost():
                    self._forget(event.replica, event.rank)
                case events.Step():
                    self._idle -= Counter({int(replica): TRIES for replica in event.shares})
                    self._paces.append(event.seconds)
                    self._count()

    def close(self) -> None:
        with self._lock:
            self._kills = 0
            if self._timer is not None:
                self._timer.cancel()

    def _forget(self, replica: int, rank: int) -> None:
        """A replica ends with any of its ranks."""
        for member in [member for member in self._pids if member[0] == replica and (replica != SERVING or member[1] == rank)]:
            del self._pids[member]
        self._idle[replica] += replica != SERVING

    def _count(self) -> None:
        """Towards the next strike, which falls within the next two steps or so. The step just told of may have been a long one: it was
        done again, or somebody joined in it."""
        self._steps -= 1
        if not self._steps and self.killed.total() < self._kills:
            self._timer = threading.Timer(self._random.uniform(0, 2 * statistics.median(self._paces)), self._strike)
            self._timer.daemon = True
            self._timer.start()

    def _strike(self) -> None:
        with self._lock:
            self._steps = self._random.randint(1, APART)
            for member in self._chosen():
                with suppress(ProcessLookupError):
                    os.kill(self._pids[member], signal.SIGKILL)
                    self.killed["server" if member[0] == SERVING else f"replica {member[0]}"] += 1
            killed = self.killed.total()
        self._told(killed)

    def _chosen(self) -> list[Member]:
        here = [member for member in sorted(self._pids) if self._idle[member[0]] < TRIES - 1]
        left = self._kills - self.killed.total()
        chance, one, two = self._random.random(), *_AT_ONCE
        count = 1 if chance < one else 2 if chance < two else len(here)
        return self._random.sample(here, min(count, len(here), max(0, left)))
