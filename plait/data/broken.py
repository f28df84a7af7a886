"""Input that cannot be used, and what becomes of it: the preparation stops, or it is counted, or laid aside in a file besides.

data.broken = "fail"         the message names the file and the line, row or byte, and nothing is prepared
              "skip"         it is left out, and the manifest tells how much of which kind
              "quarantine"   the same, and <prepared>/<request>/quarantine.jsonl holds place, reason and content
"""

from __future__ import annotations

import json
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Literal

from plait.errors import DataError
from plait.store import durable

Policy = Literal["fail", "skip", "quarantine"]
QUARANTINE, ACCOUNT = "quarantine.jsonl", "aside.json"
KEPT_BYTES = 1 << 16  # of what is laid aside, so that a file of one endless line does not fill the disk


class Unusable(DataError):
    """A document, or the rest of a file, that is no text as the run file describes it.

    place: file and line, row or byte. kind: a few words to count it by. raw: what stands there, or its beginning.
    """

    def __init__(self, place: str, kind: str, why: str, raw: bytes = b"") -> None:
        super().__init__(f"{place}: {why}")
        self.place = place
        self.kind = kind
        self.why = why
        self.raw = raw


def refuse(unusable: Unusable) -> None:
    """Stop at the first one."""
    raise unusable


class Aside:
    """Goes on without what is unusable, and keeps account of it."""

    def __init__(self, policy: Policy, file: BinaryIO | None = None) -> None:
        self.counts: Counter[str] = Counter()
        self.first: dict[str, str] = {}
        """By kind, the message of the first."""
        self._policy = policy
        self._file = file

    def __call__(self, unusable: Unusable) -> None:
        """Raises the unusable itself: the policy is "fail"."""
        if self._policy == "fail":
            raise unusable
        self.counts[unusable.kind] += 1
        self.first.setdefault(unusable.kind, str(unusable))
        if self._file is not None:
            raw = unusable.raw[:KEPT_BYTES].decode("utf-8", "backslashreplace")
            line = {"place": unusable.place, "kind": unusable.kind, "why": unusable.why, "raw": raw}
            self._file.write(json.dumps(line, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")


class Account:
    """An `Aside` for one reading of the whole corpus; its counts and its file appear in a folder once the reading has ended well."""

    def __init__(self, folder: Path, policy: Policy) -> None:
        self._folder = folder
        self._policy = policy
        self._stack = ExitStack()

    def __enter__(self) -> Aside:
        file = self._stack.enter_context(durable.writing(self._folder / QUARANTINE)) if self._policy == "quarantine" else None
        self._aside = Aside(self._policy, file)
        return self._aside

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.__exit__(kind, error, trace)
        if kind is None:
            with durable.writing(self._folder / ACCOUNT) as file:
                file.write(json.dumps({"counts": self._aside.counts, "first": self._aside.first}).encode())
