"""The size of buckets: small ones cost latency, and the last one's time is hidden by nothing.

A unit sends N bytes over a link of latency a and bandwidth w, in buckets of b. Nearly all of it happens while backward computes; what
shows is the latency of N / b messages and the one bucket that is ready only when backward has ended:

    shown(b) = a N / b + b / w        0 = -a N / b^2 + 1 / w        b = sqrt(a w N)
"""

from __future__ import annotations

import math
from collections import deque

LEAST, MOST = 2**18, 2**26
RECENT = 10
WORTH_IT = 2.0  # a new size must differ by this factor: around the best one the curve is flat


def best_bucket(total: float, latency: float, bandwidth: float) -> int:
    """Bytes of a bucket, for `total` bytes a unit over a link of `latency` seconds and `bandwidth` bytes a second."""
    return round(min(MOST, max(LEAST, math.sqrt(latency * bandwidth * total))))


class Tuning:
    """Follows the link as it changes. bucket: the size now; 0 where it stays as it is."""

    def __init__(self, bucket: int) -> None:
        self._bucket = bucket
        self.retuned = 0
        """the size since it was last changed, 0 where it never was"""
        self._latency: float | None = None
        self._bandwidth = 0.0
        self.total = 0.0
        """bytes that a rank sends of, before compression"""
        self._observed: deque[float] = deque(maxlen=RECENT)

    def link(self, latency: float, bandwidth: float) -> None:
        """As measured before the first step."""
        self._latency, self._bandwidth = latency, bandwidth

    def observe(self, communicating: float) -> None:
        """Seconds in which the buckets of one step were under way: waiting for a slow replica among them, so that the quickest
        of the last steps tells most."""
        if communicating > 0:
            self._observed.append(self.total / communicating)

    def better(self) -> tuple[int, str] | None:
        """A size that is better by enough, and why."""
        if not self._bucket or self._latency is None or not self.total:
            return None
        bandwidth = max(self._observed) if len(self._observed) == RECENT else self._bandwidth
        best = best_bucket(self.total, self._latency, bandwidth)
        if max(best / self._bucket, self._bucket / best) < WORTH_IT:
            return None
        self._bucket = self.retuned = best
        return best, f"a link of {self._latency * 1e6:.0f} us and {bandwidth / 2**20:.0f} MiB/s"
