"""This process's memory, for tests: memory://NAME/... holds as long as the process lives, whoever opens it."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator

from plait.store.location import Location
from plait.store.protocol import Entry, Store

_kept: dict[str, bytes] = {}
_lock = threading.Lock()


class MemoryStore(Store):
    def __init__(self, location: Location) -> None:
        super().__init__(location)
        self._root = "/".join(filter(None, [location.host, location.path])) + "/"

    def _read(self, name: str, first: int, end: int | None) -> bytes:
        try:
            return _kept[self._root + name][first:end]
        except KeyError:
            raise FileNotFoundError(name) from None

    def _write(self, name: str, content: bytes) -> None:
        _kept[self._root + name] = bytes(content)

    def _create(self, name: str, content: bytes) -> bool:
        with _lock:
            if self._root + name in _kept:
                return False
            self._write(name, content)
            return True

    def _stat(self, name: str) -> Entry | None:
        content = _kept.get(self._root + name)
        return None if content is None else Entry(name, len(content), hashlib.blake2b(content, digest_size=8).hexdigest())

    def _list(self, prefix: str) -> Iterator[Entry]:
        for path in list(_kept):
            if path.startswith(self._root) and (entry := self._stat(path.removeprefix(self._root))) is not None:
                yield entry

    def _delete(self, name: str) -> None:
        _kept.pop(self._root + name, None)
