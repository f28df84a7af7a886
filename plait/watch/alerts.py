"""Alerts: what goes wrong is told to people, by a command or a webhook.

    event ──▶ an alert? asked for? not the same again at once? ──▶ a courier each: queue ──thread──▶ command
                                                                                  queue ──thread──▶ webhook

The training costs an alert a put into a queue.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from plait import events, spec
from plait.errors import PlaitError, RunFileError
from plait.events import Event
from plait.watch.channels import Channel, Undelivered, open_channels
from plait.watch.console import line
from plait.watch.courier import Courier

Severity = Literal["info", "warning", "critical"]
_LONGEST = 1000  # characters of a text


@dataclass(frozen=True)
class Alert:
    """about: which worker or folder, among alerts of one kind. repeated: equal ones since the last that was told."""

    kind: str
    severity: Severity
    text: str
    time: float
    event: Event | None = None
    about: str = ""
    run: str = ""
    host: str = ""
    repeated: int = 0

    @property
    def body(self) -> bytes:
        return json.dumps(self.as_dict()).encode()

    @property
    def variables(self) -> dict[str, str]:
        """For a command's environment."""
        told = {key: value for key, value in self.as_dict().items() if key != "event"}
        return {f"PLAIT_ALERT_{key.upper()}": str(value) for key, value in told.items()}

    def as_dict(self) -> dict[str, Any]:
        names = ("kind", "severity", "text", "run", "host", "time", "repeated")
        event = None if self.event is None else json.loads(self.event.to_json())
        return {name: getattr(self, name) for name in names} | {"event": event}


class Alerts:
    """A listener. Raises RunFileError for a command or a webhook that cannot be used."""

    def __init__(self, settings: spec.Alerts, folder: Path, channels: Sequence[Channel] | None = None) -> None:
        self._settings = settings
        self._run = folder.resolve()
        self._couriers = [Courier(channel, settings.patience) for channel in (channels or open_channels(settings))]
        self._told: dict[tuple[str, str], float] = {}
        self._repeated: dict[tuple[str, str], int] = {}

    def on(self, event: Event) -> None:
        alert = alert_of(event)
        if alert is None or alert.kind not in self._settings.kinds:
            return
        equal = alert.kind + alert.severity, alert.about
        if event.time < self._told.get(equal, -float("inf")) + self._settings.every:
            self._repeated[equal] = self._repeated.get(equal, 0) + 1
            return
        self._told[equal] = event.time
        self.send(replace(alert, repeated=self._repeated.pop(equal, 0)))

    def send(self, alert: Alert) -> None:
        whole = addressed(alert, self._run)
        for courier in self._couriers:
            courier.take(whole)

    def close(self) -> None:
        """Wait for what is on its way, all couriers at once, and say what did not arrive."""
        for courier in self._couriers:
            courier.hurry()
        for courier in self._couriers:
            courier.close()


def addressed(alert: Alert, run: Path) -> Alert:
    """From this host, about the run of a folder."""
    return replace(alert, text=f"{run.name}: {alert.text}", run=str(run), host=socket.gethostname())


def rehearse(settings: spec.Alerts, folder: Path) -> Iterator[str]:
    """Send a test, one attempt by each channel; yields a line for each that took it. Raises RunFileError before any, PlaitError
    after all where one did not."""
    channels = open_channels(settings)
    if not channels:
        raise RunFileError('alerts names neither a command nor a webhook; write one, for example alerts.command = "notify.sh"')
    test = addressed(Alert("test", "info", "a test: alerts arrive", time.time()), folder.resolve())
    failed = []
    for channel in channels:
        began = time.perf_counter()
        try:
            channel.deliver(test)
        except Undelivered as failure:
            failed.append(f"alerts: {channel.name}: {failure}")
        else:
            yield f"{channel.name}: took the test in {time.perf_counter() - began:.2f} s"
    if failed:
        raise PlaitError("\n".join(failed))


def alert_of(event: Event) -> Alert | None:
    match event:
        case events.Failed():
            return _alert("run_failed", "critical", event)
        case events.Lost():
            return _alert("failure", "warning", event, f"{event.replica}.{event.rank}")
        case events.Hung():
            return _alert("hang", "warning", event, f"{event.replica}.{event.rank}")
        case events.Waiting():
            return _alert("waiting", "critical", event)
        case events.Straggler():
            return _alert("straggler", "info" if event.recovered else "warning", event, f"{event.replica}.{event.phase}")
        case events.Corrupted():
            return _alert("corruption", "critical", event, f"{event.replica}.{event.rank}")
        case events.Spiked():
            return _alert("spike", "warning", event)
        case events.Step(skipped=True):
            return _alert("nonfinite", "warning", event)
        case events.RolledBack():
            return _alert("rollback", "warning", event)
        case events.SaveFailed():
            return _alert("save_failed", "warning", event)
        case events.CopyFailed():
            return _alert("copy_failed", "warning", event)
        case events.Damaged():
            return _alert("damaged", "critical", event, event.path)
        case events.LowDisk():
            return _alert("low_disk", "critical" if event.free < event.checkpoint else "warning", event, event.folder)
        case events.Finished() | events.Stopped():
            return _alert("run_ended", "info", event)
    return None


def _alert(kind: spec.AlertKind, severity: Severity, event: Event, about: str = "") -> Alert:
    words = (line(event) or "").replace("\0", "").split()
    return Alert(kind, severity, " ".join(words)[:_LONGEST], event.time, event, about)
