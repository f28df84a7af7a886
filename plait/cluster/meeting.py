"""How processes that a launcher started find one another, and how rank 0 leads them."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import tempfile
import threading
import time
import traceback
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from torch.distributed import PrefixStore, Store

from plait import spec
from plait.cluster import worker
from plait.cluster.config import Config, Site
from plait.cluster.environment import World
from plait.cluster.status import Status
from plait.cluster.watchdog import Watchdog
from plait.ledger.messages import SERVING, Beat, Left, Member, Message, Outbox
from plait.ledger.state import Ledger
from plait.ledger.wire import LedgerServer
from plait.sync.group import local_store, network_store

PATIENCE = timedelta(hours=12)
"""How long others wait for rank 0, which may be preparing data."""
LAST_WORDS = 2.0


class Meeting:
    """The store that all processes of a launcher share."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.place = world.address or _place(world)
        self._store = PrefixStore(f"plait-{world.job}", self._open())

    def announce(self, words: dict[str, Any]) -> None:
        """Rank 0 to all: the configuration, or a reason not to start."""
        self._store.set("announcement", json.dumps(words))

    def hear(self) -> dict[str, Any]:
        self._store.wait(["announcement"], PATIENCE)
        heard: dict[str, Any] = json.loads(self._store.get("announcement"))
        return heard

    def tell(self, exit_code: int) -> None:
        """Rank 0 tells how it ended."""
        self._store.set("outcome", str(exit_code))

    def part(self, exit_code: int | None = None) -> int:
        """Rank 0 tells how it ended, if it has not yet, and stays until all have heard; the others return what it told."""
        if self.world.rank == 0:
            self.tell(exit_code or 0)
            end = time.monotonic() + LAST_WORDS
            while self._store.add("heard", 0) < self.world.size - 1 and time.monotonic() < end:
                time.sleep(0.02)
            if self.world.address is None:
                shutil.rmtree(self.place, ignore_errors=True)  # a later job of the same name shall not meet in ours
            return exit_code or 0
        try:
            self._store.wait(["outcome"], timedelta(seconds=30))
            outcome = int(self._store.get("outcome"))
            self._store.add("heard", 1)
        except RuntimeError:  # rank 0 went without a word, and the store with it
            return 1
        return outcome

    def _open(self) -> Store:
        if self.world.address is None:
            return local_store(Path(self.place))
        host, _, port = self.world.address.rpartition(":")
        return network_store(host, int(port), self.world.serving and self.world.rank == 0)


def lead(meeting: Meeting, site: Site, ledger: Ledger, status: Status) -> None:
    """Rank 0: keep the ledger in a thread, tell the others what to do, and do it too."""
    world = meeting.world
    server = LedgerServer("tcp://127.0.0.1:*" if world.one_host else f"tcp://{_own_address(world)}:*", secrets.token_hex(16))
    keeping = _Keeper(ledger, server, site.hang_after, status)
    keeper = threading.Thread(target=keeping.keep, daemon=True)
    keeper.start()
    config = _config(meeting, site, server)
    meeting.announce({"config": asdict(config)})
    worker.main(asdict(config))
    keeper.join(LAST_WORDS if not ledger.ended else None)
    if not ledger.ended:
        server.send(ledger.believe_echoes())
    server.close()


class _Keeper:
    """Beside the ledger: hears pulses, and ends the run where one hangs, as nobody is here to replace it."""

    def __init__(self, ledger: Ledger, server: LedgerServer, hang_after: float, status: Status) -> None:
        self._ledger, self._server, self._status = ledger, server, status
        self._watchdog = Watchdog(hang_after)
        for member in ledger.expected:
            self._watchdog.started(member)

    def keep(self) -> None:
        """All others wait for this thread: should it fail, the process ends, and the launcher sees it."""
        try:
            self._server.serve(self._handle, self._ended)
        except BaseException:
            traceback.print_exc()
            os._exit(1)

    def _handle(self, member: Member, message: Message) -> Outbox:
        if isinstance(message, Beat):
            self._watchdog.hear(member, message)
            self._status.beat(member, message)
            return []
        if isinstance(message, Left):
            self._watchdog.ended(member)
        return self._ledger.handle(member, message)

    def _ended(self) -> bool:
        for hang in self._watchdog.look(lambda member: None):
            self._ledger.hung(hang.member, hang.seconds, hang.doing, hang.stack)
            self._server.send(self._ledger.lose(hang.member, f"it made no progress for {hang.seconds:.0f} s"))
            if hang.member == (0, 0):  # this process, which could not hear of it
                os._exit(1)
        return self._ledger.ended


def follow(meeting: Meeting, heard: dict[str, Any]) -> None:
    """Any other rank: do what rank 0 announced. The last processes are parameter servers, where there are some."""
    config = Config(**heard["config"])
    world, layout = meeting.world, spec.parse(config.run).layout
    beyond = world.rank - layout.workers
    member = divmod(world.rank, layout.ranks) if beyond < 0 else (SERVING, beyond)
    listen = "tcp://127.0.0.1:*" if config.one_host else "tcp://0.0.0.0:*"
    worker.main(asdict(replace(config, member=member, local_rank=world.local_rank, listen="" if beyond < 0 else listen)))


def _config(meeting: Meeting, site: Site, server: LedgerServer) -> Config:
    world = meeting.world
    return Config(
        run=site.run,
        folder=str(site.folder),
        prepared=str(site.prepared),
        member=(0, 0),
        local_rank=world.local_rank,
        workers_here=world.local_size,
        ledger=server.address,
        token=server.token,
        store=meeting.place,
        one_host=world.one_host,
        listen="",
        resume=str(site.resume) if site.resume else None,
    )


def _own_address(world: World) -> str:
    """The interface that others reach rank 0 by; it is the one they were told."""
    assert world.address is not None
    return world.address.rpartition(":")[0]


def _place(world: World) -> str:
    """A folder of this user and this job, for processes of one host."""
    place = Path(tempfile.gettempdir()) / f"plait-{os.getuid()}-{world.job}"
    place.mkdir(mode=0o700, exist_ok=True)
    return str(place)
