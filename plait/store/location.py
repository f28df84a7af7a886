"""Locations: what a URL says, taken apart; and what may not stand in one."""

from __future__ import annotations

import os
from dataclasses import dataclass
from urllib.parse import parse_qsl, unquote, urlsplit

from plait.errors import StorageError
from plait.spec.places import without_secret


@dataclass(frozen=True)
class Location:
    """A URL in its parts; path is without the slash before it, but for scheme "file", where it is what the file system takes."""

    scheme: str
    host: str  # of a server, or a bucket
    port: int | None
    user: str | None
    path: str
    query: dict[str, str]
    url: str  # for messages: it holds no secret, or it would not have been parsed

    def inside(self, name: str) -> str:
        """The path of a name."""
        return f"{self.path.rstrip('/')}/{name}" if self.path else name

    def shown(self, name: str = "") -> str:
        """The URL of a name, for messages."""
        base, question, query = self.url.partition("?")
        return (f"{base.rstrip('/')}/{name}" if name else base) + question + query


def is_url(text: str) -> bool:
    return "://" in text


def parse(text: str) -> Location:
    """Take a URL or a path apart. Raises StorageError: a secret in it, a port that is none."""
    if not is_url(text):
        return Location("file", "", None, None, os.path.expanduser(text), {}, text)
    try:
        parts = urlsplit(without_secret(text))
        port = parts.port
        host = parts.hostname or ""
    except ValueError as error:
        raise StorageError(str(error)) from None
    host = parts.netloc.rpartition("@")[2] if port is None else host  # buckets keep their capitals
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    path = unquote(parts.path)
    if parts.scheme == "file":
        if host not in ("", "localhost"):
            raise StorageError(f"{text}: names a host; write file:///path, with three slashes, or the path alone")
        return Location("file", "", None, None, path, query, text)
    return Location(parts.scheme, host, port, parts.username, path.strip("/"), query, text)
