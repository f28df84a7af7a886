"""The servers of a session of tests, each started when it is first asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from tests.store import servers
from tests.store.servers import Server

STARTED = {
    "redis": servers.redis,
    "memcached": servers.memcached,
    "s3": servers.seaweed,
    "gs": servers.google,
    "mongodb": servers.mongodb,
    "cassandra": servers.cassandra,
    "hdfs": servers.hadoop,
    "hf": servers.hub,
}


class Park:
    """By the scheme of the URLs that a server serves."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder, self._stack = folder, stack
        self._servers: dict[str, Server] = {}

    def __call__(self, system: str) -> Server:
        if system == "webhdfs":  # another door of the same server
            behind = self("hdfs")
            return replace(behind, url=behind.environment[servers.WEB])
        if system not in self._servers:
            folder = self._folder / system
            folder.mkdir(exist_ok=True)
            self._servers[system] = self._stack.enter_context(servers.running(self._made(system, folder)))
        return self._servers[system]

    def _made(self, system: str, folder: Path) -> Server:
        if system != "alluxio":
            return STARTED[system](folder)
        behind = self("s3").environment
        return servers.alluxio(folder, behind["AWS_ENDPOINT_URL"], behind["AWS_ACCESS_KEY_ID"], behind["AWS_SECRET_ACCESS_KEY"])


@pytest.fixture(scope="session")
def park(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Park]:
    with ExitStack() as stack:
        yield Park(tmp_path_factory.mktemp("servers"), stack)
