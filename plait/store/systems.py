"""The systems: which class serves a scheme, and what must be installed for it."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
from dataclasses import dataclass
from typing import Any

from plait.errors import StorageError
from plait.store.location import Location, parse
from plait.store.protocol import Store


@dataclass(frozen=True)
class System:
    """Where a scheme's class is; extra: what pip installs its driver by, module: how the driver is imported."""

    path: str
    extra: str | None = None
    driver: str | None = None


SYSTEMS = {
    "file": System("plait.store.files:FileStore"),
    "memory": System("plait.store.memory:MemoryStore"),
    "s3": System("plait.store.objects:S3Store", "s3", "s3fs"),
    "gs": System("plait.store.objects:GoogleStore", "gcs", "gcsfs"),
    "alluxio": System("plait.store.objects:AlluxioStore", "s3", "s3fs"),
    "hf": System("plait.store.objects:HubStore", "hf", "huggingface_hub"),
    "hdfs": System("plait.store.hadoop:HadoopStore", "hdfs", "hdfs_native"),
    "webhdfs": System("plait.store.hadoop:WebHadoopStore", "hdfs", "requests"),
    "redis": System("plait.store.redis:RedisStore", "redis", "redis"),
    "rediss": System("plait.store.redis:RedisStore", "redis", "redis"),
    "memcached": System("plait.store.memcached:MemcachedStore", "memcached", "pymemcache"),
    "memcacheds": System("plait.store.memcached:MemcachedStore", "memcached", "pymemcache"),
    "mongodb": System("plait.store.mongodb:MongoStore", "mongodb", "pymongo"),
    "cassandra": System("plait.store.cassandra:CassandraStore", "cassandra", "cassandra"),
}
DOCUMENTS = {
    "mongodb": System("plait.store.mongodb:MongoDocuments", "mongodb", "pymongo"),
    "cassandra": System("plait.store.cassandra:CassandraDocuments", "cassandra", "cassandra"),
}
"""Whose tables are sources of documents."""


def at(url: str) -> Store:
    """The store that a URL or a path names; nothing is asked of the system yet.

    Raises StorageError: an unknown scheme, a secret in the URL, a driver that is not installed, a URL without what the system needs.
    """
    location = parse(url)
    system = _system(location)
    check_driver(location.url, system)
    store: Store = load(system, location)
    return store


def load(system: System, location: Location) -> Any:
    """What serves a location."""
    module, _, name = system.path.partition(":")
    return getattr(importlib.import_module(module), name)(location)


def check_driver(url: str, system: System) -> None:
    """Raises StorageError where a system's driver is not installed, naming the extra that brings it."""
    if system.driver is not None and importlib.util.find_spec(system.driver) is None:
        raise StorageError(f"{url}: needs {system.driver}, which is not installed: pip install 'plait[{system.extra}]'")


def _system(location: Location) -> System:
    found = SYSTEMS.get(location.scheme)
    if found is not None:
        return found
    close = difflib.get_close_matches(location.scheme, SYSTEMS, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]}://?" if close else f"known are {', '.join(SYSTEMS)}"
    raise StorageError(f"{location.url}: {location.scheme!r} is no storage system that is known here; {hint}")
