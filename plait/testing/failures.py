"""Failures on purpose, as listeners: they learn who works from Joined events and strike when something is recorded."""

from __future__ import annotations

import os
import signal

from plait import events


class SignalAt:
    """Sends a signal to a replica's process, or to this one, when an event of `kind` tells of `step`."""

    def __init__(
        self,
        step: int,
        number: int = signal.SIGKILL,
        replica: int | None = None,
        kind: type[events.Step] | type[events.Saved] = events.Step,
    ) -> None:
        self._step = step
        self._number = number
        self._replica = replica
        self._kind = kind
        self._pids: dict[int, int] = {}

    def on(self, event: events.Event) -> None:
        if isinstance(event, events.Joined):
            self._pids[event.replica] = event.pid
        elif isinstance(event, self._kind) and event.step == self._step:
            os.kill(os.getpid() if self._replica is None else self._pids[self._replica], self._number)

    def close(self) -> None:
        """Nothing is held."""
