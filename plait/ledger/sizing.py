"""How large the pieces are that parameter servers' workers lease of a step one by one: split for who is slow, merged for who is quick.

    static     as the run file says, the same for all: who is quick takes more of them
    dynamic    in proportion to speed, so that all take as long
    auto       besides, as large as is best: small pieces cost pushes, and for large ones the last is waited for longer

A step of B sequences, with R replicas of v samples a second each, in pieces of p whose push costs o seconds besides computing:

    seconds(p) = B / (R v) + o B / (R p) + p / (2 v)        0 = -o B / (R p^2) + 1 / (2 v)        p = sqrt(2 o v B / R)

Under either, nobody takes more than lets it end with the others: with `left` sequences to do and `out` under way,

    p <= v (left + out) / sum of speeds
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Sequence

from plait.ledger.balance import Balance, Choice

WORTH_IT = 1.5
"""auto: a new size must differ by this factor: around the best one the curve is flat."""
SHIFT = 0.2
"""Of a replica's part of all speeds, by which it must have changed."""


class Sizing:
    """usual: sequences of a piece by the run file. micro_batch: that are computed at once."""

    def __init__(self, balance: Balance, usual: int, micro_batch: int) -> None:
        self._balance = balance
        self._usual = self._size = usual
        self._micro_batch = micro_batch
        self._followed: dict[int, float] = {}
        """parts of all speeds, by replica; empty where pieces are the same for all"""
        self._pushing: deque[float] = deque(maxlen=3)

    def size(self, replica: int, replicas: Sequence[int], left: int, out: float) -> int:
        """Of the next piece for a replica, one of these. left: sequences of the step to be leased; out: that others still compute."""
        if self._balance.policy not in ("dynamic", "auto"):
            return self._usual
        parts = self._parts(replicas)
        mine = parts[replica] / math.fsum(parts.values())
        return max(1, min(round(self._size * mine * len(replicas)), math.ceil(mine * (left + out))))

    def choose(self, replicas: Sequence[int], size: int, pushing: float) -> Choice | None:
        """Other pieces for the next step, of so many sequences, and why; None where they stay. pushing: the least seconds that a piece of
        the last step cost besides computing."""
        self._pushing.append(pushing)
        speeds = self._balance.speeds(replicas)
        if self._balance.policy not in ("dynamic", "auto") or len(replicas) < 2 or speeds is None:
            return None
        total = math.fsum(speeds.values())
        parts = {replica: speed / total for replica, speed in speeds.items()}
        why = [*self._resized(size, total / len(speeds), len(speeds)), *self._shifted(parts)]
        if not why:
            return None
        return Choice("dynamic" if self._followed else "static", parts, self._size, "; ".join(why))

    def _resized(self, size: int, speed: float, replicas: int) -> list[str]:
        if self._balance.policy != "auto":
            return []
        pushing = statistics.median(self._pushing)
        best = math.sqrt(2 * pushing * speed * size / replicas)
        best = min(best, size / replicas)
        piece = max(1, self._micro_batch * max(1, round(best / self._micro_batch)))
        if max(piece / self._size, self._size / piece) < WORTH_IT:
            return []
        self._size = piece
        return [f"pieces of {piece}, as a push costs {1e3 * pushing:.3g} ms and a sample {1e3 / speed:.3g} ms"]

    def _shifted(self, parts: dict[int, float]) -> list[str]:
        now = self._parts(list(parts))
        if all(abs(part / now[replica] - 1) < SHIFT for replica, part in parts.items()):
            return []
        self._followed = parts
        slowest, quickest = (choose(parts, key=parts.__getitem__) for choose in (min, max))
        return [f"replica {quickest} computes {parts[quickest] / parts[slowest]:.3g} times as many samples a second as replica {slowest}"]

    def _parts(self, replicas: Sequence[int]) -> dict[int, float]:
        """Of all speeds that these are taken for: who is not known is a usual one."""
        usual = statistics.mean(self._followed.values()) if self._followed else 1 / len(replicas)
        return {replica: self._followed.get(replica, usual) for replica in replicas}
