"""What failures cost: from a kill to the next committed step, a joiner's time, a hang's, and what being ready for all that costs."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from place import MIDDLE, SMALL, Figure, Place

from plait import events, spec
from plait.cluster import local
from plait.cluster.faults import Fault
from plait.cluster.nursery import Nursery
from plait.ledger import journal
from plait.tasks.pretrain import train
from plait.testing.failures import SignalAt

RECOVERY, JOIN_STEP, JOIN_TIME, MEMBERSHIP, FOUND = 0.5, 2.0, 3.0, 1.01, 2.0
LIMIT = 4.0
"""Seconds after which a worker hangs."""


def measure(place: Place) -> list[Figure]:
    with Nursery() as nursery:
        runs = Runs(place, nursery)
        return [*runs.recovery(), *runs.joiner(), runs.membership(), runs.hang()]


class Runs:
    def __init__(self, place: Place, nursery: Nursery) -> None:
        self._place = place
        self._nursery = nursery
        self._rounds = place.effort.rounds
        self._steps = 10

    def recovery(self) -> list[Figure]:
        """The step that the two others do again is taken off: what is left is finding out, meeting, and what was under way."""
        taken, void, again = [], [], []
        for _ in range(self._rounds):
            usual = _usual(self._run(SMALL, 2, elastic={}))
            history = self._run(SMALL, 3, listeners=[SignalAt(5, replica=1)])
            lost = next(event for event in history if isinstance(event, events.Lost))
            struck = next(event.time for event in history if isinstance(event, events.Step) and event.step == 5)
            after = next(event for event in history if isinstance(event, events.Step) and event.time > lost.time)
            taken.append(after.time - struck - usual)
            before = max(event.step for event in history if isinstance(event, events.Step) and event.time < lost.time)
            void.append(float(len(events.committed(history)) != self._steps or after.step > before + 1))
            again.append(float(before + 2 - after.step))
        what = "kill -9 of one of 3 replicas, 10M parameters: to the next committed step, less one step of 2 replicas, s"
        return [
            Figure.of(what, RECOVERY, taken, at_least=False),
            Figure.of("committed steps lost by it", 0, void, at_least=False),
            Figure.of("units done again by it", 1, again, at_least=False),
        ]

    def joiner(self) -> list[Figure]:
        """One of two dies; the other's step in which it hands over its state, against its steps alone."""
        ratios, times = [], []
        for _ in range(self._rounds):
            usual = _usual(self._run(MIDDLE, 1, batch=4))
            history = self._run(MIDDLE, 2, batch=4, listeners=[SignalAt(4, replica=1)])
            lost = next(event for event in history if isinstance(event, events.Lost))
            joining = next(event for event in history if isinstance(event, events.Step) and event.shares.get("1") == [])
            ratios.append(joining.seconds / usual)
            times.append(joining.time - lost.time)
        return [
            Figure.of("a joiner, 25M parameters: the other's step meanwhile / a usual one", JOIN_STEP, ratios, at_least=False),
            Figure.of(
                "a joiner: from the fork to its first share, steps of about 1 s, s",
                JOIN_TIME,
                times,
                at_least=False,
            ),
        ]

    def membership(self) -> Figure:
        """Against the same without pulse, progress, and looking for calls."""
        ratios = []
        for _ in range(self._rounds):
            watched = _usual(self._run(SMALL, 2, batch=4))
            local.WORKER, kept = "elastic:still", local.WORKER
            try:
                bare = _usual(self._run(SMALL, 2, batch=4))
            finally:
                local.WORKER = kept
            ratios.append(watched / bare)
        return Figure.of("being elastic when nothing fails: step / step without", MEMBERSHIP, ratios, at_least=False)

    def hang(self) -> Figure:
        """From the last step before to the first after."""
        found = []
        for _ in range(self._rounds):
            fault = Fault("computing", 6, 1, action="hang")
            history = self._run(SMALL, 2, elastic={"hang_after": LIMIT}, faults=[asdict(fault)])
            before, after = (next(e.time for e in history if isinstance(e, events.Step) and e.step == number) for number in (5, 6))
            found.append(after - before - LIMIT)
        return Figure.of("a hang found and replaced: beyond the stated limit, s", FOUND, found, at_least=False)

    def _run(self, model: dict[str, Any], replicas: int, batch: int = 12, **how: Any) -> list[events.Event]:
        settings = {"duration": f"{self._steps} steps", "batch": batch, "micro_batch": 2}
        sections = {"layout": {"replicas": replicas}, "elastic": how.pop("elastic", {}), "cluster": {"threads": 1}}
        run_file = self._place.run_file(model, train=settings, **sections)
        out = self._place.new("out")
        train(spec.load(run_file), out, nursery=self._nursery, quiet=True, **how)
        return journal.read(out / "events.jsonl")


def _usual(history: Sequence[events.Event]) -> float:
    """Seconds of a step, from one commit to the next, without the first ones."""
    times = [step.time for step in events.committed(history)][3:]
    return statistics.median(later - earlier for earlier, later in itertools.pairwise(times))


def still(values: dict[str, Any]) -> int:
    """A worker without what elasticity takes in each step."""
    from plait.cluster import worker
    from plait.ledger.progress import Progress
    from plait.ledger.wire import LedgerClient

    patched: Any = worker.Pulse
    patched._run = lambda pulse: None
    patched = Progress
    patched.__call__ = lambda *_: None
    patched = LedgerClient
    patched.called = lambda client: False
    return worker.main(values)
