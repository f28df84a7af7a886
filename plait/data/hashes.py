"""Checksums of source files, remembered by path, size and time of change, so that finding what is prepared is quick."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

from plait.errors import DataError
from plait.store import durable


class Hashes:
    """The checksums that a folder remembers. Two processes at once may lose each other's news, never the file."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "hashes.json"

    def of(self, paths: list[Path], on_read: Callable[[int], None] = lambda count: None) -> dict[Path, str]:
        """SHA-256 of each file; those that changed since are read, `on_read` hears their sizes. Raises DataError when one cannot be."""
        known = self._remembered()
        keys = {path: _key(path) for path in paths}
        missing = [path for path in paths if keys[path] not in known]
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:  # hashlib lets go of the interpreter
            for path, digest in zip(missing, threads.map(_sha256, missing), strict=True):
                known[keys[path]] = digest
                on_read(path.stat().st_size)
        if missing:
            self._remember(known)
        return {path: known[keys[path]] for path in paths}

    def knows(self, path: Path) -> bool:
        """Whether the file need not be read to tell its checksum, by what was remembered when this was first asked."""
        return path.exists() and _key(path) in self._once

    @cached_property
    def _once(self) -> dict[str, str]:
        return self._remembered()

    def _remembered(self) -> dict[str, str]:
        try:
            known = json.loads(self._path.read_bytes())
        except (OSError, ValueError):
            return {}
        return known if isinstance(known, dict) else {}

    def _remember(self, known: dict[str, str]) -> None:
        """A folder that cannot be written costs time, not the run."""
        with contextlib.suppress(OSError), durable.writing(self._path) as file:
            file.write(json.dumps(known, indent=0).encode())


def _key(path: Path) -> str:
    try:
        about = path.stat()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    return f"{path.absolute()}|{about.st_size}|{about.st_mtime_ns}"


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
