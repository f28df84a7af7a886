"""MongoDB: collections as sources of documents, and GridFS as a store of files.

    mongodb://HOST[:27017]/DATABASE/COLLECTION?filter={...}    documents, sorted by _id
    mongodb://HOST[:27017]/DATABASE[/PREFIX]                   files, in the GridFS bucket "plait"

?tls=true asks for TLS, trusting SSL_CERT_FILE's authority where that is set. MONGODB_URI may hold a whole connection string, with several
hosts and options: it is used for mongodb:///DATABASE, without a host.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from typing import Any

from plait.errors import StorageError
from plait.store import trouble
from plait.store.location import Location
from plait.store.protocol import Entry, Store

_SECONDS = 10
_BATCH = 500


class MongoStore(Store):
    """Files in GridFS. A name's document tells which file is its content, and is written last: one insert or replacement."""

    def __init__(self, location: Location) -> None:
        super().__init__(location)
        import gridfs

        name, _, prefix = location.path.partition("/")
        if not name:
            raise StorageError(f"{location.url}: names no database; write mongodb://HOST/DATABASE")
        self._client = _client(location)
        self._names = self._client[name]["plait.names"]
        self._prefix = f"{prefix.rstrip('/')}/" if prefix else ""
        self._bucket = gridfs.GridFSBucket(self._client[name], "plait")

    def close(self) -> None:
        self._client.close()

    def _read(self, name: str, first: int, end: int | None) -> bytes:
        told = self._told_of(name)
        if told is None:
            raise FileNotFoundError(name)
        last = told["bytes"] if end is None else min(end, told["bytes"])
        if first >= last:
            return b""
        file = self._bucket.open_download_stream(told["file"])
        file.seek(first)
        content: bytes = file.read(last - first)
        return content

    def _write(self, name: str, content: bytes) -> None:
        file = self._bucket.upload_from_stream(self._prefix + name, content)
        older = self._names.find_one_and_replace(self._key(name), {"file": file, "bytes": len(content)}, upsert=True)
        if older is not None:
            self._bucket.delete(older["file"])

    def _create(self, name: str, content: bytes) -> bool:
        from pymongo.errors import DuplicateKeyError

        if self._told_of(name) is not None:
            return False
        file = self._bucket.upload_from_stream(self._prefix + name, content)
        try:
            self._names.insert_one({**self._key(name), "file": file, "bytes": len(content)})
        except DuplicateKeyError:
            self._bucket.delete(file)
            return False
        return True

    def _stat(self, name: str) -> Entry | None:
        told = self._told_of(name)
        return None if told is None else Entry(name, told["bytes"], str(told["file"]))

    def _list(self, prefix: str) -> Iterator[Entry]:
        for told in self._names.find({"_id": {"$regex": "^" + re.escape(self._prefix + prefix)}}):
            yield Entry(told["_id"].removeprefix(self._prefix), told["bytes"], str(told["file"]))

    def _delete(self, name: str) -> None:
        told = self._names.find_one_and_delete(self._key(name))
        if told is not None:
            self._bucket.delete(told["file"])

    def _told_of(self, name: str) -> dict[str, Any] | None:
        found: dict[str, Any] | None = self._names.find_one(self._key(name))
        return found

    def _key(self, name: str) -> dict[str, str]:
        return {"_id": self._prefix + name}

    def _kind(self, error: Exception) -> trouble.Kind | None:
        return kind(error)


class MongoDocuments:
    """A collection's documents."""

    def __init__(self, location: Location) -> None:
        database, _, collection = location.path.partition("/")
        if not collection:
            raise StorageError(f"{location.url}: names no collection; write mongodb://HOST/DATABASE/COLLECTION")
        self._location, self._filter = location, _filter(location)
        self._database, self._collection = database, collection

    def rows(self, fields: list[str], skip: int) -> Iterator[dict[str, Any]]:
        with _client(self._location) as client:
            collection = client[self._database][self._collection]
            try:
                yield from collection.find(self._filter, dict.fromkeys(fields, 1)).sort("_id", 1).skip(skip).batch_size(_BATCH)
            except Exception as error:
                raise trouble.told(self._location, "", "read", error, kind(error) or "failed") from error


def kind(error: Exception) -> trouble.Kind | None:
    """What an error of pymongo's is."""
    code = getattr(error, "code", None)
    if code == 18 or "Authentication failed" in str(error):
        return "refused"
    if code == 13 or "requires authentication" in str(error):
        return "denied" if os.environ.get("MONGODB_USERNAME") or os.environ.get("MONGODB_URI") else "refused"
    return "unfit" if type(error).__name__ == "OperationFailure" else None


def _client(location: Location) -> Any:
    import pymongo

    options: dict[str, Any] = {"serverSelectionTimeoutMS": _SECONDS * 1000, "connect": False}
    if unknown := set(location.query) - {"filter", "tls", "authSource", "replicaSet"}:
        raise StorageError(f"{location.url}: ?{unknown.pop()} is not known here; ?filter, ?tls, ?authSource and ?replicaSet are")
    options |= {key: location.query[key] for key in ("authSource", "replicaSet") if key in location.query}
    if location.query.get("tls") == "true":
        options |= {"tls": True, **({"tlsCAFile": os.environ["SSL_CERT_FILE"]} if "SSL_CERT_FILE" in os.environ else {})}
    if not location.host and "MONGODB_URI" in os.environ:
        return pymongo.MongoClient(os.environ["MONGODB_URI"], **options)
    user = location.user or os.environ.get("MONGODB_USERNAME")
    if user:
        options |= {"username": user, "password": os.environ.get("MONGODB_PASSWORD", "")}
    return pymongo.MongoClient(location.host or "localhost", location.port or 27017, **options)


def _filter(location: Location) -> dict[str, Any]:
    try:
        found = json.loads(location.query.get("filter", "{}"))
    except ValueError as error:
        raise StorageError(f"{location.url}: filter is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise StorageError(f"{location.url}: filter is no JSON object")
    return found
