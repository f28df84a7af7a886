"""The second home in a real object store, which goes away and comes back."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from plait import events, spec
from plait.cluster.copier import Copier
from plait.train import manifest
from plait.train.home import Home
from plait.train.restore import restore
from tests.store import servers
from tests.train.test_second_home import same, save, saved

pytestmark = pytest.mark.slow


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[servers.Server]:
    (tmp_path / "server").mkdir()
    with servers.running(servers.seaweed(tmp_path / "server")) as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        yield server


def test_a_copy_outlives_the_server_that_takes_it_and_the_disk_that_it_is_of(server: servers.Server, tmp_path: Path) -> None:
    folder, url = tmp_path / "checkpoints", f"{server.url}/run"
    told: list[events.Event] = []
    failed = threading.Event()

    def tell(event: events.Event) -> None:
        told.append(event)
        if isinstance(event, events.CopyFailed):
            failed.set()

    with Copier(tell, folder, spec.Checkpoint(copy_to=url, keep=1)) as copier:
        save(folder, 100)
        copier.on(saved(100))
        while not told:
            failed.wait(0.05)
        server.kill()
        path = save(folder, 200)
        copier.on(saved(200))
        assert failed.wait(60)
        server.start()
    assert [(type(event), event.step) for event in told] == [  # type: ignore[attr-defined]
        (events.Copied, 100),
        (events.CopyFailed, 200),
        (events.Copied, 200),
    ]
    assert isinstance(told[-1], events.Copied)
    assert told[-1].url == f"{url}/step-00000200"
    home = Home.at(url)
    assert home.seen() == [200]
    home.verify(200)
    kept = Path(shutil.move(path, tmp_path / "kept"))
    found = restore(folder, home, [])
    assert found.checkpoint == folder / manifest.name(200)
    assert same(kept, found.checkpoint)
