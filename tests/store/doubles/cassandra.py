"""A double of Cassandra: a server of CQL's binary protocol, version 4, that DataStax's driver accepts.

It knows the statements that plait sends and a few to fill a table, keeps rows in memory, and pages. With a user and a password it
asks for them. It is no database: it shows that plait speaks the protocol, and what happens when a server refuses, pages, or dies.
"""

from __future__ import annotations

import re
import socket
import socketserver
import struct
import sys
import threading
from dataclasses import dataclass, field
from typing import Any

ERROR, READY, AUTHENTICATE, SUPPORTED, RESULT, AUTH_SUCCESS = 0x00, 0x02, 0x03, 0x06, 0x08, 0x10
STARTUP, OPTIONS, QUERY, PREPARE, EXECUTE, REGISTER, AUTH_RESPONSE = 0x01, 0x05, 0x07, 0x09, 0x0A, 0x0B, 0x0F
BIGINT, BLOB, BOOLEAN, INT, INET, TEXT, UUID, SET = 0x02, 0x03, 0x04, 0x09, 0x10, 0x0D, 0x0C, 0x22
TYPES = {"bigint": BIGINT, "blob": BLOB, "int": INT, "text": TEXT, "boolean": BOOLEAN}


@dataclass
class Table:
    columns: dict[str, int]
    key: list[str]
    rows: dict[tuple[Any, ...], dict[str, bytes | None]] = field(default_factory=dict)


TABLES: dict[str, Table] = {}
LOCK = threading.Lock()
WHO: tuple[str, str] | None = None


def string(text: str) -> bytes:
    return struct.pack(">H", len(text.encode())) + text.encode()


def value(content: bytes | None) -> bytes:
    return struct.pack(">i", -1) if content is None else struct.pack(">i", len(content)) + content


def kind(code: int) -> bytes:
    return struct.pack(">HH", SET, TEXT) if code == SET else struct.pack(">H", code)


def columns(table: str, named: dict[str, int], paging: bytes | None = None) -> bytes:
    flags = 1 | (2 if paging else 0)
    head = struct.pack(">ii", flags, len(named)) + (value(paging) if paging else b"") + string("plait") + string(table)
    return head + b"".join(string(name) + kind(code) for name, code in named.items())


def rows(table: str, named: dict[str, int], found: list[dict[str, bytes | None]], paging: bytes | None = None) -> bytes:
    content = b"".join(value(row.get(name)) for row in found for name in named)
    return struct.pack(">i", 2) + columns(table, named, paging) + struct.pack(">i", len(found)) + content


VOID = struct.pack(">i", 1)


class InvalidError(Exception):
    """A statement that a Cassandra would refuse as well."""


def local() -> bytes:
    """What the driver asks of system.local: one node, this one."""
    named = {"cluster_name": TEXT, "data_center": TEXT, "rack": TEXT, "partitioner": TEXT, "release_version": TEXT, "rpc_address": INET}
    named |= {"broadcast_address": INET, "listen_address": INET, "schema_version": UUID, "host_id": UUID, "tokens": SET, "key": TEXT}
    here, token = socket.inet_aton("127.0.0.1"), b"-1"
    row: dict[str, bytes | None] = {
        "cluster_name": b"double",
        "data_center": b"dc1",
        "rack": b"r1",
        "partitioner": b"org.apache.cassandra.dht.Murmur3Partitioner",
        "release_version": b"3.11.0",
        "rpc_address": here,
        "broadcast_address": here,
        "listen_address": here,
        "schema_version": bytes(16),
        "host_id": bytes(15) + b"\x01",
        "tokens": struct.pack(">i", 1) + value(token),
        "key": b"local",
    }
    return rows("local", named, [row])


