"""Patience: reads that are tried again, then elsewhere, then waited for; a run does not die since a server does.

    primary  try ─ 0.2 s ─ try ─ 0.4 s ─ try        no answer, cut short, or not what was written
    backup   try ─ 0.2 s ─ try ─ 0.4 s ─ try        where there is one
    wait     a message, 1 s, 2 s, ... 30 s           then from the start, for as long as it takes

What trying again does not mend (refused credentials, nothing of that name, bytes that differ each time) leads to the backup at once, and
where each home fails so, the error is raised: the run stops clearly, and can be resumed when it is mended.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from plait.errors import NotStored, StorageError, StorageFailed
from plait.store.protocol import Store

TRIES = 3
FIRST_PAUSE = 0.2
LONGEST_PAUSE = 30.0

Got = TypeVar("Got")
Tell = Callable[[str], None]


def to_stderr(message: str) -> None:
    print(f"plait: {message}", file=sys.stderr, flush=True)


class Damaged(StorageFailed):
    """What was read is not what was written; a few times in a row it is so at rest."""


class CutShort(StorageFailed):
    """What is there ends before what was written did: it may be on its way."""


class DamagedAtRest(StorageError):
    """What is there is not what was written, each time it is read."""


class Homes:
    """Places that hold the same, the first one first; read with patience. `tell` hears what goes wrong, once each time; `damaged` of what
    one home has lost, or not as it was written, and another has, by its name, each time."""

    def __init__(
        self,
        homes: Sequence[Store],
        tell: Tell = to_stderr,
        sleep: Callable[[float], None] = time.sleep,
        damaged: Callable[[str], None] = lambda name: None,
    ) -> None:
        assert homes
        self._homes = homes
        self.tell = tell
        self._sleep = sleep
        self._damaged = damaged
        self._troubled: set[Store] = set()

    def ask(self, question: Callable[[Store], Got], of: str = "") -> Got:
        """What the first home answers that can. of: the name that is asked for. Raises StorageError where none can and waiting would not
        help."""
        pause = 1.0
        while True:
            errors: list[StorageError | StorageFailed] = []
            for home in self._homes:
                try:
                    answer = self._answered(home, question)
                    if any(isinstance(error, CutShort | DamagedAtRest | NotStored) for error in errors):
                        self._damaged(of)
                    return answer
                except (StorageError, StorageFailed) as error:
                    errors.append(error)
                    self._troubles(home, error)
            lasting = [error for error in errors if isinstance(error, StorageError)]
            if len(lasting) == len(errors):
                raise lasting[0]
            self.tell(f"{errors[-1]}; waiting {pause:.0f} s, then trying again")
            self._sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def _answered(self, home: Store, question: Callable[[Store], Got]) -> Got:
        answer = insistently(lambda: question(home), self._sleep)
        if home in self._troubled:
            self._troubled.discard(home)
            self.tell(f"{home.url()}: answers again")
        return answer

    def _troubles(self, home: Store, error: Exception) -> None:
        """Said once for each time of trouble, and only where another home is asked instead."""
        if home not in self._troubled and home is not self._homes[-1]:
            self.tell(f"{error}; reading the backup")
        self._troubled.add(home)


def insistently(do: Callable[[], Got], sleep: Callable[[float], None] = time.sleep) -> Got:
    """Do it, up to TRIES times while it fails. Raises StorageError at once; what is damaged each time becomes DamagedAtRest."""
    pause = FIRST_PAUSE
    for left in reversed(range(TRIES)):
        try:
            return do()
        except StorageFailed as error:
            if not left:
                raise (DamagedAtRest(str(error)) if isinstance(error, Damaged) else error) from None
        sleep(pause)
        pause *= 2
    raise AssertionError
