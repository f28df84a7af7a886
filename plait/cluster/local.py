"""Launching on this host: this process keeps the ledger, and a nursery forks the workers.

plait train ── ledger, journal, listeners
    └── nursery (torch imported)
          ├── replica 0
          ├── replica 1
          └── parameter servers, where the strategy has them
"""

from __future__ import annotations

import os
import secrets
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import zmq

from plait.cluster.config import Config, Site
from plait.cluster.nursery import Nursery
from plait.cluster.signals import Signals
from plait.cluster.status import Status
from plait.cluster.watchdog import Watchdog
from plait.ledger.messages import SERVING, Asked, Beat, Closed, Member, Vote
from plait.ledger.state import Ledger
from plait.ledger.wire import LedgerServer

WORKER = "plait.cluster.worker:main"
FAULTY = "plait.cluster.faults:main"
"""One that fails where it is told to."""
LAST_WORDS = 1.0
"""Seconds for a message of a worker that has ended to arrive."""
GRACE = 3.0
"""Seconds that workers have to stop once the run has failed."""


def launch(site: Site, ledger: Ledger, nursery: Nursery, status: Status) -> None:
    """Run to the end: `ledger.failure` tells how it went. A second SIGINT raises KeyboardInterrupt, and no worker survives it."""
    with _meeting_place() as place, Signals(hard=_raise_interrupt) as signals:
        server = LedgerServer(f"ipc://{place}/ledger", secrets.token_hex(16))
        try:
            Parent(site, ledger, nursery, server, place, status).run(signals)
        finally:
            server.close()


class Parent:
    """Watches workers and answers them; starts those again that the ledger wants back."""

    def __init__(self, site: Site, ledger: Ledger, nursery: Nursery, server: LedgerServer, place: Path, status: Status) -> None:
        self._site = site
        self._ledger = ledger
        self._nursery = nursery
        self._server = server
        self._place = place
        self._status = status
        self._attempts: Counter[Member] = Counter()
        self._alive: dict[str, Member] = {}
        self._wanted: set[Member] = set()
        self._watchdog = Watchdog(site.hang_after)
        self._mourned: dict[Member, tuple[int, float]] = {}
        for member in ledger.expected:
            if member not in ledger.plan.late:
                self._fork(member)

    def run(self, signals: Signals) -> None:
        poller = zmq.Poller()
        poller.register(self._server.socket, zmq.POLLIN)
        poller.register(self._nursery, zmq.POLLIN)
        try:
            while (self._alive or self._mourned or self._wanted) and not self._ledger.ended:
                ready = dict(poller.poll(100))
                self._answer()
                self._watch(self._nursery.fileno() in ready)
                self._end_hangs()
                self._replace()
                self._pass_on(signals)
        except BaseException:
            for worker in self._alive:
                self._nursery.signal(worker, signal.SIGKILL)
            raise
        finally:
            self._part(poller)

    def _fork(self, member: Member) -> None:
        worker = f"{self._place.name}/{member[0]}.{member[1]}.{self._attempts[member]}"
        self._alive[worker] = member
        self._watchdog.started(member)
        self._ledger.started(member)
        self._nursery.fork(worker, FAULTY if self._site.faults else WORKER, asdict(self._config(member)))
        self._attempts[member] += 1

    def _config(self, member: Member) -> Config:
        site, plan, place = self._site, self._ledger.plan, self._place
        first = not self._attempts[member] and member not in plan.late
        resume = site.resume if first else None  # whoever comes later is told what to begin from
        return Config(
            run=site.run,
            folder=str(site.folder),
            prepared=str(site.prepared),
            member=member,
            local_rank=0 if member[0] == SERVING else member[0] * plan.ranks + member[1],
            workers_here=len(plan.workers),
            ledger=self._server.address,
            token=self._server.token,
            store=str(place),
            one_host=True,
            listen=f"ipc://{place}/server-{member[1]}.{self._attempts[member]}" if member[0] == SERVING else "",
            resume=str(resume) if resume else None,
            attempt=self._attempts[member],
            elastic=plan.elastic,
            faults=site.faults,
        )

    def _answer(self) -> None:
        for member, message in self._server.receive():
            if isinstance(message, Beat):
                self._watchdog.hear(member, message)
                self._status.beat(member, message)
            else:
                if isinstance(message, Vote) and message.did:
                    self._watchdog.worked(member)
                self._server.send(self._ledger.handle(member, message))

    def _watch(self, ready: bool) -> None:
        """Take note of workers that ended; one that died without a word is lost, its peers' complaints alone are no reason."""
        for message in self._nursery.messages() if ready else []:
            worker = message.get("ended")
            if worker in self._alive:
                member = self._alive.pop(worker)
                self._watchdog.ended(member)
                self._mourned[member] = message["status"], time.monotonic()
        for member, (status, since) in list(self._mourned.items()):
            killed = status < 0
            if self._ledger.has_spoken(member):
                del self._mourned[member]
            elif killed or time.monotonic() > since + LAST_WORDS:
                del self._mourned[member]
                self._server.send(self._ledger.lose(member, self._ledger.last_words(member) or _how_it_ended(status)))

    def _end_hangs(self) -> None:
        """Name who hangs, and kill it: what follows is what follows on any death."""
        for hang in self._watchdog.look(self._ledger.pid):
            self._ledger.hung(hang.member, hang.seconds, hang.doing, hang.stack)
            for worker, member in self._alive.items():
                if member == hang.member:
                    self._nursery.signal(worker, signal.SIGKILL)

    def _replace(self) -> None:
        """Start members again, once what is left of them has ended: of a replica that lost a rank, all ranks."""
        self._wanted.update(self._ledger.take_wanted())
        for worker, member in self._alive.items():
            if member in self._wanted:
                self._nursery.signal(worker, signal.SIGKILL)
        for member in sorted(self._wanted - set(self._alive.values()) - set(self._mourned)):
            self._wanted.discard(member)
            self._fork(member)

    def _pass_on(self, signals: Signals) -> None:
        while request := signals.take():
            self._ledger.handle((SERVING, 0), Asked(request))

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
