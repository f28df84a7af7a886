"""Checking a place: each operation that plait needs of a storage system is done there once, timed, and what it gave is compared."""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from plait.errors import NotStored, PlaitError, StorageError, StorageFailed
from plait.store.protocol import Store
from plait.store.systems import at

BYTES = 8 << 20
_RANGE = 64 << 10
_RANGES = 16

State = Literal["ok", "not there", "failed"]


@dataclass(frozen=True)
class Checked:
    """One operation. bytes: what went over the wire; not there: the system has no such operation."""

    operation: str
    state: State
    seconds: float
    bytes: int = 0
    trouble: PlaitError | None = None

    @property
    def throughput(self) -> float | None:
        """MB/s."""
        return self.bytes / self.seconds / 1e6 if self.bytes and self.seconds else None

    def as_dict(self) -> dict[str, Any]:
        figures = {"operation": self.operation, "state": self.state, "seconds": self.seconds, "bytes": self.bytes}
        return {**figures, "why": None if self.trouble is None else str(self.trouble)}


def check(url: str, size: int = BYTES) -> Iterator[Checked]:
    """The operations, each told of as it ends; what was written is removed. Raises StorageError: the URL names no store."""
    store = at(url)
    size = min(size, store.largest or size)
    trial = _Trial(store, f"plait-check-{secrets.token_hex(4)}", os.urandom(size))
    try:
        for operation, do in trial.operations().items():
            yield _timed(operation, do)
    finally:
        trial.clear()
        store.close()


def _timed(operation: str, do: Callable[[], int]) -> Checked:
    began = time.perf_counter()
    try:
        count = do()
    except PlaitError as error:
        state: State = "not there" if isinstance(error, _NotThere) else "failed"
        return Checked(operation, state, time.perf_counter() - began, trouble=error)
    return Checked(operation, "ok", time.perf_counter() - began, count)


class _NotThere(StorageError):
    """An operation that a system does not have."""


class _Trial:
    """Some names in a store, and what should be under them."""

    def __init__(self, store: Store, folder: str, content: bytes) -> None:
        self._store, self._folder, self._content = store, folder, content
        self._name = f"{folder}/content"

    def operations(self) -> dict[str, Callable[[], int]]:
        return {
            "write": self._write,
            "read": self._read,
            "range": self._range,
            "stat": self._stat,
            "list": self._list,
            "create": self._create,
            "upload": self._upload,
            "missing": self._missing,
            "delete": self._delete,
        }

    def clear(self) -> None:
        for name in ("content", "created", "uploaded"):
            with contextlib.suppress(PlaitError):
                self._store.delete(f"{self._folder}/{name}")

    def _write(self) -> int:
        self._store.write(self._name, b"before")
        self._store.write(self._name, self._content)
        return len(self._content)

    def _read(self) -> int:
        self._same(self._store.read(self._name), self._content)
        return len(self._content)

    def _range(self) -> int:
        """Some in the middle, one over the end, one behind it."""
        step = len(self._content) // _RANGES
        spans = [(first, first + min(_RANGE, step)) for first in range(0, len(self._content) - step, step)]
        spans += [(len(self._content) - 10, len(self._content) + 10), (len(self._content) + 10, len(self._content) + 20)]
        for first, end in spans:
            self._same(self._store.read(self._name, first, end), self._content[first:end])
        return sum(len(self._content[first:end]) for first, end in spans)

    def _stat(self) -> int:
        entry = self._store.stat(self._name)
        if entry is None or entry.bytes != len(self._content):
            raise self._wrong(f"stat tells {entry}, and {len(self._content)} bytes were written")
        return 0

    def _list(self) -> int:
        if not self._store.lists:
            raise _NotThere(f"{self._store.url()}: {self._store.location.scheme} cannot list")
        found = [entry.name for entry in self._store.entries(f"{self._folder}/")]
        if found != [self._name]:
            raise self._wrong(f"lists {found}, and {self._name} was written")
        return 0

    def _create(self) -> int:
        told = [self._store.create(f"{self._folder}/created", content) for content in (b"first", b"second")]
        if told != [True, False]:
            raise self._wrong(f"two that created one name were told {told}")
        self._same(self._store.read(f"{self._folder}/created"), b"first")
        return 0

    def _upload(self) -> int:
        with tempfile.TemporaryDirectory() as folder:
            path, back = Path(folder) / "content", Path(folder) / "back"
            path.write_bytes(self._content)
            self._store.upload(path, f"{self._folder}/uploaded")
            self._store.download(f"{self._folder}/uploaded", back)
            self._same(back.read_bytes(), self._content)
        return 2 * len(self._content)

    def _missing(self) -> int:
        with contextlib.suppress(NotStored):
            self._store.read(f"{self._folder}/absent")
            raise self._wrong("reads what was never written")
        return 0

    def _delete(self) -> int:
        self._store.delete(self._name)
        if self._store.stat(self._name) is not None:
            raise self._wrong("still tells of what was deleted")
        self._store.delete(self._name)
        return 0

    def _same(self, found: bytes, wanted: bytes) -> None:
        if found != wanted:
            raise self._wrong(f"gave {len(found)} bytes that are not the {len(wanted)} that were written")

    def _wrong(self, what: str) -> StorageFailed:
        return StorageFailed(f"{self._store.url(self._name)}: {what}")
