"""HDFS, by its own protocol (hdfs://) or over HTTP (webhdfs://): written beside its name, then renamed.

hdfs://HOST[:PORT]/path; hdfs:///path is the file system that HADOOP_CONF_DIR's core-site.xml names. A rename is one transaction of the
NameNode: it replaces what is there in `write`, and is refused where something is in `create`.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from plait.errors import StorageError
from plait.store import trouble
from plait.store.location import Location
from plait.store.protocol import PART, Entry, Store

_HTTP_PORT = 9870


class _Renaming(Store):
    """What both ways to HDFS share. What is being written has a name that ends in .part, which is not listed."""

    def _write(self, name: str, content: bytes) -> None:
        self._move(self._drafted(name, [content]), name, over=True)

    def _create(self, name: str, content: bytes) -> bool:
        if self._stat(name) is not None:
            return False
        draft = self._drafted(name, [content])
        try:
            self._move(draft, name, over=False)
        except Exception:
            self._remove(draft)
            if self._stat(name) is not None:
                return False
            raise
        return True

    def _upload(self, path: Path, name: str) -> None:
        with path.open("rb") as file:
            self._move(self._drafted(name, iter(lambda: file.read(PART), b"")), name, over=True)

    def _delete(self, name: str) -> None:
        self._remove(self._path(name))

    def _drafted(self, name: str, parts: Any) -> str:
        """A file of the content beside its name; gone if it could not be written whole."""
        path = PurePosixPath(self._path(name))
        self._make(str(path.parent))
        draft = str(path.with_name(f".{path.name}.{secrets.token_hex(4)}.part"))
        try:
            self._put(draft, parts)
        except Exception:
            with contextlib.suppress(Exception):
                self._remove(draft)
            raise
        return draft

    def _path(self, name: str) -> str:
        return "/" + self.location.inside(name)

    def _named(self, path: str) -> str:
        return path.removeprefix(self._path("").rstrip("/") + "/")

    @abstractmethod
    def _put(self, path: str, parts: Iterator[bytes]) -> None: ...
    @abstractmethod
    def _make(self, folder: str) -> None: ...
    @abstractmethod
    def _move(self, draft: str, name: str, over: bool) -> None: ...
    @abstractmethod
    def _remove(self, path: str) -> None: ...


class HadoopStore(_Renaming):
    """By HDFS's own protocol."""

    def __init__(self, location: Location) -> None:
        super().__init__(location)
        import hdfs_native

        host = location.host + (f":{location.port}" if location.port else "")
        with self._told("", "read"):
            self._client = hdfs_native.Client(f"hdfs://{host}" if host else None)
        self._options = hdfs_native.WriteOptions

    def _read(self, name: str, first: int, end: int | None) -> bytes:
        file = self._client.read(self._path(name))
        size = len(file)
        last = size if end is None else min(end, size)
        return bytes(file.read_range(first, last - first)) if first < last else b""

    def _stat(self, name: str) -> Entry | None:
        try:
            about = self._client.get_file_info(self._path(name))
        except FileNotFoundError:
            return None
        return None if about.isdir else Entry(name, about.length, f"{about.modification_time}-{about.length}")

    def _list(self, prefix: str) -> Iterator[Entry]:
        try:
            for about in self._client.list_status(self._path(prefix.rpartition("/")[0]), True):
                if not about.isdir and not about.path.endswith(".part"):
                    yield Entry(self._named(about.path), about.length, f"{about.modification_time}-{about.length}")
        except FileNotFoundError:
            return

    def _put(self, path: str, parts: Iterator[bytes]) -> None:
        file = self._client.create(path, self._options(overwrite=False))
        for part in parts:
            file.write(part)
        file.close()

    def _make(self, folder: str) -> None:
        self._client.mkdirs(folder, 0o755, True)

    def _move(self, draft: str, name: str, over: bool) -> None:
        self._client.rename(draft, self._path(name), over)

    def _remove(self, path: str) -> None:
        self._client.delete(path, False)

    def _kind(self, error: Exception) -> trouble.Kind | None:
        text = str(error)
        if "AccessControlException" in text:
            return "denied"
        return "refused" if "SASL" in text or "GSSAPI" in text or "Kerberos" in text else None


class WebHadoopStore(_Renaming):
    """By the NameNode's HTTP door, or an HttpFS gateway: webhdfs://HOST[:9870]/path."""

    def __init__(self, location: Location) -> None:
        super().__init__(location)
        from fsspec.implementations.webhdfs import WebHDFS

        if not location.host:
            raise StorageError(f"{location.url}: names no host; write webhdfs://HOST:{_HTTP_PORT}/PATH")
        token = os.environ.get("HADOOP_TOKEN")
        user = None if token else os.environ.get("HADOOP_USER_NAME") or os.environ.get("USER") or "plait"
        self._files = WebHDFS(location.host, location.port or _HTTP_PORT, user=user, token=token, skip_instance_cache=True)

    def _read(self, name: str, first: int, end: int | None) -> bytes:
        entry = self._stat(name)
        if entry is None:
            raise FileNotFoundError(name)
        last = entry.bytes if end is None else min(end, entry.bytes)
        if first >= last:
            return b""
        content: bytes = self._files._call("OPEN", path=self._path(name), offset=first, length=last - first).content
        return content

    def _stat(self, name: str) -> Entry | None:
        try:
            about = self._files.info(self._path(name))
        except FileNotFoundError:
            return None
        return _entry(name, about) if about["type"] == "file" else None

    def _list(self, prefix: str) -> Iterator[Entry]:
        try:
            found = self._files.find(self._path(prefix.rpartition("/")[0]), detail=True)
        except FileNotFoundError:
            return
        for path, about in found.items():
            if not path.endswith(".part"):
                yield _entry(self._named(path), about)

    def _put(self, path: str, parts: Iterator[bytes]) -> None:
        with self._files.open(path, "wb") as file:
            for part in parts:
                file.write(part)

    def _make(self, folder: str) -> None:
        self._files._call("MKDIRS", method="put", path=folder)

    def _move(self, draft: str, name: str, over: bool) -> None:
        options = "OVERWRITE" if over else "NONE"
        self._files._call("RENAME", method="put", path=draft, destination=self._path(name), renameoptions=options)

    def _remove(self, path: str) -> None:
        self._files.rm(path)

    def _kind(self, error: Exception) -> trouble.Kind | None:
        status = getattr(getattr(error, "response", None), "status_code", None)
        return {401: "refused", 403: "denied"}.get(status)  # type: ignore[return-value, arg-type]


def _entry(name: str, about: dict[str, Any]) -> Entry:
    return Entry(name, int(about["size"]), f"{about['modificationTime']}-{about['size']}")
