"""Cassandra: tables as sources of documents, and a table of blocks as a store of files.

    cassandra://HOST[:9042]/KEYSPACE/TABLE?where=language='en'   documents, in the order of their tokens
    cassandra://HOST[:9042]/KEYSPACE[/PREFIX]                    files, in the tables plait_files and plait_blocks

A file's row names the upload whose blocks are its content, and is written last: by one INSERT, or INSERT ... IF NOT EXISTS in `create`.
User name, password and TLS come from CASSANDRA_USERNAME and CASSANDRA_PASSWORD, or from ~/.cassandra/cqlshrc as cqlsh reads it.
"""

from __future__ import annotations

import configparser
import os
import re
import ssl
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from plait.errors import StorageError
from plait.store import trouble
from plait.store.location import Location
from plait.store.protocol import Entry, Store

BLOCK = 512 << 10
_SECONDS = 10
_PAGE = 500
_NAME = re.compile(r"[A-Za-z_]\w*")
_TABLES = (
    "CREATE TABLE IF NOT EXISTS plait_files (folder text, name text, bytes bigint, upload text, PRIMARY KEY (folder, name))",
    "CREATE TABLE IF NOT EXISTS plait_blocks (upload text, number int, content blob, PRIMARY KEY ((upload, number)))",
)


