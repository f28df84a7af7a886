"""A run whose data is elsewhere draws the curve of one whose data is here, also while what it reads from fails."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plait import events, spec
from plait.cluster.nursery import Nursery
from plait.errors import StorageError, UserError
from plait.store import at
from plait.tasks.pretrain import train
from tests.runs import differences, history_of, steps_of, tiny
from tests.store import servers
from tests.store.park import Park


def assert_one_curve(one: Path, other: Path) -> None:
    loss, grad_norm = differences(steps_of(one), steps_of(other))
    assert loss <= 1e-9
    assert grad_norm <= 1e-7


class At:
    """Does something once, when a step has been recorded."""

    def __init__(self, step: int, do: Callable[[], object]) -> None:
        self._step, self._do = step, do

    def on(self, event: events.Event) -> None:
        if isinstance(event, events.Step) and event.step == self._step:
            self._do()

    def close(self) -> None:
        """Nothing is kept open."""


def forget(cache: Path) -> None:
    """All blocks lose their place, as others' reading may make them, while processes look on."""
    for held in cache.glob("*/*.held"):
        with held.open("r+b") as file:
            file.write(bytes(held.stat().st_size))


@pytest.fixture
def local(tmp_path: Path, corpus: Path, prepared: Path, nursery: Nursery) -> Path:
    """The run to compare with."""
    train(tiny(corpus, prepared, train__duration="12 steps"), tmp_path / "local", nursery=nursery, quiet=True)
    return tmp_path / "local"


def far(corpus: Path, url: str, tmp_path: Path, **more: Any) -> spec.Run:
    cache = {"folder": str(tmp_path / "cache"), "gib": 1.0}
    return tiny(corpus, Path("unused"), train__duration="12 steps", data__prepared=url, data__cache=cache, **more)


def test_a_server_that_dies_and_comes_back_while_training_changes_nothing(
    tmp_path: Path, corpus: Path, local: Path, nursery: Nursery
) -> None:
    (tmp_path / "server").mkdir()
    with servers.running(servers.redis(tmp_path / "server", "--appendfsync", "always")) as redis:

        def fail() -> None:
            redis.kill()
            forget(tmp_path / "cache")
            threading.Timer(2, redis.start).start()

        train(far(corpus, redis.url, tmp_path, layout__replicas=2), tmp_path / "far", nursery=nursery, listeners=[At(4, fail)])
    assert any(held.read_bytes().strip(b"\0") for held in (tmp_path / "cache").glob("*/train-0.npy.held")), "fetched again since"
    assert_one_curve(local, tmp_path / "far")
    assert not [event for event in history_of(tmp_path / "far") if isinstance(event, events.Lost)]


@pytest.mark.slow
def test_data_that_is_damaged_stops_the_run_clearly_and_it_resumes_once_it_is_mended(
    tmp_path: Path, corpus: Path, local: Path, nursery: Nursery
) -> None:
    url = f"file://{tmp_path}/home"
    whole: dict[Path, bytes] = {}

    def damage() -> None:
        for path in (tmp_path / "home").glob("*/train-0.npy.blocks"):
            whole[path] = path.read_bytes()
            path.write_bytes(whole[path][:-1] + b"?")
        forget(tmp_path / "cache")

    run = far(corpus, url, tmp_path, checkpoint__every="2 steps")
    with pytest.raises(UserError, match=r"train-0\.npy\.blocks: block 0 is not what was written"):
        train(run, tmp_path / "far", nursery=nursery, quiet=True, listeners=[At(5, damage)])
    assert len(steps_of(tmp_path / "far")) < 12
    for path, content in whole.items():
        path.write_bytes(content)
    train(run, tmp_path / "far", nursery=nursery, quiet=True)
    assert_one_curve(local, tmp_path / "far")


@pytest.mark.slow
def test_credentials_that_are_revoked_stop_the_run_clearly_and_it_resumes_once_they_are_granted(
    tmp_path: Path, corpus: Path, local: Path, nursery: Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "server").mkdir()
    with servers.running(servers.seaweed(tmp_path / "server", fixed=False)) as s3:
        servers.admit(s3)
        for name, value in s3.environment.items():
            monkeypatch.setenv(name, value)

        def revoke() -> None:
            servers.admit(s3, False)
            until(lambda: not reads(s3.url))
            forget(tmp_path / "cache")

        run = far(corpus, s3.url, tmp_path, checkpoint__every="2 steps")
        with pytest.raises(UserError, match="the credentials were refused; they are looked for in AWS_ACCESS_KEY_ID"):
            train(run, tmp_path / "far", nursery=nursery, quiet=True, listeners=[At(5, revoke)])
        assert len(steps_of(tmp_path / "far")) < 12
        servers.admit(s3)
        until(lambda: reads(s3.url))
        train(run, tmp_path / "far", nursery=nursery, quiet=True)
    assert_one_curve(local, tmp_path / "far")


def reads(url: str) -> bool:
    try:
        return at(url).entries() is not None
    except StorageError:
        return False


def until(done: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not done():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.slow
def test_a_run_with_everything_elsewhere(
    tmp_path: Path, corpus: Path, park: Park, nursery: Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The corpus in MongoDB, token files in S3 with a cache in Redis, checkpoints in HDFS."""
    import pymongo

    mongo, s3, redis, hdfs = (park(system) for system in ("mongodb", "s3", "redis", "hdfs"))
    for name, value in {**s3.environment, **hdfs.environment}.items():
        monkeypatch.setenv(name, value)
    texts = corpus.read_text().split("\f")
    with pymongo.MongoClient(mongo.url.rpartition("/")[0]) as client:
        client["plait"]["corpus"].insert_many([{"_id": number, "text": text, "kept": True} for number, text in enumerate(texts)])
        client["plait"]["corpus"].insert_one({"_id": -1, "text": "left out by the server", "kept": False})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    here = tiny(tmp_path / "rows.jsonl", tmp_path / "prepared", train__duration="12 steps")
    train(here, tmp_path / "here", nursery=nursery, quiet=True)
    elsewhere = far(
        corpus,
        f"{s3.url}/everything",
        tmp_path,
        data__corpus=[f'{mongo.url}/corpus?filter={{"kept":true}}'],
        checkpoint__every="4 steps",
        checkpoint__copy=f"{hdfs.url}/checkpoints",
        layout__replicas=2,
    )
    elsewhere = spec.parse({**elsewhere.resolved(), "data": {**elsewhere.resolved()["data"], "cache": tier(tmp_path, redis.url)}})
    train(elsewhere, tmp_path / "elsewhere", nursery=nursery, quiet=True)
    assert_one_curve(tmp_path / "here", tmp_path / "elsewhere")
    assert at(redis.url).entries()
    assert [entry.name for entry in at(f"{hdfs.url}/checkpoints").entries("step-00000012/") if entry.name.endswith("manifest.json")]


def tier(tmp_path: Path, url: str) -> dict[str, Any]:
    return {"folder": str(tmp_path / "cache"), "gib": 1.0, "tier": url}
