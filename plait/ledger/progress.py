"""What this process is doing, and since when: told by whoever does it, read by its pulse."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Literal

Waiting = Literal["", "peers", "ledger"]
"""For whom, where what is done is to wait: who waits is not the one that hangs."""


@dataclass
class Progress:
    """units: leases that have been settled in this process."""

    doing: str = "starting"
    waiting: Waiting = ""
    since: float = field(default_factory=time.monotonic)
    step: int = 0
    units: int = 0

    def __call__(self, doing: str, waiting: Waiting = "") -> None:
        self.doing, self.waiting, self.since = doing, waiting, time.monotonic()


progress = Progress()
"""This process's."""