class Statement:
    """One statement, read by its shape. types: of its question marks, in order."""

    def __init__(self, text: str) -> None:
        self.text = " ".join(text.split())
        self.table, self.marks = "", []
        if found := re.match(r"INSERT INTO (?:\w+\.)?(\w+) \(([^)]*)\) VALUES \(([^)]*)\)( IF NOT EXISTS)?", self.text, re.I):
            self.kind, self.table, self.once = "insert", found[1], bool(found[4])
            self.names = [name.strip() for name in found[2].split(",")]
            self.values = [each.strip() for each in re.findall(r"\?|'(?:[^']|'')*'|-?\d+", found[3])]
        elif found := re.match(r"(SELECT (.*?)|DELETE) FROM (?:\w+\.)?(\w+)(?: WHERE (.*?))?( ALLOW FILTERING)?;?$", self.text, re.I):
            self.kind, self.table = ("select" if found[2] else "delete"), found[3]
            self.names = [name.strip() for name in (found[2] or "").split(",") if name.strip()]
            self.where = re.findall(r"(\w+) ?= ?(\?|'(?:[^']|'')*'|-?\d+)", found[4] or "")
        elif found := re.match(r"CREATE TABLE (?:IF NOT EXISTS )?(\w+) \((.*), PRIMARY KEY \((.*)\)\)", self.text, re.I):
            self.kind, self.table = "create", found[1]
            self.columns = {name: TYPES[of] for name, of in re.findall(r"(\w+) (\w+)", found[2])}
            self.key = re.findall(r"\w+", found[3])
        else:
            self.kind = "use" if re.match(r"USE|CREATE KEYSPACE", self.text, re.I) else "other"
        if self.kind in ("insert", "select", "delete") and self.table in TABLES:
            known = TABLES[self.table].columns
            pairs = zip(self.names, self.values, strict=True) if self.kind == "insert" else self.where
            self.marks = [(name, known[name]) for name, each in pairs if each == "?"]

    def run(self, given: list[bytes | None], page: int, state: bytes | None) -> bytes:
        if self.kind == "use":
            return struct.pack(">i", 3) + string("plait")
        if "system.local" in self.text:
            return local()
        if self.kind == "other" or (self.text.upper().startswith("SELECT") and "system" in self.text):
            return rows("none", {"key": TEXT}, [])
        if self.kind == "create":
            TABLES.setdefault(self.table, Table(self.columns, self.key))
            return VOID
        if self.table not in TABLES:
            raise InvalidError(f"unconfigured table {self.table}")
        return getattr(self, f"_{self.kind}")(TABLES[self.table], iter(given), page, state)

    def _insert(self, table: Table, given: Any, page: int, state: bytes | None) -> bytes:
        row = {name: _value(table, name, each, given) for name, each in zip(self.names, self.values, strict=True)}
        key = tuple(row[name] for name in table.key)
        if self.once:
            applied = key not in table.rows
            if applied:
                table.rows[key] = row
            return rows(self.table, {"[applied]": BOOLEAN}, [{"[applied]": b"\x01" if applied else b"\x00"}])
        table.rows[key] = row
        return VOID

    def _select(self, table: Table, given: Any, page: int, state: bytes | None) -> bytes:
        wanted = {name: _value(table, name, each, given) for name, each in self.where}
        for name in self.names:
            if name not in table.columns:
                raise InvalidError(f"Undefined column name {name}")
        found = [row for row in table.rows.values() if all(row[name] == each for name, each in wanted.items())]
        first = int(state or b"0")
        end = first + page if page > 0 else len(found)
        return rows(
            self.table, {name: table.columns[name] for name in self.names}, found[first:end], b"%d" % end if end < len(found) else None
        )

    def _delete(self, table: Table, given: Any, page: int, state: bytes | None) -> bytes:
        wanted = {name: _value(table, name, each, given) for name, each in self.where}
        for key in [key for key, row in table.rows.items() if all(row[name] == each for name, each in wanted.items())]:
            del table.rows[key]
        return VOID


def _value(table: Table, name: str, written: str, given: Any) -> bytes | None:
    if written == "?":
        found: bytes | None = next(given)
        return found
    if written.startswith("'"):
        return written[1:-1].replace("''", "'").encode()
    return struct.pack(">i" if table.columns[name] == INT else ">q", int(written))


