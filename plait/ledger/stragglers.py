"""Who stays slower than the others, and in what: told once, and once more when it no longer is.

    slower       its seconds for a sample, over the median of the others'
    a straggler  more than RATIO, at a cost of more than WORTH of the unit's time, in PATIENCE units one after the other
    no longer    less than CLEAR, or at less than half that cost, in PATIENCE units one after the other

Seconds for a sample, since who has a smaller share for being slow is slow nonetheless.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple, get_args

Phase = Literal["computing", "data", "sending"]
RATIO, CLEAR = 1.5, 1.25
WORTH = 0.05
PATIENCE = 8
WARM = 1
"""First units of a process, which are nobody's usual ones."""


class Pace(NamedTuple):
    """Of one replica in one unit, by its slowest rank: seconds. sending: of its own; 0 where all send together."""

    samples: int
    computing: float
    data: float
    sending: float
    rank: int = 0


class Found(NamedTuple):
    """seconds: for a sample; usual: the median of the others'."""

    replica: int
    rank: int
    phase: Phase
    seconds: float
    usual: float
    recovered: bool

    @property
    def slower(self) -> float:
        return self.seconds / self.usual if self.usual else math.inf


class Stragglers:
    """Watches units as they are committed."""

    def __init__(self) -> None:
        self._units: Counter[int] = Counter()
        self._in_a_row: Counter[tuple[int, Phase]] = Counter()
        """units in which it was otherwise than was last told"""
        self._told: set[tuple[int, Phase]] = set()

    def observe(self, paces: Mapping[int, Pace], seconds: float) -> list[Found]:
        """Of a unit that took so many seconds; what is to be told after it."""
        self._units.update(list(paces))
        usual = {replica: pace for replica, pace in paces.items() if pace.samples and self._units[replica] > WARM}
        return [found for phase in get_args(Phase) for found in self._in(phase, usual, seconds)]

    def forget(self, replica: int) -> None:
        """Its process is gone."""
        del self._units[replica]
        for phase in get_args(Phase):
            del self._in_a_row[replica, phase]
            self._told.discard((replica, phase))

    def _in(self, phase: Phase, paces: Mapping[int, Pace], seconds: float) -> Iterator[Found]:
        """seconds: of the unit."""
        times = {replica: getattr(pace, phase) / pace.samples for replica, pace in paces.items()}
        for replica, pace in paces.items() if len(paces) > 1 else ():
            mine, others = times[replica], statistics.median(time for other, time in times.items() if other != replica)
            told = (replica, phase) in self._told
            cost = (mine - others) * pace.samples
            slow = mine > RATIO * others and cost > WORTH * seconds
            level = mine < CLEAR * others or cost < WORTH / 2 * seconds
            changed = level if told else slow
            self._in_a_row[replica, phase] = self._in_a_row[replica, phase] + 1 if changed else 0
            if self._in_a_row[replica, phase] == PATIENCE:
                self._in_a_row[replica, phase] = 0
                self._told ^= {(replica, phase)}
                yield Found(replica, pace.rank, phase, mine, others, recovered=told)
