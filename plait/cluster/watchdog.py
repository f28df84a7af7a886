"""Who hangs: found by what workers' pulses tell, named in one line.

    no pulse for `limit` seconds                               it is stopped, or hangs where nothing of Python runs
    no progress for `limit` seconds, and it waits for nobody   it hangs
    nobody makes progress, and some wait for their peers       connections hang; who has waited longest is taken

Peers are other replicas, or ranks of its own in a collective: who waits in one for a rank that hangs does not hang itself.

A worker that has not settled a unit yet has ten times as long: it builds, it compiles, it fills caches.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from plait.ledger.messages import Beat, Member

FIRST = 10
"""Times the limit, for a worker's first unit."""
_STATES = {"T": "it is stopped", "t": "it is traced", "D": "it waits for a device or a disk", "Z": "it has ended"}


@dataclass(frozen=True)
class Hang:
    """seconds: without progress, or without a pulse."""

    member: Member
    seconds: float
    doing: str
    stack: str


@dataclass
class _Pulse:
    since: float
    beat: Beat
    worked: bool = False

    def stale(self, now: float) -> float:
        return self.beat.seconds + now - self.since

    @property
    def doing(self) -> str:
        within = f", in {self.beat.collective}" if self.beat.collective else ""
        return f"{self.beat.doing}{within}"

    @property
    def waits(self) -> bool:
        return bool(self.beat.waiting or self.beat.collective)

    @property
    def waits_for_peers(self) -> bool:
        return self.beat.waiting == "peers" or bool(self.beat.collective)


class Watchdog:
    """limit: seconds."""

    def __init__(self, limit: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = limit
        self._clock = clock
        self._struck = -limit
        self.pulses: dict[Member, _Pulse] = {}

    def started(self, member: Member) -> None:
        self.pulses[member] = _Pulse(self._clock(), Beat("starting", "", 0.0, 0, 0, ""))

    def ended(self, member: Member) -> None:
        self.pulses.pop(member, None)

    def hear(self, member: Member, beat: Beat) -> None:
        if member in self.pulses:
            self.pulses[member].since, self.pulses[member].beat = self._clock(), beat

    def worked(self, member: Member) -> None:
        """It has settled a unit, whether its pulse has told so yet or not."""
        if member in self.pulses:
            self.pulses[member].worked = True

    def look(self, pids: Callable[[Member], int | None]) -> list[Hang]:
        """Who hangs, each told once: it is to be killed."""
        now = self._clock()
        found = [member for member, pulse in self.pulses.items() if self._hangs(pulse, now)] or self._deadlocked(now)
        hangs = [self._hang(member, now, pids(member)) for member in found]
        for member in found:
            self._struck = now
            del self.pulses[member]
        return hangs

    def _allowed(self, pulse: _Pulse) -> float:
        return self._limit if pulse.worked or pulse.beat.units else FIRST * self._limit

    def _hangs(self, pulse: _Pulse, now: float) -> bool:
        allowed = self._allowed(pulse)
        return now - pulse.since > allowed or (not pulse.waits and pulse.stale(now) > allowed)

    def _deadlocked(self, now: float) -> list[Member]:
        waiting = {member: pulse.stale(now) for member, pulse in self.pulses.items() if pulse.waits_for_peers}
        just_struck = now - self._struck <= self._limit  # those who waited for who was killed go on
        if not waiting or just_struck or any(pulse.stale(now) <= self._allowed(pulse) for pulse in self.pulses.values()):
            return []
        return [max(waiting, key=lambda member: waiting[member])]

    def _hang(self, member: Member, now: float, pid: int | None) -> Hang:
        pulse = self.pulses[member]
        silent = now - pulse.since
        if silent <= self._allowed(pulse) and pulse.beat.stack:
            return Hang(member, pulse.stale(now), pulse.doing, pulse.beat.stack)
        return Hang(member, max(silent, pulse.stale(now)), pulse.doing, _state(pid))


def _state(pid: int | None) -> str:
    """What the system says of a process that does not answer."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "it does not answer"
    return _STATES.get(state, "it does not answer")
