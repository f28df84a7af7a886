"""Documents of databases: rows that a server filters and cuts to the fields that are asked for, written here as JSONL.

    mongodb://HOST[:27017]/DATABASE/COLLECTION[?filter={"language":"en"}]
    cassandra://HOST[:9042]/KEYSPACE/TABLE[?where=language='en']

The order is the server's own and does not change from one reading to the next: by _id, by token. A reading that breaks off goes on behind
the last row that came. What the rows hold is told by the checksum of the file that they make.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from plait.errors import StorageError
from plait.store import durable
from plait.store.location import Location, parse
from plait.store.patience import insistently
from plait.store.systems import DOCUMENTS, check_driver, load


class Rows(Protocol):
    """A table or collection. `rows` begins behind the first `skip` ones."""

    def rows(self, fields: list[str], skip: int) -> Iterator[dict[str, Any]]: ...


def is_documents(url: str) -> bool:
    return url.partition("://")[0] in DOCUMENTS


def download(url: str, fields: list[str], path: Path) -> int:
    """The rows of a table as JSONL in a file, which appears whole; returns how many. Raises StorageError, StorageFailed."""
    location = parse(url)
    system = DOCUMENTS[location.scheme]
    check_driver(location.url, system)
    source: Rows = load(system, location)
    count = 0
    with durable.writing(path) as file:

        def more() -> None:
            nonlocal count
            for row in source.rows(fields, count):
                plain = {field: _plain(location, field, row.get(field)) for field in fields}
                file.write(json.dumps(plain, ensure_ascii=False).encode() + b"\n")
                count += 1

        insistently(more)
    if not count:
        raise StorageError(f"{location.url}: has no rows" + (" that fit the filter" if location.query else ""))
    return count


def _plain(location: Location, field: str, value: Any) -> Any:
    """What JSON can hold; dates as ISO 8601, so that they sort as they should."""
    if hasattr(value, "isoformat"):
        return value.isoformat()
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, list | tuple):
        return [_plain(location, field, each) for each in value]
    if isinstance(value, dict):
        return {str(key): _plain(location, field, each) for key, each in value.items()}
    if isinstance(value, bytes | set):
        raise StorageError(f"{location.url}: {field!r} holds {type(value).__name__}, which is neither text nor a number nor a list of such")
    return str(value)
