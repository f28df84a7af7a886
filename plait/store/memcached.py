"""Memcached: a cache. memcached://HOST[:11211][/PREFIX], or memcacheds:// for TLS.

It keeps what it has room for, and forgets the rest: nothing may be kept there alone. It cannot list.
"""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import Iterator

from plait.errors import StorageError
from plait.store.location import Location
from plait.store.protocol import Entry, Store

_SECONDS = 10
_LONGEST_KEY = 200


class MemcachedStore(Store):
    largest = 1000 << 10  # the server's limit is 1 MiB with key and header, unless it was started with another (-I)
    lists = False

    def __init__(self, location: Location) -> None:
        super().__init__(location)
        from pymemcache.client.base import PooledClient

        self._prefix = f"{location.path}/" if location.path else ""
        self._memcached = PooledClient(
            (location.host or "localhost", location.port or 11211),
            connect_timeout=_SECONDS,
            timeout=_SECONDS,
            no_delay=True,
            tls_context=ssl.create_default_context() if location.scheme == "memcacheds" else None,
            default_noreply=False,  # else a value that is too large is dropped without a word
        )

    def close(self) -> None:
        self._memcached.close()

    def _read(self, name: str, first: int, end: int | None) -> bytes:
        content = self._memcached.get(self._key(name))
        if content is None:
            raise FileNotFoundError(name)
        return bytes(content)[first:end]

    def _write(self, name: str, content: bytes) -> None:
        self._memcached.set(self._key(name), content)

    def _create(self, name: str, content: bytes) -> bool:
        return bool(self._memcached.add(self._key(name), content))

    def _stat(self, name: str) -> Entry | None:
        content = self._memcached.get(self._key(name))
        return None if content is None else Entry(name, len(content))

    def _list(self, prefix: str) -> Iterator[Entry]:
        raise StorageError(f"{self.url(prefix)}: memcached cannot list what it holds")

    def _delete(self, name: str) -> None:
        self._memcached.delete(self._key(name))

    def _key(self, name: str) -> str:
        """Keys are short and without white space; others are told by their hash."""
        key = self._prefix + name
        fit = len(key) <= _LONGEST_KEY and key.isascii() and key.isprintable() and " " not in key
        return key if fit else hashlib.sha256(key.encode()).hexdigest()
