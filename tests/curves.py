"""Curves of tiny runs: a reference is trained once a session, and promise 1 says how near two curves are."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from plait import events, spec
from plait.cluster import local
from plait.cluster.faults import Fault
from plait.cluster.nursery import Nursery
from plait.proof.coverage import verify_run
from plait.tasks.pretrain import train
from plait.watch.listener import Listener
from tests.runs import differences, history_of, steps_of

LOSS, GRAD_NORM = 1e-9, 1e-7


class Curves:
    """Trains runs into folders of one test, by name, and proves of each that nothing was lost or used twice.

    build: a run from changes. settings: of every run, which a test may change. kept: a folder of the session's, where runs of one
    undisturbed process are kept: a test that wants one again is given a copy.
    """

    def __init__(self, folder: Path, kept: Path, nursery: Nursery, build: Callable[..., spec.Run], **settings: Any) -> None:
        self.folder = folder
        self._kept, self._nursery, self._build, self._settings = kept, nursery, build, settings

    def run(self, **changes: Any) -> spec.Run:
        return self._build(**{**self._settings, **changes})

    def __call__(self, name: str, *strikes: Fault | Listener, **changes: Any) -> list[events.Step]:
        """The committed steps of a run; it goes on where its folder holds a part of it. strikes: what happens to it meanwhile."""
        run, out = self.run(**changes), self.folder / name
        told = json.dumps([local.WORKER, run.resolved()], sort_keys=True)
        kept = self._kept / hashlib.sha256(told.encode()).hexdigest()[:16]
        reference = run.layout.workers == 1 and not run.sync.serves and not strikes and not out.exists()
        if reference and kept.exists():
            shutil.copytree(kept, out)
            return steps_of(out)
        faults = [asdict(strike) for strike in strikes if isinstance(strike, Fault)]
        listeners = [strike for strike in strikes if not isinstance(strike, Fault)]
        train(run, out, listeners=listeners, nursery=self._nursery, quiet=True, faults=faults)
        proof = verify_run(out)
        assert proof.wrong == []
        assert proof.finished
        if reference:
            shutil.copytree(out, kept)
        return steps_of(out)

    def of(self, name: str, kind: type) -> list[Any]:
        """A run's events of a kind."""
        return [event for event in history_of(self.folder / name) if isinstance(event, kind)]

    def lost(self, name: str) -> list[tuple[int, int]]:
        """(replica, rank) of the processes that a run lost."""
        return [(event.replica, event.rank) for event in self.of(name, events.Lost)]


def assert_one_curve(one: list[events.Step], other: list[events.Step]) -> None:
    loss, grad_norm = differences(one, other)
    assert loss <= LOSS
    assert grad_norm <= GRAD_NORM


def spread(layout: dict[str, Any]) -> dict[str, Any]:
    """As changes of a run."""
    return {f"layout__{axis}": size for axis, size in layout.items()}
