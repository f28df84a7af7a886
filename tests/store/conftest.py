"""Each storage system with a server of its own for the session, and its URL with what a client needs in the environment."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from plait import store
from tests.store import servers
from tests.store.servers import Server

STARTED = {"redis": servers.redis, "memcached": servers.memcached, "s3": servers.seaweed, "gs": servers.google}


class Park:
    """The session's servers, each started when it is first asked for."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder, self._stack = folder, stack
        self._servers: dict[str, Server] = {}

    def __call__(self, system: str) -> Server:
        if system not in self._servers:
            folder = self._folder / system
            folder.mkdir(exist_ok=True)
            self._servers[system] = self._stack.enter_context(servers.running(STARTED[system](folder)))
        return self._servers[system]


@pytest.fixture(scope="session")
def park(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Park]:
    with ExitStack() as stack:
        yield Park(tmp_path_factory.mktemp("servers"), stack)


@pytest.fixture
def server(park: Park, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Server:
    """The server of the system that the test is parametrised by, known to the environment."""
    server = park(request.param)
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return server


@pytest.fixture
def url(system: str, park: Park, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A place of the test's own in a system."""
    own = request.node.name.translate(str.maketrans("[]/", "---"))
    if system == "file":
        return str(tmp_path / "store")
    if system == "memory":
        return f"memory://{own}"
    server = park(system)
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return f"{server.url}/{own}"


@pytest.fixture
def home(url: str) -> Iterator[store.Store]:
    opened = store.at(url)
    yield opened
    opened.close()
