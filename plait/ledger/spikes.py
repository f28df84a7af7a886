"""Spikes: losses, or norms of gradients, that are far above what was usual a moment ago.

    loss    ···.··.···.··*··.        usual   the median of the last WINDOW steps
            ──────── bound ──        bound   usual + deviations x 1.4826 MAD, MAD the median distance from the median
            ···.··.···.··            (1.4826 MAD is a normal distribution's standard deviation, and outliers do not move it)

A run that spikes returns to its last checkpoint and leaves out the data of the spike, and of steps before it, whose updates may have led
there (Chowdhery et al. 2022, PaLM, section 5.1: neither the data alone nor the parameters alone made a spike; leaving some hundred batches
out did away with it).
"""

from __future__ import annotations

import statistics
from collections import deque
from dataclasses import dataclass
from typing import Any

from plait.ledger.plan import SpikeRules

WINDOW = 64
LEAST = 16
"""Steps that must be known before one is judged."""
_NORMAL = 1.4826
_FLOOR = 0.01
"""Of the median, what a deviation is at least: a curve that hardly moves does not spike at each breath."""


@dataclass(frozen=True)
class Spike:
    step: int
    what: str
    value: float
    usual: float
    bound: float

    def __str__(self) -> str:
        return f"{self.what} {self.value:.4g} of step {self.step} is beyond {self.bound:.4g}, usual is {self.usual:.4g}"


class Spikes:
    """found: the first one of the unit that is being judged, until it is `taken`."""

    def __init__(self, rules: SpikeRules) -> None:
        self.rules = rules
        self.found: Spike | None
        self._limits = {what: limit for what, limit in (("loss", rules.loss), ("grad_norm", rules.grad_norm)) if limit is not None}
        self._returned = (0, 0)
        """to which checkpoint, how often"""
        self.take({})

    def take(self, position: dict[str, Any]) -> None:
        """Be where a checkpoint was."""
        self.found = None
        self._recent: dict[str, deque[float]] = {what: deque(position.get(what, []), WINDOW) for what in self._limits}

    def position(self) -> dict[str, list[float]]:
        return {what: list(values) for what, values in self._recent.items()}

    def judge(self, step: int, **values: float) -> bool:
        """Whether a step's loss or grad_norm is beyond its bound; if not, both are what is usual from now on."""
        for what, limit in self._limits.items():
            usual, bound = _bound(self._recent[what], limit)
            if values[what] > bound:
                self.found = self.found or Spike(step, what, values[what], usual, bound)
                return True
        for what, recent in self._recent.items():
            recent.append(values[what])
        return False

    def taken(self) -> Spike | None:
        found, self.found = self.found, None
        return found

    def too_often(self, kept: int) -> bool:
        """Whether the run has returned to a checkpoint as often as it may, before this time."""
        step, times = self._returned
        times = times + 1 if step == kept else 1
        self._returned = kept, times
        return times > self.rules.limit

    def first_skipped(self, spike: Spike, kept: int) -> int:
        """The first step whose data is left out: of those after the checkpoint."""
        return max(kept + 1, spike.step - self.rules.skips + 1)


def _bound(recent: deque[float], deviations: float) -> tuple[float, float]:
    """The running median, and what is too much."""
    if len(recent) < LEAST:
        return 0.0, float("inf")
    usual = statistics.median(recent)
    deviation = _NORMAL * statistics.median(abs(value - usual) for value in recent)
    return usual, usual + deviations * max(deviation, _FLOOR * abs(usual))
