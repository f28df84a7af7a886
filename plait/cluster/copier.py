"""Has checkpoints copied to their second home, by a process beside the run, and records what becomes of it.

Saved ──▶ Copier ──stdin──▶ python -m plait.train.copying ──▶ URL
             ◀──thread──stdout──┘   Copied, CopyFailed
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from plait import spec
from plait.events import Copied, CopyFailed, Event, Saved
from plait.train import manifest

_SILENT = 2.0
"""Seconds of waiting that need no word."""


class Copier:
    """A listener, to be entered. tell: records an event, from any thread. folder: of the run's checkpoints; what it holds already is copied
    too, should a process that died have left it behind."""

    def __init__(self, tell: Callable[[Event], None], folder: Path, settings: spec.Checkpoint) -> None:
        assert settings.copy_to is not None
        self._tell = tell
        self._folder = folder
        self._patience = settings.copy_patience
        self._settings = {"folder": str(folder), "url": settings.copy_to, "keep": settings.keep, "rate": settings.copy_mib_per_s}
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._owed: int | None = None
        """the step that was last asked for and is not there yet"""

    def on(self, event: Event) -> None:
        if isinstance(event, Saved):
            self._want(event.step)

    def close(self) -> None:
        """All is done in leaving."""

    def __enter__(self) -> Self:
        if (newest := manifest.latest(self._folder)) is not None:
            self._want(manifest.step_of(newest))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Wait for the last copy; a run that is broken off at once waits for nothing."""
        if self._process is None or self._reader is None or self._process.stdin is None:
            return
        try:
            if error is None or isinstance(error, Exception):
                self._finish(self._process)
        finally:
            self._owed = None
            self._process.kill()
            self._reader.join()
            with suppress(OSError):
                self._process.stdin.close()

    def _finish(self, process: subprocess.Popen[str]) -> None:
        self._ask({"finish": True})
        if _ends(process, _SILENT):
            return
        print(f"plait: waiting for checkpoints to be copied, {self._patience:g} s at most", file=sys.stderr, flush=True)
        owed = self._owed
        if not _ends(process, self._patience - _SILENT) and owed is not None:
            why = f"was not done within {self._patience:g} s of the run's end; the same command goes on with it"
            self._tell(CopyFailed(time.time(), owed, why))

    def _want(self, step: int) -> None:
        self._owed = step
        if self._process is None or self._process.poll() is not None:
            self._start()
        self._ask({"copy": step})

    def _start(self) -> None:
        command = [sys.executable, "-m", "plait.train.copying", json.dumps(self._settings)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, start_new_session=True
        )
        self._reader = threading.Thread(target=self._read, args=(self._process,), name="copies of checkpoints", daemon=True)
        self._reader.start()

    def _ask(self, words: dict[str, Any]) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        with suppress(OSError):  # it has ended, which its reader tells
            self._process.stdin.write(json.dumps(words) + "\n")

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            words = json.loads(line)
            if "failed" in words:
                self._tell(CopyFailed(time.time(), words["failed"], words["why"]))
                continue
            if words["copied"] == self._owed:
                self._owed = None
            if words["sent"]:
                self._tell(Copied(time.time(), words["copied"], words["url"], words["bytes"], words["seconds"]))
        if process.wait() and self._owed is not None:
            self._tell(CopyFailed(time.time(), self._owed, f"the process that copies ended with status {process.returncode}"))


def _ends(process: subprocess.Popen[str], seconds: float) -> bool:
    try:
        process.wait(max(0.0, seconds))
    except subprocess.TimeoutExpired:
        return False
    return True
