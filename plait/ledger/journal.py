"""The journal: events.jsonl, appended line by line.

A full or failing disk does not stop a run: lines that cannot be written wait in memory and go out with the next one.
"""

from __future__ import annotations

import os
from pathlib import Path

from plait import events


class Journal:
    """Appends events to a file. A last line that a kill cut short is removed first."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.trouble: str | None = None
        self._waiting: list[bytes] = []
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        self._end = _drop_torn_line(self._descriptor)

    def append(self, event: events.Event) -> None:
        self._waiting.append(event.to_json().encode() + b"\n")
        try:
            while self._waiting:
                self._write(self._waiting[0])
                self._waiting.pop(0)
            self.trouble = None
        except OSError as error:
            self.trouble = f"{self.path}: {error.strerror}; {len(self._waiting)} lines wait in memory"

    def close(self) -> None:
        os.close(self._descriptor)

    def _write(self, line: bytes) -> None:
        """All of the line or nothing of it: a torn one is cut off again."""
        written = os.write(self._descriptor, line)
        if written != len(line):
            os.ftruncate(self._descriptor, self._end)
            raise OSError(28, "No space left on device")
        self._end += len(line)


def read(path: Path) -> list[events.Event]:
    """The events of a run's journal, in order; none where there is no file."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="\n") as lines:
        return list(events.read(lines))


def _drop_torn_line(descriptor: int) -> int:
    """Cut what stands after the last newline; returns the length that is left."""
    size = os.fstat(descriptor).st_size
    end = size
    while end and os.pread(descriptor, 1, end - 1) != b"\n":
        end -= 1
    if end != size:
        os.ftruncate(descriptor, end)
    return end
