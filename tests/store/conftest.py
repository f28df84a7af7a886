"""A place of each test's own in a storage system."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from plait import store
from tests.store.park import Park


@pytest.fixture
def url(system: str, park: Park, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """Of the system that the test is parametrised by."""
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
