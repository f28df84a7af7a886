"""Listeners: who is told of a run's events. None of them can stop or hold up the training.

    ledger ──event──▶ Listeners ──▶ console       at once
                        │      └──▶ tensorboard   at once, a line to a local file
                        ├── alerts ─▶ command, webhook: each by a courier, a thread behind a queue
                        └── Aside ──▶ wandb, mlflow, your own: each in a thread of its own, behind a queue

A listener that raises is reported once, on stderr, and dropped.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Protocol, Self

from plait import spec
from plait.errors import RunFileError
from plait.events import Event
from plait.model.own import check_call, load_object

_PATIENCE = 30.0  # seconds that a listener in a thread of its own has to send the rest when the run ends


class Listener(Protocol):
    """Told of each event, in order, then closed once."""

    def on(self, event: Event) -> None: ...

    def close(self) -> None: ...


class Listeners:
    """Several listeners as one callable and context manager; what one of them raises ends only its own listening."""

    def __init__(self, listeners: Iterable[Listener]) -> None:
        self._listeners = list(listeners)

    def add(self, listener: Listener) -> None:
        self._listeners.append(listener)

    def __call__(self, event: Event) -> None:
        for listener in list(self._listeners):
            try:
                listener.on(event)
            except Exception as error:
                self._listeners.remove(listener)
                _report(listener, error)

    def close(self) -> None:
        for listener in self._listeners:
            try:
                listener.close()
            except Exception as error:
                _report(listener, error)
        self._listeners = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class Aside:
    """Runs a slow listener in a thread of its own: being told of an event costs a put into a queue."""

    def __init__(self, listener: Listener, patience: float = _PATIENCE) -> None:
        self._listener = listener
        self._patience = patience
        self._events: SimpleQueue[Event | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._listen, name=f"listener {type(listener).__name__}", daemon=True)
        self._thread.start()

    def on(self, event: Event) -> None:
        self._events.put(event)

    def close(self) -> None:
        """Let it finish what it was told; after `patience` seconds the rest is given up, and said so."""
        self._events.put(None)
        self._thread.join(self._patience)
        if self._thread.is_alive():
            print(f"plait: {type(self._listener).__name__} did not finish within {self._patience:g} s and is left behind", file=sys.stderr)

    def _listen(self) -> None:
        with Listeners([self._listener]) as told:
            while (event := self._events.get()) is not None:
                told(event)


def build_listeners(watch: spec.Watch, folder: Path, run: spec.Run, log_every: int | None = None, quiet: bool = False) -> list[Listener]:
    """The console, unless `quiet`, and the listeners that [watch] and [alerts] ask for, in that order.

    folder: the run's. log_every: steps between two lines of the log; left out, it is taken from the run where that counts in steps.
    Raises RunFileError: an extra that is not installed, alerts that cannot be sent, a listener of your own that cannot be made.
    """
    from plait.watch.console import Console

    every = run.train.log_every
    console = Console(log_every or (int(every.amount) if every.unit == "steps" else 10))
    listeners: list[Listener] = [] if quiet else [console]
    if watch.tensorboard:
        from plait.watch.tensorboard import TensorBoard

        listeners.append(TensorBoard(folder / "tensorboard"))
    if watch.wandb is not None:
        from plait.watch.wandb import Wandb

        listeners.append(Aside(Wandb(watch.wandb, folder, run)))
    if watch.mlflow is not None:
        from plait.watch.mlflow import Mlflow

        listeners.append(Aside(Mlflow(watch.mlflow, folder, run)))
    if run.alerts.told:
        from plait.watch.alerts import Alerts

        listeners.append(Alerts(run.alerts, folder))
    return listeners + [Aside(_own(reference, folder, run)) for reference in watch.listeners]


def check_alerts(alerts: spec.Alerts) -> None:
    """Raises RunFileError for a command or a webhook that cannot be used."""
    if alerts.told:
        from plait.watch.channels import open_channels

        open_channels(alerts)


def _own(reference: str, folder: Path, run: spec.Run) -> Listener:
    make = load_object(reference, "watch.listeners")
    check_call(make, reference, "watch.listeners", folder, run)
    try:
        listener: Listener = make(folder, run)
    except Exception as error:
        raise RunFileError(f'watch.listeners = "{reference}": cannot be made: {type(error).__name__}: {error}') from error
    for method in ("on", "close"):
        if not callable(getattr(listener, method, None)):
            raise RunFileError(f'watch.listeners = "{reference}": has no method {method}(); a listener has on(event) and close()')
    return listener


def _report(listener: Listener, error: Exception) -> None:
    name = type(listener).__name__
    print(f"plait: listener {name} failed and is left out from here on: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
