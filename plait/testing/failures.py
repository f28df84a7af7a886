"""Failures on purpose, as listeners: they learn who works from Joined events and strike when something is recorded."""

from __future__ import annotations

import os
import signal
import threading

from plait import events


class SignalAt:
    """Sends a signal to a rank of a replica, or to this process, when an event of `kind` first tells of `step`."""

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
        self._struck = False

    def on(self, event: events.Event) -> None:
        if isinstance(event, events.Joined):
            self._pids[event.replica, event.rank] = event.pid
        elif isinstance(event, self._kind) and event.step == self._step and not self._struck:
            self._struck = True
            os.kill(os.getpid() if self._member is None else self._pids[self._member], self._number)

    def close(self) -> None:
        """Nothing is held."""


class CutOff(BaseException):
    """The launching process ended, as far as its run is concerned."""


class CutOffAt:
    """Ends a run, and nothing is saved for it, when an event of `kind` first tells of `step` or a later one: raises CutOff."""

    def __init__(self, step: int, kind: type[events.Step] | type[events.Saved] = events.Step) -> None:
        self._step = step
        self._kind = kind

    def on(self, event: events.Event) -> None:
        if isinstance(event, self._kind) and event.step >= self._step:
            raise CutOff

    def close(self) -> None:
        """Nothing is held."""


class PauseAt(SignalAt):
    """Stops a rank of a replica for some seconds when a step is recorded: a straggler, as sudden as they are."""

    def __init__(self, step: int, seconds: float, replica: int, rank: int = 0) -> None:
        super().__init__(step, signal.SIGSTOP, replica, rank=rank)
        self._paused = replica, rank
        self._seconds = seconds
        self._timer: threading.Timer | None = None

    def on(self, event: events.Event) -> None:
        pausing = not self._struck
        super().on(event)
        if self._struck and pausing:
            self._timer = threading.Timer(self._seconds, self.close)
            self._timer.start()

    def close(self) -> None:
        """Let it go on."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            os.kill(self._pids[self._paused], signal.SIGCONT)
