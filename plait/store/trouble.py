"""Trouble: what a driver raised, told in plait's words, with the URL and without secrets."""

from __future__ import annotations

import os
from typing import Literal

from plait.errors import NotStored, PlaitError, StorageError, StorageFailed
from plait.spec.places import CREDENTIALS, redacted
from plait.store.location import Location

Doing = Literal["read", "write", "list", "delete"]
Kind = Literal["missing", "no container", "refused", "denied", "unfit", "failed"]
"""unfit: the request itself is wrong, and will be each time; failed: whatever may pass."""

_CONTAINERS = {"s3": "bucket", "gs": "bucket", "alluxio": "folder", "hf": "repository", "mongodb": "database", "cassandra": "keyspace"}
_SECRETS = ("PASSWORD", "SECRET", "TOKEN", "REDISCLI_AUTH", "ACCESS_KEY")
_LONGEST = 300


def kind(error: Exception) -> Kind:
    """By the classes that Python has for it."""
    if isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError):
        return "missing"
    if isinstance(error, PermissionError):
        return "denied"
    return "failed"


def told(location: Location, name: str, doing: Doing, error: Exception, of: Kind) -> PlaitError:
    """The error to raise in its place."""
    url, scheme = location.shown(name), location.scheme
    if of == "missing" and doing in ("write", "list") and scheme in _CONTAINERS:
        of = "no container"  # names are made by being written
    if of == "missing":
        return NotStored(f"{url}: there is nothing of that name")
    if of == "no container":
        what = _CONTAINERS.get(scheme, "folder")
        return StorageError(f"{url}: there is no {what} {location.host!r}; make it, or correct the URL")
    if of == "refused":
        where = f"; they are looked for in {CREDENTIALS[scheme]}" if scheme in CREDENTIALS else ""
        return StorageError(f"{url}: the credentials were refused{where}")
    if of == "denied":
        return StorageError(f"{url}: permission denied: who asks may not {doing} there")
    return (StorageError if of == "unfit" else StorageFailed)(f"{url}: cannot {doing}: {scrubbed(_cause(error))}")


def whole(url: str, content: bytes, first: int, end: int) -> bytes:
    """The content, if it is as long as was asked for. Raises StorageFailed."""
    if len(content) != end - first:
        raise StorageFailed(f"{url}: a read of bytes {first} to {end} gave {len(content)}, not {end - first}: it was cut short")
    return content


def scrubbed(text: str) -> str:
    """A text without passwords: neither in URLs, nor as they stand in the environment."""
    for name, value in os.environ.items():
        if len(value) > 3 and any(part in name.upper() for part in _SECRETS):
            text = text.replace(value, "***")
    return redacted(text)


def _cause(error: Exception) -> str:
    """What went wrong, in one line."""
    text = (getattr(error, "strerror", None) or " ".join(str(error).split())) or type(error).__name__
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
