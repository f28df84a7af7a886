"""Launching on this host: this process keeps the ledger, and a nursery forks the workers.

plait train ── ledger, journal, listeners
    └── nursery (torch imported)
          ├── replica 0
          ├── replica 1
          └── parameter server, where the strategy has one
"""

from __future__ import annotations

import os
import secrets
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import zmq

from plait.cluster.config import Config, Site
from plait.cluster.nursery import Nursery
from plait.cluster.signals import Signals
from plait.ledger.messages import SERVER, Asked, Closed, Member
from plait.ledger.state import Ledger
from plait.ledger.wire import LedgerServer

WORKER = "plait.cluster.worker:main"
LAST_WORDS = 1.0
"""Seconds for a message of a worker that has ended to arrive."""
GRACE = 3.0
"""Seconds that workers have to stop once the run has failed."""


def launch(site: Site, ledger: Ledger, nursery: Nursery) -> None:
    """Run to the end: `ledger.failure` tells how it went. A second SIGINT raises KeyboardInterrupt, and no worker survives it."""
    with _meeting_place() as place, Signals(hard=_raise_interrupt) as signals:
        server = LedgerServer(f"ipc://{place}/ledger", secrets.token_hex(16))
        try:
            Parent(site, ledger, nursery, server, place).run(signals)
        finally:
            server.close()


class Parent:
    """Watches workers and answers them."""

    def __init__(self, site: Site, ledger: Ledger, nursery: Nursery, server: LedgerServer, place: Path) -> None:
        self._ledger = ledger
        self._nursery = nursery
        self._server = server
        self._alive: dict[str, Member] = {}
        self._mourned: dict[Member, tuple[int, float]] = {}
        members = ledger.expected
        for member in members:
            worker = f"{place.name}/{member[0]}.{member[1]}"
            self._alive[worker] = member
            nursery.fork(worker, WORKER, asdict(self._config(site, member, len(members), place)))

    def run(self, signals: Signals) -> None:
        poller = zmq.Poller()
        poller.register(self._server.socket, zmq.POLLIN)
        poller.register(self._nursery, zmq.POLLIN)
        try:
            while (self._alive or self._mourned) and not self._ledger.ended:
                ready = dict(poller.poll(100))
                self._answer()
                self._watch(self._nursery.fileno() in ready)
                self._pass_on(signals)
        finally:
            self._part(poller)

    def _config(self, site: Site, member: Member, workers: int, place: Path) -> Config:
        serving = SERVER in self._ledger.expected
        return Config(
            run=site.run,
            folder=str(site.folder),
            prepared=str(site.prepared),
            member=member,
            local_rank=max(0, member[0]) * self._ledger.plan.ranks + member[1],
            workers_here=workers - 1 if serving else workers,
            ledger=self._server.address,
            token=self._server.token,
            store=str(place),
            one_host=True,
            server=f"ipc://{place}/server" if serving else None,
            resume=str(site.resume) if site.resume else None,
        )

    def _answer(self) -> None:
        for member, message in self._server.receive():
            self._server.send(self._ledger.handle(member, message))

    def _watch(self, ready: bool) -> None:
        """Take note of workers that ended; one that died without a word is lost, its peers' complaints alone are no reason."""
        for message in self._nursery.messages() if ready else []:
            worker = message.get("ended")
            if worker in self._alive:
                self._mourned[self._alive.pop(worker)] = message["status"], time.monotonic()
        for member, (status, since) in list(self._mourned.items()):
            killed = status < 0
            if self._ledger.has_spoken(member):
                del self._mourned[member]
            elif killed or time.monotonic() > since + LAST_WORDS:
                del self._mourned[member]
                self._server.send(self._ledger.lose(member, _how_it_ended(status)))
        if not self._alive and not self._mourned and not self._ledger.ended:
            self._server.send(self._ledger.believe_echoes())

    def _pass_on(self, signals: Signals) -> None:
        while request := signals.take():
            self._ledger.handle(SERVER, Asked(request))

    def _part(self, poller: zmq.Poller) -> None:
        """Wait for workers to end by themselves; after a failure they have GRACE seconds."""
        failed = not self._ledger.ended or self._ledger.failure is not None
        if failed:
            self._server.send([(member, Closed("the run has failed")) for member in self._alive.values()])
        end = time.monotonic() + GRACE
        while self._alive:
            ready = dict(poller.poll(50))
            if self._nursery.fileno() in ready:
                for message in self._nursery.messages():
                    self._alive.pop(message.get("ended", ""), None)
            if failed and time.monotonic() > end:
                for worker in self._alive:
                    self._nursery.signal(worker, signal.SIGKILL)
                end = float("inf")


@contextmanager
def _meeting_place() -> Iterator[Path]:
    """A folder for sockets and the store, which only this user can enter."""
    with tempfile.TemporaryDirectory(prefix="plait-") as place:
        os.chmod(place, 0o700)
        yield Path(place)


def _how_it_ended(status: int) -> str:
    if status >= 0:
        return f"its process ended with status {status}"
    try:
        return f"its process was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"its process was killed by signal {-status}"


def _raise_interrupt() -> None:
    print("interrupted twice: stopping at once", file=sys.stderr)
    raise KeyboardInterrupt
