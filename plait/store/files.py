"""Files of this host, or of whatever is mounted here (NFS, Lustre, an Alluxio or S3 mount)."""

from __future__ import annotations

import contextlib
import glob
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from plait.store import durable
from plait.store.location import Location
from plait.store.protocol import Entry, Store


class FileStore(Store):
    """A folder. What is being written has a name that ends in .part, which is not listed."""

    def __init__(self, location: Location) -> None:
        super().__init__(location)
        self._root = Path(location.path)

    def _read(self, name: str, first: int, end: int | None) -> bytes:
        with (self._root / name).open("rb") as file:
            file.seek(first)
            return file.read(-1 if end is None else end - first)

    def _write(self, name: str, content: bytes) -> None:
        with durable.writing(self._made(name)) as file:
            file.write(content)

    def _create(self, name: str, content: bytes) -> bool:
        """A link is made where no file stands, and fails where one does."""
        path = self._made(name)
        draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
        try:
            with draft.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.link(draft, path)
        except FileExistsError:
            return False
        finally:
            draft.unlink(missing_ok=True)
        durable.sync_folder(path.parent)
        return True

    def _upload(self, path: Path, name: str) -> None:
        with durable.writing(self._made(name)) as target, path.open("rb") as source:
            shutil.copyfileobj(source, target, 1 << 20)

    def _stat(self, name: str) -> Entry | None:
        path = self._root / name
        if not path.is_file():
            return None
        about = path.stat()
        return Entry(name, about.st_size, str(about.st_mtime_ns))

    def _list(self, prefix: str) -> Iterator[Entry]:
        """Only the folder that the prefix leads to is walked."""
        for folder, _, files in os.walk(self._root / prefix.rpartition("/")[0]):
            for file in files:
                name = (Path(folder) / file).relative_to(self._root).as_posix()
                if not file.endswith(".part") and (entry := self._stat(name)) is not None:
                    yield entry

    def _delete(self, name: str) -> None:
        """With what writers that were killed left of it, and folders that are empty then."""
        path = self._root / name
        for file in [path, *path.parent.glob(f"{glob.escape(path.name)}.*.part")]:
            file.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # one that is not empty
            for folder in path.relative_to(self._root).parents[:-1]:
                (self._root / folder).rmdir()

    def _made(self, name: str) -> Path:
        path = self._root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path
