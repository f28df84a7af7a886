"""Who gets how much of a step: by capacities that are stated, or by speeds as they are measured.

    static     as stated in the run file, or equal
    measured   by speeds as they were over the first steps, and again when another replica comes
    dynamic    by speeds as they are, damped
    auto       as stated while that is well enough; by speeds, in pieces as large as they may be, once who is quick waits for who is slow

A step takes as long as its slowest share, T = max over replicas of samples / speed. Shares change where that would have gained GAIN at
least in STEADY steps, so that noise moves nothing. What is damped is the median of three steps, so that one that was held up by something
moves nothing either:

    speed <- speed + DAMPING (median - speed)

Whoever computes what, the step is the same.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from plait.ledger import shares
from plait.ledger.stragglers import WARM

Policy = Literal["static", "measured", "dynamic", "auto"]
DAMPING = 0.5
KNOWN = 3
"""Steps after which a speed is known."""
GAIN = 0.05
STEADY = 2
"""Steps one after the other in which there must be something to gain."""
WASTE = 0.10
"""auto: of a step, that is to be gained before shares follow speeds."""
LEVEL = 0.03
"""auto: of a step, for which shares as stated are as good."""
COARSE = 0.05
"""auto: of a step, that larger pieces may cost, for fewer and fuller micro-batches."""


class Choice(NamedTuple):
    """shares: by replica, of the next step. piece: sequences of which shares are made up."""

    policy: Literal["static", "dynamic"]
    shares: dict[int, float]
    piece: int
    why: str


class Balance:
    """stated: relative shares by replica. micro_batch: sequences; 1 where it is not known here. grain: the smallest piece of a share that
    follows speeds."""

    def __init__(self, policy: Policy, stated: Sequence[float], micro_batch: int = 1, grain: int = 1) -> None:
        self.policy = policy
        self._stated = stated
        self._micro_batch, self._grain = max(micro_batch, grain), grain
        self._speeds: dict[int, _Speed] = {}
        self._followed: dict[int, float] = {}
        """speeds that shares follow; empty where they are as stated"""
        self._piece = grain
        self._in_a_row = 0
        """steps in which there was something to gain"""

    def observe(self, replica: int, samples: int, seconds: float) -> None:
        """Of a step: what a replica computed, and the seconds that it took to read and compute that."""
        if samples and seconds > 0:
            self._speeds.setdefault(replica, _Speed()).observe(samples / seconds)

    def forget(self, replica: int) -> None:
        """Another process will come in its place, maybe elsewhere."""
        self._speeds.pop(replica, None)
        self._followed.pop(replica, None)

    def capacity(self, replicas: Sequence[int]) -> list[float]:
        """Relative shares; equal ones where those that are stated are nothing for all of these. Whoever is not known is taken for a usual
        one."""
        if self._followed:
            usual = statistics.mean(self._followed.values())
            return [self._followed.get(replica, usual) for replica in replicas]
        return self._as_stated(replicas)

    def counts(self, replicas: Sequence[int], size: int) -> list[int]:
        """How many sequences of a step each of these gets."""
        if self._followed:
            return shares.by_speed(size, self.capacity(replicas), self._piece)
        return shares.counts(size, self._as_stated(replicas))

    def counts_as_stated(self, replicas: Sequence[int], size: int) -> list[int]:
        """The same, where shares shape the curve."""
        return shares.counts(size, self._as_stated(replicas))

    def speeds(self, replicas: Sequence[int]) -> dict[int, float] | None:
        """Samples a second of each; None until all are known."""
        known = {replica: self._speeds[replica].value for replica in replicas if replica in self._speeds and self._speeds[replica].known}
        return known if len(known) == len(replicas) else None

    def choose(self, replicas: Sequence[int], size: int, waiting: float) -> Choice | None:
        """Another way to deal the next step, of so many sequences, and why; None where it stays. waiting: the share of the last step in
        which the quickest of these waited for the slowest."""
        if self.policy == "static" or len(replicas) < 2 or (speeds := self.speeds(replicas)) is None:
            return None
        step = _Step(size, speeds)
        match self.policy:
            case "measured":
                return self._measured(step)
            case "dynamic":
                return self._dynamic(step)
        return self._auto(step, waiting)

    def action(self, share: float) -> str:
        """What is done about a replica that is slow, and has such a share of a step."""
        if self.policy == "static":
            return 'nothing: balance.policy = "static"'
        if self.policy == "measured":
            return 'nothing: balance.capacity = "measured" is what it was at first'
        return f"its share of a step is {share:.0%}" if self._followed else "nothing: other shares would gain too little"

    # --- policies --------------------------------------------------------------------------------------------

    def _measured(self, step: _Step) -> Choice | None:
        if all(replica in self._followed for replica in step.speeds):
            return None
        return self._follow(step, self._grain, f"measured over {KNOWN} steps: {step.told()}")

    def _dynamic(self, step: _Step) -> Choice | None:
        gain = self._gain(step, self._grain)
        if not self._steady(gain >= GAIN):
            return None
        return self._follow(step, self._grain, f"{step.told()}; a step takes {gain:.0%} less time so")

    def _auto(self, step: _Step, waiting: float) -> Choice | None:
        piece = step.piece(self._micro_batch, self._grain)
        gain, stated = self._gain(step, piece), shares.counts(step.size, self._as_stated(step.replicas))
        if self._followed and step.seconds(stated) <= (1 + LEVEL) * step.seconds(step.dealt(self._grain)):
            self._followed, self._piece = {}, self._grain
            why = f"{step.told()}: shares as stated cost {LEVEL:.0%} of a step at most"
            return Choice("static", step.fractions(stated), self._grain, why)
        if not self._steady(gain >= GAIN if self._followed else min(gain, waiting) >= WASTE):
            return None
        larger = f" (as quick as pieces of {self._grain}, to {COARSE:.0%})" if piece > self._grain else ""
        why = f"{step.told()}, which is waited for {waiting:.0%} of a step; a step takes {gain:.0%} less time in pieces of {piece}{larger}"
        return self._follow(step, piece, why)

    def _steady(self, gains: bool) -> bool:
        self._in_a_row = self._in_a_row + 1 if gains else 0
        return self._in_a_row >= STEADY

    def _gain(self, step: _Step, piece: int) -> float:
        """Of a step as it is dealt now, by speeds as they are now."""
        now, best = self.counts(step.replicas, step.size), step.dealt(piece)
        return 1 - step.seconds(best) / step.seconds(now) if best != now else 0.0

    def _follow(self, step: _Step, piece: int, why: str) -> Choice:
        self._followed, self._piece, self._in_a_row = dict(step.speeds), piece, 0
        return Choice("dynamic" if self.policy != "measured" else "static", step.fractions(step.dealt(piece)), piece, why)

    def _as_stated(self, replicas: Sequence[int]) -> list[float]:
        stated = [self._stated[replica] for replica in replicas]
        return stated if sum(stated) else [1.0] * len(stated)


class _Speed:
    """Samples a second, of one process."""

    def __init__(self) -> None:
        self.value = 0.0
        self._units = 0
        self._recent: deque[float] = deque(maxlen=3)

    def observe(self, measured: float) -> None:
        self._units += 1
        if self._units <= WARM:
            return
        self._recent.append(measured)
        usual = statistics.median(self._recent)
        self.value += (DAMPING if len(self._recent) > 1 else 1.0) * (usual - self.value)

    @property
    def known(self) -> bool:
        return self._units >= WARM + KNOWN


class _Step:
    """The next step: so many sequences, for replicas of these speeds."""

    def __init__(self, size: int, speeds: Mapping[int, float]) -> None:
        self.size = size
        self.speeds = speeds
        self.replicas = list(speeds)

    def dealt(self, piece: int) -> list[int]:
        return shares.by_speed(self.size, list(self.speeds.values()), piece)

    def seconds(self, counts: Sequence[int]) -> float:
        return max(count / speed for count, speed in zip(counts, self.speeds.values(), strict=True))

    def piece(self, most: int, least: int) -> int:
        """The largest that costs COARSE at most: halves of the micro-batch, halves of these, and so on."""
        allowed = (1 + COARSE) * self.seconds(self.dealt(least))
        piece = most
        while piece > least and (self.size < piece * len(self.replicas) or self.seconds(self.dealt(piece)) > allowed):
            piece = max(least, piece // 2)
        return piece

    def fractions(self, counts: Sequence[int]) -> dict[int, float]:
        return {replica: count / self.size for replica, count in zip(self.replicas, counts, strict=True)}

    def told(self) -> str:
        slowest, quickest = (choose(self.speeds, key=self.speeds.__getitem__) for choose in (min, max))
        return f"replica {slowest} computes {self.speeds[slowest]:.3g} samples/s and replica {quickest} {self.speeds[quickest]:.3g}"
