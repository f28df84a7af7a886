"""The process that copies checkpoints to their second home: python -m plait.train.copying '{"folder": ..., "url": ..., ...}'

    stdin                                    stdout
    {"copy": 400}     a checkpoint is there  {"copied": 400, "url": ..., "bytes": ..., "seconds": ..., "sent": true}
    {"finish": true}  end when it is copied  {"failed": 400, "why": "..."}   told once; it is tried again, or a newer one instead
    end of file       end at once

The run's journal goes there with each. It has a process of its own, of low priority, so that it takes nothing of the training but cores
that are idle. What it copies it holds by hard links meanwhile: checkpoints may come and go faster than they are copied. Of several that
wait, the newest is copied.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from plait.errors import CheckpointError, PlaitError, StorageError
from plait.train import manifest
from plait.train.home import JOURNAL, Home

WAITS = (1.0, 2.0, 4.0, 8.0, 20.0, 60.0)
"""Seconds before another attempt; the last from then on."""
_HURRIED = 2.0
_NICENESS = 10


class Copying:
    """folder: of the run's checkpoints. keep: the newest that stay in the second home. rate: MiB a second at most, on average."""

    def __init__(
        self,
        home: Home,
        folder: Path,
        keep: int,
        rate: float | None,
        tell: Callable[[dict[str, Any]], None],
        waits: tuple[float, ...] = WAITS,
    ) -> None:
        self._home, self._folder, self._keep, self._rate = home, folder, keep, rate
        self._journal = folder.parent / JOURNAL
        self._tell = tell
        self._waits = waits
        self._changed = threading.Condition()
        self._wanted: int | None = None
        self._finishing = False

    def want(self, step: int) -> None:
        with self._changed:
            self._wanted = step
            self._changed.notify()

    def finish(self) -> None:
        with self._changed:
            self._finishing = True
            self._changed.notify()

    def work(self) -> None:
        """Until it is told to finish, and nothing is left to copy."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._wanted is not None or self._finishing)
                step, self._wanted = self._wanted, None
            if step is None:
                break
            self._bring(step)
        with suppress(PlaitError, OSError):  # the next start copies what is missing
            self._home.copy_journal(self._journal)

    def _bring(self, step: int) -> None:
        """Try until it is there, or another is wanted, or trying is of no use."""
        began, attempts = time.monotonic(), 0
        while True:
            try:
                whole, sent = self._copy(step)
            except (PlaitError, OSError) as error:
                if not (self._folder / manifest.name(step)).exists():
                    return  # a newer one has taken its place, or its curve is void
                if not attempts:
                    self._tell({"failed": step, "why": str(error)})
                wait = self._waits[min(attempts, len(self._waits) - 1)]
                attempts += 1
                if isinstance(error, StorageError | CheckpointError) or self._wait(wait):
                    return
            else:
                seconds = time.monotonic() - began
                self._tell({"copied": step, "url": self._home.url(step), "bytes": whole.bytes, "seconds": seconds, "sent": sent})
                return

    def _wait(self, seconds: float) -> bool:
        """Whether another one is wanted."""
        with self._changed:
            if self._finishing:
                self._changed.wait_for(lambda: self._wanted is not None, min(seconds, _HURRIED))
            else:
                self._changed.wait_for(lambda: self._wanted is not None or self._finishing, seconds)
            return self._wanted is not None

    def _copy(self, step: int) -> tuple[manifest.Manifest, bool]:
        """And whether it was not complete there before."""
        held = manifest.hold(self._folder / manifest.name(step))
        try:
            self._home.copy_journal(self._journal)  # it tells of this checkpoint already
            whole, sent = manifest.read(held), self._home.copy(held, self._pace())
        finally:
            shutil.rmtree(held, ignore_errors=True)
        if sent:
            self._home.prune(step, self._keep)
        return whole, sent

    def _pace(self) -> Callable[[int], None]:
        """Waits after each piece for as long as it was too quick."""
        began, sent = time.monotonic(), 0

        def pace(size: int) -> None:
            nonlocal sent
            sent += size
            if self._rate is not None:
                time.sleep(max(0.0, began + sent / (self._rate * 2**20) - time.monotonic()))

        return pace


def main() -> None:
    settings = json.loads(sys.argv[1])
    with suppress(OSError):
        os.nice(_NICENESS)

    def tell(words: dict[str, Any]) -> None:
        with suppress(BrokenPipeError):  # who asked is gone, and stdin will say so
            print(json.dumps(words), flush=True)

    copying = Copying(Home.at(settings["url"]), Path(settings["folder"]), settings["keep"], settings["rate"], tell)
    threading.Thread(target=_listen, args=(sys.stdin, copying), daemon=True).start()
    copying.work()


def _listen(lines: TextIO, copying: Copying) -> None:
    for line in lines:
        words = json.loads(line)
        if "copy" in words:
            copying.want(words["copy"])
        else:
            copying.finish()
    os._exit(0)  # a copy that is cut short is gone on with by the next process


if __name__ == "__main__":
    main()
