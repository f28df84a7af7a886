"""What replicas send and wait for, by strategy; read from the events of whole runs."""

from __future__ import annotations

import os
import signal
import statistics
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from place import DEMO, SMALL, Figure, Place

from plait import events, spec
from plait.cluster.nursery import Nursery
from plait.ledger import journal
from plait.tasks.pretrain import train

WAITING, STRAGGLER, DILOCO, INT8 = 0.30, 1.5, 1 / 40, 0.27
SLOWED = 3
DUTY = 0.03
"""Seconds that a straggler computes before it stands still for twice as long."""


def measure(place: Place) -> list[Figure]:
    with Nursery(many=True) as nursery:
        runs = Runs(place, nursery)
        return [runs.waiting(), runs.straggler(), runs.diloco(), runs.int8()]


class Runs:
    """Trains for some steps and returns them, without the first ones, which warm up."""

    def __init__(self, place: Place, nursery: Nursery) -> None:
        self._place = place
        self._nursery = nursery
        self._steps = 8 if place.effort.tiny else 20

    def waiting(self) -> Figure:
        """Exposed against all communication, of the replica that waits more."""
        shares = []
        for _ in range(self._place.effort.rounds):
            steps = self._run(SMALL, {}, train={"batch": 32})
            ratios = [max(step.waited.values()) / max(step.communicating.values()) for step in steps if max(step.communicating.values())]
            shares.append(statistics.median(ratios))
        return Figure.of("waiting in sync / communicating, 2 replicas, 10M parameters", WAITING, shares, at_least=False)

    def straggler(self) -> Figure:
        """One of two workers computes a third of the time."""
        micro = {"batch": 32, "micro_batch": 4}
        ratios = []
        for _ in range(self._place.effort.rounds):
            server = _rate(self._run(DEMO, {"strategy": "server", "update": "asynchronous"}, train=micro, slowed=True))
            ratios.append(server / _rate(self._run(DEMO, {}, train=micro, slowed=True)))
        return Figure.of(f"asynchronous server / all-reduce, one worker slowed {SLOWED}x, tokens/s", STRAGGLER, ratios)

    def diloco(self) -> Figure:
        steps = 10 if self._place.effort.tiny else 100
        every = max(2, steps // 2)
        plain = self._run(DEMO, {}, steps=steps, warm=0)
        local = self._run(DEMO, {"strategy": "diloco", "every": f"{every} steps"}, steps=steps, warm=0)
        told = f"loss {_loss(local):.3f} after {steps} steps, all-reduce {_loss(plain):.3f}"
        goal = DILOCO if every == 50 else 1.0
        return Figure.of(
            f"diloco, every = {every} steps: bytes / all-reduce", goal, [_sent(local) / _sent(plain)], at_least=False, detail=told
        )

    def int8(self) -> Figure:
        plain, packed = (self._run(DEMO, {"compress": compress}, warm=0) for compress in ("none", "int8"))
        told = f"loss {_loss(packed):.3f}, fp32 {_loss(plain):.3f}"
        return Figure.of("int8: bytes / fp32", INT8, [_sent(packed) / _sent(plain)], at_least=False, detail=told)

    def _run(
        self,
        model: dict[str, Any],
        sync: dict[str, Any],
        train: dict[str, Any] | None = None,
        steps: int | None = None,
        warm: int = 4,
        slowed: bool = False,
    ) -> list[events.Step]:
        length = steps or self._steps
        settings = {"duration": f"{length} steps", "batch": 16, "micro_batch": 4, **(train or {})}
        run_file = self._place.run_file(model, train=settings, layout={"replicas": 2}, sync=sync, cluster={"threads": 1})
        return _trained(run_file, self._place.new("out"), self._nursery, slowed)[warm:]


def _trained(run_file: Path, out: Path, nursery: Nursery, slowed: bool) -> list[events.Step]:
    with straggling() as slow:
        train(spec.load(run_file), out, nursery=nursery, quiet=True, listeners=[slow] if slowed else [])
    return events.committed(journal.read(out / "events.jsonl"))


class Slow:
    """Stops replica 1 for two thirds of the time, from its first step on."""

    def __init__(self, over: threading.Event) -> None:
        self._over = over
        self._pid: int | None = None
        self._thread: threading.Thread | None = None

    def on(self, event: events.Event) -> None:
        if isinstance(event, events.Joined) and event.replica == 1:
            self._pid = event.pid
        if isinstance(event, events.Step) and self._thread is None:
            self._thread = threading.Thread(target=self._work, daemon=True)
            self._thread.start()

    def close(self) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()

    def _work(self) -> None:
        assert self._pid is not None
        while not self._over.wait(DUTY):
            if not _signal(self._pid, signal.SIGSTOP):
                return
            self._over.wait((SLOWED - 1) * DUTY)
            _signal(self._pid, signal.SIGCONT)


@contextmanager
def straggling() -> Any:
    over = threading.Event()
    slow = Slow(over)
    try:
        yield slow
    finally:
        slow.close()


def _signal(pid: int, number: int) -> bool:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def _rate(steps: list[events.Step]) -> float:
    """Tokens a second, by the clock."""
    return sum(step.tokens for step in steps[1:]) / (steps[-1].time - steps[0].time)


def _sent(steps: list[events.Step]) -> int:
    return sum(sum(step.sent.values()) for step in steps)


def _loss(steps: list[events.Step]) -> float:
    return statistics.fmean(step.loss for step in steps[-5:])
