"""A watch on free space: where the run is kept, and where its data is prepared.

A disk is low when less is free than `least` bytes or two checkpoints take, one being written before the oldest one goes. That is told
once. It is told again when the next save has no room any more, and when it is low once more after it had a quarter and a checkpoint more
than that: free space goes up and down by one with each save.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from plait.events import Event, LowDisk, Saved

PERIOD = 10.0
"""Seconds between two looks."""
_ROOM = 1.25


@dataclass
class _Disk:
    """checkpoints: whether they are kept there. told: the worst that was told of it; 0 nothing, 1 low, 2 no room for the next save."""

    folder: Path
    checkpoints: bool
    told: int = 0


class DiskWatch:
    """A listener, for the size of checkpoints, and a thread that looks while it is entered: asking a network's file system may take long.

    folder: the run's. others: folders besides; those of the same file system are not told of twice. checkpoint: bytes, as far as known
    before the first is saved.
    """

    def __init__(self, tell: Callable[[Event], None], folder: Path, others: Iterable[Path], least: int, checkpoint: int) -> None:
        self._tell = tell
        self._least, self._checkpoint = least, checkpoint
        self._disks = [_Disk(folder, True), *(_Disk(other, False) for other in _elsewhere(folder, others))]
        self._ended = threading.Event()

    def on(self, event: Event) -> None:
        if isinstance(event, Saved):
            self._checkpoint = event.bytes

    def close(self) -> None:
        self._ended.set()

    def __enter__(self) -> Self:
        threading.Thread(target=self._watch, name="disk watch", daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def look(self) -> None:
        for disk in self._disks:
            with suppress(OSError):  # a file system that cannot be asked is told of by whoever needs it
                self._look_at(disk)

    def _look_at(self, disk: _Disk) -> None:
        free = shutil.disk_usage(disk.folder).free
        checkpoint = self._checkpoint if disk.checkpoints else 0
        wanted = max(self._least, 2 * checkpoint)
        badness = 2 if free < checkpoint else 1 if free < wanted else 0
        if badness > disk.told:
            self._tell(LowDisk(time.time(), str(disk.folder), free, wanted, checkpoint))
        if badness > disk.told or free > _ROOM * wanted + checkpoint:
            disk.told = badness

    def _watch(self) -> None:
        while not self._ended.is_set():
            self.look()
            self._ended.wait(PERIOD)


def _elsewhere(folder: Path, others: Iterable[Path]) -> list[Path]:
    """Those on other file systems, one each."""
    seen = {os.stat(folder).st_dev}
    found = []
    for other in others:
        if (device := os.stat(other).st_dev) not in seen:
            seen.add(device)
            found.append(other)
    return found