class CassandraStore(Store):
    """Files in a keyspace."""

    def __init__(self, location: Location) -> None:
        super().__init__(location)
        keyspace, _, prefix = location.path.partition("/")
        self._keyspace, self._folder = _named(location, keyspace), prefix.rstrip("/")
        self._opened: Any = None

    def close(self) -> None:
        if self._opened is not None:
            self._opened.cluster.shutdown()
            self._opened = None

    def _read(self, name: str, first: int, end: int | None) -> bytes:
        row = self._row(name)
        if row is None:
            raise FileNotFoundError(name)
        last = row[0] if end is None else min(end, row[0])
        if first >= last:
            return b""
        numbers = range(first // BLOCK, (last - 1) // BLOCK + 1)
        content = b"".join(self._block(row[1], number) for number in numbers)
        return content[first - numbers[0] * BLOCK : last - numbers[0] * BLOCK]

    def _write(self, name: str, content: bytes) -> None:
        before = self._row(name)
        upload = self._uploaded(content)
        self._do("INSERT INTO plait_files (folder, name, bytes, upload) VALUES (?, ?, ?, ?)", self._folder, name, len(content), upload)
        if before is not None:
            self._forget(*before)

    def _create(self, name: str, content: bytes) -> bool:
        if self._row(name) is not None:
            return False
        upload = self._uploaded(content)
        told = "INSERT INTO plait_files (folder, name, bytes, upload) VALUES (?, ?, ?, ?) IF NOT EXISTS"
        (first, *_), *_ = self._do(told, self._folder, name, len(content), upload)
        if not first:
            self._forget(len(content), upload)
        return bool(first)

    def _stat(self, name: str) -> Entry | None:
        row = self._row(name)
        return None if row is None else Entry(name, row[0], row[1])

    def _list(self, prefix: str) -> Iterator[Entry]:
        for name, size, upload in self._do("SELECT name, bytes, upload FROM plait_files WHERE folder = ?", self._folder):
            yield Entry(name, size, upload)

    def _delete(self, name: str) -> None:
        row = self._row(name)
        if row is not None:
            self._do("DELETE FROM plait_files WHERE folder = ? AND name = ?", self._folder, name)
            self._forget(*row)

    def _row(self, name: str) -> tuple[int, str] | None:
        found = list(self._do("SELECT bytes, upload FROM plait_files WHERE folder = ? AND name = ?", self._folder, name))
        return (int(found[0][0]), str(found[0][1])) if found else None

    def _uploaded(self, content: bytes) -> str:
        upload = uuid.uuid4().hex
        for number, first in enumerate(range(0, len(content), BLOCK)):
            block = content[first : first + BLOCK]
            self._do("INSERT INTO plait_blocks (upload, number, content) VALUES (?, ?, ?)", upload, number, block)
        return upload

    def _block(self, upload: str, number: int) -> bytes:
        found = list(self._do("SELECT content FROM plait_blocks WHERE upload = ? AND number = ?", upload, number))
        return bytes(found[0][0]) if found else b""

    def _forget(self, size: int, upload: str) -> None:
        for number in range(-(-size // BLOCK)):
            self._do("DELETE FROM plait_blocks WHERE upload = ? AND number = ?", upload, number)

    def _do(self, statement: str, *values: Any) -> Any:
        if self._opened is None:
            self._opened = session(self.location, self._keyspace)
            self._prepared: dict[str, Any] = {}
            for table in _TABLES:
                self._opened.execute(table)
        if statement not in self._prepared:
            self._prepared[statement] = self._opened.prepare(statement)
        return self._opened.execute(self._prepared[statement], values)

    def _kind(self, error: Exception) -> trouble.Kind | None:
        return kind(error)


class CassandraDocuments:
    """A table's rows."""

    def __init__(self, location: Location) -> None:
        keyspace, _, table = location.path.partition("/")
        if not table:
            raise StorageError(f"{location.url}: names no table; write cassandra://HOST/KEYSPACE/TABLE")
        if unknown := set(location.query) - {"where"}:
            raise StorageError(f"{location.url}: ?{unknown.pop()} is not known here; ?where is")
        self._location = location
        self._keyspace, self._table = _named(location, keyspace), _named(location, table)

    def rows(self, fields: list[str], skip: int) -> Iterator[dict[str, Any]]:
        """Page by page; what came before a failure is passed over as the rows come again."""
        from cassandra.query import SimpleStatement

        where = self._location.query.get("where")
        chosen = ", ".join(_named(self._location, field) for field in fields)
        statement = f"SELECT {chosen} FROM {self._table}" + (f" WHERE {where} ALLOW FILTERING" if where else "")
        opened = None
        try:
            opened = session(self._location, self._keyspace)
            for number, row in enumerate(opened.execute(SimpleStatement(statement, fetch_size=_PAGE))):
                if number >= skip:
                    yield dict(zip(fields, row, strict=True))
        except Exception as error:
            raise trouble.told(self._location, "", "read", error, kind(error) or "failed") from error
        finally:
            if opened is not None:
                opened.cluster.shutdown()


def kind(error: Exception) -> trouble.Kind | None:
    """What an error of the driver's is; of one that could reach no host, what the hosts said."""
    reasons = getattr(error, "errors", None)
    for reason in reasons.values() if isinstance(reasons, dict) else ():
        if isinstance(reason, Exception) and (found := kind(reason)) is not None:
            return found
    named = type(error).__name__
    if "AuthenticationFailed" in named:
        return "refused"
    if named == "InvalidRequest" and "eyspace" in str(error):
        return "no container"
    return {"Unauthorized": "denied", "InvalidRequest": "unfit", "SyntaxException": "unfit"}.get(named)  # type: ignore[return-value]


def session(location: Location, keyspace: str) -> Any:
    """A connection whose rows are tuples."""
    from cassandra.auth import PlainTextAuthProvider
    from cassandra.cluster import EXEC_PROFILE_DEFAULT, Cluster, ExecutionProfile
    from cassandra.policies import RoundRobinPolicy
    from cassandra.query import tuple_factory

    settings = _cqlshrc()
    user = location.user or os.environ.get("CASSANDRA_USERNAME") or settings.get("authentication", "username", fallback=None)
    password = os.environ.get("CASSANDRA_PASSWORD") or settings.get("authentication", "password", fallback="")
    profile = ExecutionProfile(RoundRobinPolicy(), row_factory=tuple_factory, request_timeout=_SECONDS)
    cluster = Cluster(
        [location.host or "127.0.0.1"],
        location.port or 9042,
        auth_provider=PlainTextAuthProvider(user, password) if user else None,
        ssl_context=_tls(settings),
        execution_profiles={EXEC_PROFILE_DEFAULT: profile},
        protocol_version=4,
        connect_timeout=_SECONDS,
    )
    return cluster.connect(keyspace)


def _cqlshrc() -> configparser.ConfigParser:
    settings = configparser.ConfigParser(interpolation=None)
    settings.read(Path(os.environ.get("CQLSHRC", "~/.cassandra/cqlshrc")).expanduser())
    return settings


def _tls(settings: configparser.ConfigParser) -> ssl.SSLContext | None:
    if not settings.getboolean("connection", "ssl", fallback=False):
        return None
    return ssl.create_default_context(cafile=settings.get("ssl", "certfile", fallback=None))


def _named(location: Location, name: str) -> str:
    """A name as it may stand in a statement. Raises StorageError."""
    if not _NAME.fullmatch(name):
        raise StorageError(f"{location.url}: {name!r} is no name of a keyspace, table or column; write cassandra://HOST/KEYSPACE/TABLE")
    return name
