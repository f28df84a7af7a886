"""The record of a run: each event is journaled first, then told to listeners.

ledger ─────────┐
disk watch ─────┼──event──▶ Record ──▶ events.jsonl, then each listener
...             ┘  one at a time, from any thread
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

from plait.errors import Interrupted
from plait.events import Event, Failed, Step
from plait.ledger.journal import Journal
from plait.watch.listener import Listener, Listeners
from plait.watch.metrics import void_after


class Record:
    """Called with each event. A run that ends by an error leaves a Failed; then the listeners are closed."""

    def __init__(self, journal: Path, listeners: Iterable[Listener]) -> None:
        self._journal = Journal(journal)
        self._listeners = Listeners(listeners)
        self._one_at_a_time = threading.RLock()
        self._step = 0
        self._closed = False

    def __call__(self, event: Event) -> None:
        with self._one_at_a_time:
            if self._closed:
                return
            self._count(event)
            fine = self._journal.trouble is None
            self._journal.append(event)
            if self._journal.trouble and fine:
                print(f"plait: {self._journal.trouble}", file=sys.stderr)
            self._listeners(event)

    def add(self, listener: Listener) -> None:
        """Another one, told of what comes from here on."""
        with self._one_at_a_time:
            self._listeners.add(listener)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if isinstance(error, Exception) and not isinstance(error, Interrupted):
            self(Failed(time.time(), self._step, str(error) or type(error).__name__))
        with self._one_at_a_time:
            self._closed = True
            self._journal.close()
        self._listeners.close()

    def _count(self, event: Event) -> None:
        """The last step that counts."""
        if isinstance(event, Step):
            self._step = event.step
        elif (last := void_after(event)) is not None:
            self._step = last
