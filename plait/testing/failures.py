"""Failures on purpose, as listeners: they learn who works from Joined events and strike when something is recorded."""

from __future__ import annotations

import os
import signal

from plait import events


class SignalAt:
    """Sends a signal to a rank of a replica, or to this process, when an event of `kind` tells of `step`."""

    def __init__(
        self,
        step: int,
        number: int = signal.SIGKILL,
        replica: int | None = None,
        kind: type[events.Step] | type[events.Saved] = events.Step,
        rank: int = 0,
    ) -> None:
        self._step = step
        self._number = number
        self._member = None if replica is None else (replica, rank)
        self._kind = kind
        self._pids: dict[tuple[int, int], int] = {}

    def on(self, event: events.Event) -> None:
        if isinstance(event, events.Joined):
            self._pids[event.replica, event.rank] = event.pid
        elif isinstance(event, self._kind) and event.step == self._step:
            os.kill(os.getpid() if self._member is None else self._pids[self._member], self._number)

    def close(self) -> None:
        """Nothing is held."""
