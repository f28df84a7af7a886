"""Which checkpoints of a run there are, in both homes, and whether they are sound."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from plait.errors import CheckpointError
from plait.train import manifest
from plait.train.folder import read_run
from plait.train.home import Home


@dataclass(frozen=True)
class Held:
    """A checkpoint: its folder or URL, bytes as its manifest tells them (0 where it cannot), and what is wrong with it."""

    step: int
    place: str
    bytes: int
    wrong: str | None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def inventory(folder: Path, check: bool = False) -> Iterator[Held]:
    """Of a run's folder, newest first, and then of its second home. check: every byte is read and compared with its checksum; otherwise
    manifests and sizes alone.

    Raises CheckpointError where there is no run, StorageError, StorageFailed.
    """
    run = read_run(folder)
    for path in manifest.saved(folder / "checkpoints"):
        yield _held_here(path, check)
    if run.checkpoint.copy_to is not None:
        home = Home.at(run.checkpoint.copy_to)
        for step in home.seen():
            yield _held_there(home, step, check)


def _held_here(path: Path, check: bool) -> Held:
    step, size = manifest.step_of(path), 0
    try:
        size = manifest.read(path).bytes
        if (wrong := manifest.problem(path)) is None and check:
            manifest.verify(path)
    except CheckpointError as damage:
        wrong = str(damage)
    return Held(step, str(path), size, wrong)


def _held_there(home: Home, step: int, check: bool) -> Held:
    size = 0
    try:
        size = home.read(step).bytes
        if (wrong := home.problem(step)) is None and check:
            home.verify(step)
    except CheckpointError as damage:
        wrong = str(damage)
    return Held(step, home.url(step), size, wrong)
