"""A courier: a queue and a thread that delivers alerts one after the other, tries again, and says what it could not deliver.

waits of 1, 2, 4 ... 60 seconds after attempts that failed; the seventh gives the alert up
when the run ends: at most a second between two attempts, and `patience` seconds for all
"""

from __future__ import annotations

import sys
import threading
import time
from queue import Empty, SimpleQueue

from plait.watch.channels import Channel, Letter, Undelivered

WAITS = (1.0, 2.0, 4.0, 8.0, 20.0, 60.0)
"""Seconds before the second attempt, the third, and so on."""
_HURRIED = 1.0
_LAST_WORDS = 2.0


class Courier:
    """patience: seconds for what is left once it is told to hurry."""

    def __init__(self, channel: Channel, patience: float, waits: tuple[float, ...] = WAITS) -> None:
        self._channel = channel
        self._patience = patience
        self._waits = waits
        self._alerts: SimpleQueue[Letter | None] = SimpleQueue()
        self._hurried, self._over = threading.Event(), threading.Event()
        self._in_hand: Letter | None = None
        self._deadline = float("inf")
        self._thread = threading.Thread(target=self._work, name=f"alerts by {channel.name}", daemon=True)
        self._thread.start()

    def take(self, alert: Letter) -> None:
        self._alerts.put(alert)

    def hurry(self) -> None:
        """There will be no other; wait no longer than need be."""
        if not self._hurried.is_set():
            self._deadline = time.monotonic() + self._patience
            self._hurried.set()
            self._alerts.put(None)

    def close(self) -> None:
        """Deliver what is left; what is not delivered when the patience is over, is given up, and each of it told."""
        self.hurry()
        self._thread.join(max(0.0, self._deadline - time.monotonic()))
        if self._thread.is_alive():
            self._over.set()
            self._channel.stop()
            self._thread.join(_LAST_WORDS)
        for alert in self._left():
            self._say(f"was not told within {self._patience:g} s of the run's end: {alert.text}")

    def _work(self) -> None:
        while not self._over.is_set() and (alert := self._alerts.get()) is not None:
            self._in_hand = alert
            if self._deliver(alert):
                self._in_hand = None

    def _deliver(self, alert: Letter) -> bool:
        """Whether it is done with: delivered, or given up and told so."""
        for attempt, wait in enumerate((*self._waits, None)):
            try:
                self._channel.deliver(alert)
                return True
            except Undelivered as failure:
                if wait is None or not failure.again:
                    self._say(f"{failure}; given up after {attempt + 1} attempt{'s' if attempt else ''}: {alert.text}")
                    return True
                if not attempt:
                    self._say(f"{failure}; trying again")
            if self._wait(wait):
                return False
        raise AssertionError("the last attempt has no wait")

    def _wait(self, seconds: float) -> bool:
        """Whether the time for attempts is over."""
        if not self._hurried.is_set():
            self._hurried.wait(seconds)
            return self._over.is_set()
        return self._over.wait(min(seconds, _HURRIED))

    def _left(self) -> list[Letter]:
        left = [self._in_hand] if self._in_hand is not None else []
        while True:
            try:
                alert = self._alerts.get_nowait()
            except Empty:
                return left
            left += [alert] if alert is not None else []

    def _say(self, text: str) -> None:
        print(f"plait: alerts: {self._channel.name}: {text}", file=sys.stderr, flush=True)
