"""Signals, by convention: SIGTERM saves and stops, SIGUSR1 saves and goes on, SIGINT once is graceful and twice is hard."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Self

from plait.ledger.messages import Request


class Signals:
    """Turns signals into requests while it is entered. `take` gives each request once; `hard` is called on a second SIGINT."""

    def __init__(self, hard: Callable[[], None]) -> None:
        self._hard = hard
        self._requests: list[Request] = []
        self._interrupted = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # Python lets no other thread have signals
            for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def take(self) -> Request | None:
        return self._requests.pop(0) if self._requests else None

    def _handle(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT and self._interrupted:
            self._hard()
        self._interrupted |= number == signal.SIGINT
        self._requests.append("save" if number == signal.SIGUSR1 else "stop")
