"""The link between replicas: one that is slower than it is, how fast the one that there is is, and how long it was in use.

    book(bytes)     ▓▓▓▓▓▓····|          ▓ bytes over bandwidth    · latency    | arrives
    book(bytes)           ▓▓▓····|       bytes queue behind those booked before; latencies pass side by side

Emulated, so that what pays on a slow network can be tried on one host: a message really travels as fast as it can, and is held back
until it would have arrived.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.distributed
from torch import Tensor
from torch.distributed import ProcessGroup, ReduceOp

from plait.replica import device as devices


class Link:
    """A slow link, emulated: what is sent is held back as long as it would take.

    latency: seconds of a message. bandwidth: bytes a second, each way; None: as fast as it really is.
    """

    def __init__(self, latency: float = 0.0, bandwidth: float | None = None) -> None:
        self.latency = latency
        self.bandwidth = bandwidth
        self._free = 0.0
        self._lock = threading.Lock()

    def book(self, size: int, messages: int = 1, after: float = 0.0) -> float:
        """When so many bytes would have arrived, on time.monotonic()'s clock, if nothing of them leaves before `after`.

        messages: how many follow one another, each sent when the one before has come.
        """
        with self._lock:
            self._free = max(time.monotonic(), after, self._free) + (size / self.bandwidth if self.bandwidth else 0.0)
            return self._free + messages * self.latency

    def hold(self, until: float) -> None:
        """Sleep until then."""
        time.sleep(max(0.0, until - time.monotonic()))


class Span:
    """Seconds in which something was under way: the length of a union of intervals, added by any thread."""

    def __init__(self) -> None:
        self._intervals: list[tuple[float, float]] = []

    def add(self, began: float, ended: float) -> None:
        self._intervals.append((began, ended))

    def clear(self) -> None:
        self._intervals = []

    @property
    def seconds(self) -> float:
        covered, reached = 0.0, float("-inf")
        for began, ended in sorted(self._intervals):
            covered += max(0.0, ended - max(began, reached))
            reached = max(reached, ended)
        return covered


class LinkSpeed(NamedTuple):
    """An all-reduce of b bytes takes latency + b / bandwidth. latency: seconds. bandwidth: bytes a second."""

    latency: float
    bandwidth: float


def all_reduce_traffic(size: int, members: int) -> tuple[int, int]:
    """What each member of a ring sends to all-reduce `size` bytes: bytes, and messages that follow one another.

    Patarasu, Yuan 2009: M - 1 steps that sum an M-th part each, and M - 1 that hand the sums on.
    """
    return 2 * (members - 1) * size // members, 2 * (members - 1)


SMALL, MIDDLE, LARGE = 1, 2**16, 2**20
"""Elements in fp32."""
QUICK = 5e-3
"""Seconds that MIDDLE may take where LARGE is tried too: it tells more of a fast link, and takes too long on a slow one."""
REPEATS = 4


def measure(group: ProcessGroup, device: torch.device, emulated: Link | None = None) -> LinkSpeed:
    """How fast members all-reduce; all of them measure together, and get the same answer. Takes about 0.05 s on one host.

    emulated: a slow link that what travels is held back by. The quickest of a few is taken, on the member that was slowest: what was
    slower was somebody else's work on the same machine.
    """

    def seconds(elements: int) -> float:
        values_N = torch.zeros(elements, device=device)
        return _agreed(min(_timed(lambda: _all_reduce(values_N, group, emulated), device) for _ in range(REPEATS)), group, device)

    seconds(SMALL)  # the first makes connections
    latency = seconds(SMALL)
    size, taken = MIDDLE, seconds(MIDDLE)
    if taken < QUICK:
        size, taken = LARGE, seconds(LARGE)
    return LinkSpeed(latency, 4 * size / max(taken - latency, 1e-2 * taken))


def _all_reduce(values_N: Tensor, group: ProcessGroup, emulated: Link | None) -> None:
    until = emulated.book(*all_reduce_traffic(values_N.nbytes, group.size())) if emulated else 0.0
    group.allreduce([values_N]).wait()
    if emulated:
        emulated.hold(until)


def _timed(act: Callable[[], None], device: torch.device) -> float:
    devices.synchronize(device)
    began = time.perf_counter()
    act()
    devices.synchronize(device)
    return time.perf_counter() - began


def _agreed(seconds: float, group: ProcessGroup, device: torch.device) -> float:
    slowest = torch.tensor([seconds], dtype=torch.float64, device=device)
    group.allreduce([slowest], ReduceOp.MAX).wait()
    return float(slowest)
