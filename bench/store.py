"""Token files in S3 against token files here, and reading through the cache against s3fs alone; S3 is a SeaweedFS on this host."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from contest import PlaitTraining, contest, ratios
from place import DEMO, REPOSITORY, Figure, Place

from plait import store
from plait.store import blocks
from plait.store.cache import Cache, CachedFile
from plait.store.patience import Homes

sys.path.insert(0, str(REPOSITORY))  # the tests' servers

TRAINING, READING = 0.97, 1.2
_MIB = 64


def measure(place: Place) -> list[Figure]:
    with _server(place.folder / "server") as url:
        return [_training(place, url), *_reading(place, url)]


def _training(place: Place, url: str) -> Figure:
    """From S3 with a cold cache, against a folder of this host, by turns; the first ticks, while the cache fills, do not count."""
    cache = {"folder": str(place.new("cache")), "gib": 4.0}
    far = place.run_file(DEMO, data={"prepared": f"{url}/prepared", "cache": cache})
    near = place.run_file(DEMO)
    shutil.rmtree(str(cache["folder"]))
    with PlaitTraining(far, place.new("far")) as one, PlaitTraining(near, place.new("near")) as other:
        rates = contest([one, other], place.effort.rounds, place.effort.seconds)
    return Figure.of("training from S3, cold cache / from a folder", TRAINING, ratios(rates))


def _reading(place: Place, url: str) -> list[Figure]:
    """From beginning to end in spans of 1 MiB: once with a cache that is cold, and again; packed by zstd, and as it is."""
    folder = place.new("file")
    folder.mkdir()
    size = (1 if place.effort.tiny else _MIB) << 20
    tokens = np.random.default_rng(0).zipf(1.3, size // 2) % 30_000  # about as compressible as text's tokens
    (folder / "tokens").write_bytes(tokens.astype(np.uint16).tobytes())
    home = store.at(f"{url}/reading")
    home.upload(folder / "tokens", "plain")
    figures = []
    for how, compress in (("zstd", True), ("as it is", False)):
        kept = store.at(f"{url}/reading/{how.replace(' ', '-')}")
        blocks.keep(kept, folder, ["tokens"], compress)
        cold, warm = [], []
        for _ in range(2 * place.effort.rounds):
            raw = _seconds(partial(_raw, home, size))
            cache = place.new("reading")
            cold.append(raw / _seconds(partial(_through, cache, kept)))
            warm.append(raw / _seconds(partial(_through, cache, kept)))
            shutil.rmtree(cache)  # its pages are taken for the next one's: fresh ones cost a virtual machine most of a read
        detail = f"{size >> 20} MiB of uint16 tokens, {how} in the store"
        figures.append(Figure.of(f"sequential read, cold cache / raw s3fs ranges, {how}", READING, cold, detail=detail))
        figures.append(Figure.of(f"sequential read, warm cache / raw s3fs ranges, {how}", READING, warm, detail=detail))
    return figures


def _raw(home: store.Store, size: int) -> None:
    """s3fs itself, range after range of the length that is quickest."""
    import s3fs

    files, path = s3fs.S3FileSystem(), home.url("plain").removeprefix("s3://")
    for first in range(0, size, 8 << 20):
        files.cat_file(path, start=first, end=min(first + (8 << 20), size))


def _through(folder: Path, home: store.Store) -> None:
    file = blocks.read_files(home)["tokens"]
    (folder / "set").mkdir(parents=True, exist_ok=True)
    index = blocks.read_index(home, "tokens", file)
    cached = CachedFile(Cache(folder, 1 << 30), folder / "set" / "tokens", file.bytes, index, Homes([home]))
    step = 1 << 20
    with contextlib.closing(cached):
        for first in range(0, file.bytes, step):
            cached.read(np.array([first]), min(step, file.bytes - first))


def _seconds(do: Callable[[], None]) -> float:
    began = time.perf_counter()
    do()
    return time.perf_counter() - began


@contextlib.contextmanager
def _server(folder: Path) -> Iterator[str]:
    from tests.store import servers

    folder.mkdir()
    with servers.running(servers.seaweed(folder)) as server:
        before = dict(os.environ)
        os.environ.update(server.environment)
        try:
            yield server.url
        finally:
            os.environ.clear()
            os.environ.update(before)