class Connection(socketserver.BaseRequestHandler):
    prepared: dict[bytes, Statement] = {}  # noqa: RUF012

    def handle(self) -> None:
        while header := self._exactly(9):
            _, _, stream, opcode, length = struct.unpack(">BBhBi", header)
            body = self._exactly(length) or b""
            try:
                with LOCK:
                    code, answer = self._answer(opcode, body)
            except InvalidError as error:
                code, answer = ERROR, struct.pack(">i", 0x2200) + string(str(error))
            self.request.sendall(struct.pack(">BBhBi", 0x84, 0, stream, code, len(answer)) + answer)

    def _exactly(self, count: int) -> bytes:
        content = b""
        while len(content) < count and (more := self.request.recv(count - len(content))):
            content += more
        return content

    def _answer(self, opcode: int, body: bytes) -> tuple[int, bytes]:
        if opcode == OPTIONS:
            supported = string("CQL_VERSION") + struct.pack(">H", 1) + string("3.4.4") + string("COMPRESSION") + struct.pack(">H", 0)
            return SUPPORTED, struct.pack(">H", 2) + supported
        if opcode == STARTUP:
            return (READY, b"") if WHO is None else (AUTHENTICATE, string("org.apache.cassandra.auth.PasswordAuthenticator"))
        if opcode == AUTH_RESPONSE:
            if WHO is not None and body[4:].split(b"\0")[1:] == [each.encode() for each in WHO]:
                return AUTH_SUCCESS, struct.pack(">i", -1)
            return ERROR, struct.pack(">i", 0x0100) + string("Provided username or password is wrong")
        if opcode == REGISTER:
            return READY, b""
        if opcode == PREPARE:
            return RESULT, self._prepare(body[4:].decode())
        if opcode == QUERY:
            (length,) = struct.unpack_from(">i", body)
            return RESULT, Statement(body[4 : 4 + length].decode()).run(*_options(body[4 + length :]))
        assert opcode == EXECUTE, opcode
        (length,) = struct.unpack_from(">H", body)
        return RESULT, self.prepared[body[2 : 2 + length]].run(*_options(body[2 + length :]))

    def _prepare(self, text: str) -> bytes:
        statement = Statement(text)
        if statement.table not in TABLES:
            raise InvalidError(f"unconfigured table {statement.table}")
        identity = str(hash(text)).encode()
        self.prepared[identity] = statement
        marks = dict(statement.marks)
        head = struct.pack(">iii", 1, len(marks), 0) + string("plait") + string(statement.table)
        asked = head + b"".join(string(name) + kind(code) for name, code in marks.items())
        return struct.pack(">i", 4) + struct.pack(">H", len(identity)) + identity + asked + struct.pack(">ii", 4, 0)


def _options(body: bytes) -> tuple[list[bytes | None], int, bytes | None]:
    """Values, size of a page, and where the next one begins."""
    _, flags = struct.unpack_from(">HB", body)
    at, given = 3, []
    if flags & 0x01:
        (count,) = struct.unpack_from(">H", body, at)
        at += 2
        for _ in range(count):
            content, at = _bytes(body, at)
            given.append(content)
    page, state = 0, None
    if flags & 0x04:
        (page,) = struct.unpack_from(">i", body, at)
        at += 4
    if flags & 0x08:
        state, at = _bytes(body, at)
    return given, page, state


def _bytes(body: bytes, at: int) -> tuple[bytes | None, int]:
    (length,) = struct.unpack_from(">i", body, at)
    return (None, at + 4) if length < 0 else (body[at + 4 : at + 4 + length], at + 4 + length)


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


if __name__ == "__main__":
    if len(sys.argv) > 3:
        WHO = (sys.argv[2], sys.argv[3])
    Server(("127.0.0.1", int(sys.argv[1])), Connection).serve_forever()
