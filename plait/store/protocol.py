"""What a store can do, and the half of it that all systems share: names, messages, files in parts."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from plait.errors import NotStored, PlaitError, StorageError
from plait.store import durable, trouble
from plait.store.location import Location

PART = 8 << 20


@dataclass(frozen=True)
class Entry:
    """What is stored under a name. version: whatever the system changes with the content (an ETag, a time); None where it has none."""

    name: str
    bytes: int
    version: str | None = None


class Store(ABC):
    """Files under one URL. The underscored methods are a system's own; they may raise whatever its driver does."""

    largest: int | None = None
    """Bytes that one value may have, where the system sets a limit."""
    lists = True
    """Whether the system can say what it holds."""
    conditional = True
    """Whether `create` is one operation of the system; else it looks first, and then writes."""

    def __init__(self, location: Location) -> None:
        self.location = location

    def __repr__(self) -> str:
        return f"<store {self.location.url}>"

    def url(self, name: str = "") -> str:
        return self.location.shown(name)

    def read(self, name: str, first: int = 0, end: int | None = None) -> bytes:
        """The bytes [first, end); all from `first` on when `end` is left out. Fewer where the content is shorter. Raises NotStored."""
        with self._told(name, "read"):
            return b"" if end is not None and end <= first else self._read(name, first, end)

    def find(self, name: str) -> bytes | None:
        """What is under a name, if anything is."""
        with contextlib.suppress(NotStored):
            return self.read(name)
        return None

    def write(self, name: str, content: bytes) -> None:
        """Put the content under a name, in place of what was there; no reader ever sees a part of it."""
        with self._told(name, "write"):
            self._fitting(name, len(content))
            self._write(name, content)

    def create(self, name: str, content: bytes) -> bool:
        """Write where nothing stands; False, and nothing done, where something does. Of several at once one is told True."""
        with self._told(name, "write"):
            self._fitting(name, len(content))
            return self._create(name, content)

    def upload(self, path: Path, name: str) -> None:
        """Put a file under a name, as `write` does."""
        with self._told(name, "write"):
            self._fitting(name, path.stat().st_size)
            self._upload(path, name)

    def download(self, name: str, path: Path) -> None:
        """Bring content to a file, which appears whole. Raises NotStored; StorageFailed where the content ends early."""
        with self._told(name, "read"):
            entry = self._stat(name)
            if entry is None:
                raise NotStored(f"{self.url(name)}: there is nothing of that name")
            with durable.writing(path) as file:
                for first in range(0, entry.bytes, PART):
                    end = min(first + PART, entry.bytes)
                    file.write(trouble.whole(self.url(name), self._read(name, first, end), first, end))

    def stat(self, name: str) -> Entry | None:
        """What is known of a name without reading it; None where nothing is."""
        with self._told(name, "read"):
            return self._stat(name)

    def entries(self, prefix: str = "") -> list[Entry]:
        """All whose names begin so, through all folders, sorted by name; nothing where nothing is."""
        with self._told(prefix, "list"):
            return sorted((entry for entry in self._list(prefix) if entry.name.startswith(prefix)), key=lambda entry: entry.name)

    def delete(self, name: str) -> None:
        """Remove what is under a name; what is not there is no matter."""
        with self._told(name, "delete"), contextlib.suppress(FileNotFoundError):
            self._delete(name)

    def close(self) -> None:  # noqa: B027
        """Let go of connections; a store that nobody closes lets go of them when it is collected."""

    @abstractmethod
    def _read(self, name: str, first: int, end: int | None) -> bytes: ...
    @abstractmethod
    def _write(self, name: str, content: bytes) -> None: ...
    @abstractmethod
    def _create(self, name: str, content: bytes) -> bool: ...
    @abstractmethod
    def _stat(self, name: str) -> Entry | None: ...
    @abstractmethod
    def _list(self, prefix: str) -> Iterator[Entry]: ...
    @abstractmethod
    def _delete(self, name: str) -> None: ...

    def _upload(self, path: Path, name: str) -> None:
        self._write(name, path.read_bytes())

    def _kind(self, error: Exception) -> trouble.Kind | None:
        """What an error of the driver's is, where that is not told by its Python class."""
        return None

    @contextlib.contextmanager
    def _told(self, name: str, doing: trouble.Doing) -> Iterator[None]:
        """Errors of drivers in plait's words."""
        _check_name(self.url(), name)
        try:
            yield
        except PlaitError:
            raise
        except Exception as error:
            raise trouble.told(self.location, name, doing, error, self._kind(error) or trouble.kind(error)) from error

    def _fitting(self, name: str, size: int) -> None:
        if self.largest is not None and size > self.largest:
            raise StorageError(
                f"{self.url(name)}: {size:,} bytes are more than {self.location.scheme} takes in one value ({self.largest:,}); "
                "choose an object store or a file system for this"
            )


def _check_name(url: str, name: str) -> None:
    if name.startswith("/") or ".." in name.split("/"):
        raise StorageError(f"{url}: {name!r} is no name inside it")
