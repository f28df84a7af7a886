"""Redis: a small store and a cache. redis://HOST[:6379][/DATABASE[/PREFIX]], or rediss:// for TLS.

A value is one string: whole or not at all by Redis's own rule, and up to 512 MiB.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from plait.errors import StorageError
from plait.store import trouble
from plait.store.location import Location
from plait.store.protocol import Entry, Store

_SECONDS = 10
_PAGE = 1000


class RedisStore(Store):
    largest = 512 << 20

    def __init__(self, location: Location) -> None:
        super().__init__(location)
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        database, _, prefix = location.path.partition("/")
        if database and not database.isdigit():
            raise StorageError(f"{location.url}: {database!r} is no database; write {location.scheme}://HOST/0/{location.path}")
        self._prefix = f"{prefix.rstrip('/')}/" if prefix else ""
        tls: dict[str, Any] = {"ssl": True, "ssl_ca_certs": os.environ.get("SSL_CERT_FILE")} if location.scheme == "rediss" else {}
        self._redis = redis.Redis(
            host=location.host or "localhost",
            port=location.port or 6379,
            db=int(database or 0),
            username=location.user or os.environ.get("REDIS_USERNAME"),
            password=os.environ.get("REDISCLI_AUTH"),
            socket_timeout=_SECONDS,
            socket_connect_timeout=_SECONDS,
            retry=Retry(NoBackoff(), 0),  # plait.store.patience tries again, and says so
            **tls,
        )

    def close(self) -> None:
        self._redis.close()

    def _read(self, name: str, first: int, end: int | None) -> bytes:
        key = self._prefix + name
        if first == 0 and end is None:
            content = self._redis.get(key)
        else:
            content = self._redis.getrange(key, first, -1 if end is None else end - 1)
            if not content and not self._redis.exists(key):
                content = None
        if content is None:
            raise FileNotFoundError(name)
        return bytes(content)

    def _write(self, name: str, content: bytes) -> None:
        self._redis.set(self._prefix + name, content)

    def _create(self, name: str, content: bytes) -> bool:
        return bool(self._redis.set(self._prefix + name, content, nx=True))

    def _stat(self, name: str) -> Entry | None:
        key = self._prefix + name
        size = self._redis.strlen(key)
        return Entry(name, size) if size or self._redis.exists(key) else None

    def _list(self, prefix: str) -> Iterator[Entry]:
        pattern = "".join(f"\\{letter}" if letter in "*?[]\\" else letter for letter in self._prefix + prefix) + "*"
        for key in {bytes(key) for key in self._redis.scan_iter(match=pattern, count=_PAGE, _type="string")}:
            if (entry := self._stat(key.decode().removeprefix(self._prefix))) is not None:
                yield entry

    def _delete(self, name: str) -> None:
        self._redis.delete(self._prefix + name)

    def _kind(self, error: Exception) -> trouble.Kind | None:
        if type(error).__name__ == "AuthenticationError" or any(word in str(error) for word in ("NOAUTH", "WRONGPASS", "Authentication")):
            return "refused"
        return "denied" if type(error).__name__ == "NoPermissionError" else None
