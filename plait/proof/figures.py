"""What a run's journal says of how its replicas agreed: time, bytes, waiting, staleness, loss.

Seconds are by the clock: from Started or Resumed to each Step, what lay between a stop and a resume left out, what was rolled back
counted. Steps of a round are committed together; the clock is shared out evenly among them.

    unit        what replicas agree on at once: a step, or a round of local steps. Waiting is told by unit.
    overlapped  1 - waited / communicating, over all replicas: the share of communication that computing hid
    bandwidth   sent / communicating, the mean over replicas, against what the same replicas would send while they do nothing else
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np

from plait import events
from plait.events import Event, Step

LAST = 0.05
"""The share of steps whose mean loss is the final one."""
_ROUNDS = ("local_sgd", "diloco")


@dataclass(frozen=True)
class Waiting:
    """Seconds of exposed waiting in a unit: quantiles over units, and all of them together."""

    p50: float
    p95: float
    longest: float
    total: float


@dataclass(frozen=True)
class Link:
    """As measured before the first step. bandwidth: bytes a second that each replica sends."""

    latency: float
    bandwidth: float
    backend: str
    emulated: bool


@dataclass(frozen=True)
class Curve:
    """One entry a step: target tokens and seconds so far, and its loss; NaN where that was not finite."""

    tokens: list[int]
    seconds: list[float]
    loss: list[float]


@dataclass(frozen=True)
class Figures:
    """Of one run. What an old journal does not tell is None, or empty.

    seconds: by the clock; step_seconds: the sum of what its steps say. sent: bytes, of all replicas. communicating, waited: seconds,
    summed over replicas; waited_share: of all replicas' time. train_loss: mean over the last 5% of steps. staleness: pushes by
    how many updates old they were. slowest: units by the replica that was waited for.
    """

    steps: int
    tokens: int
    skipped: int
    seconds: float
    step_seconds: float
    tokens_per_s: float | None
    sent: int | None
    sent_per_token: float | None
    communicating: float | None
    bandwidth: float | None
    bandwidth_share: float | None
    overlapped: float | None
    waited: float | None
    waited_share: float | None
    waiting: Waiting | None
    waiting_by_replica: dict[str, Waiting]
    link: Link | None
    staleness: dict[int, int]
    slowest: dict[str, int]
    train_loss: float | None
    lost: int
    rolled_back: int
    curve: Curve = field(repr=False)


def figures_of(history: Sequence[Event]) -> Figures:
    """Of a journal with one committed step or more."""
    steps, clock = _clocked(history)
    tokens, seconds = sum(step.tokens for step in steps), clock[-1]
    replicas = len({replica for step in steps for replica in step.waited})
    waits = _waits(steps)
    every_wait = [wait for of_replica in waits.values() for wait in of_replica]
    sent = sum(sum(step.sent.values()) for step in steps) if any(step.sent for step in steps) else None
    communicating = math.fsum(value for step in steps for value in step.communicating.values()) or None
    waited = math.fsum(every_wait) if every_wait else None
    bandwidth, link = _bandwidth(steps), _link(history, replicas)
    return Figures(
        steps=len(steps),
        tokens=tokens,
        skipped=sum(step.skipped for step in steps),
        seconds=seconds,
        step_seconds=math.fsum(step.seconds for step in steps),
        tokens_per_s=_ratio(tokens, seconds),
        sent=sent,
        sent_per_token=_ratio(sent, tokens),
        communicating=communicating,
        bandwidth=bandwidth,
        bandwidth_share=_ratio(bandwidth, link.bandwidth if link else None),
        overlapped=None if waited is None or communicating is None else max(0.0, 1 - waited / communicating),
        waited=waited,
        waited_share=_ratio(waited, seconds * replicas),
        waiting=_waiting(every_wait) if every_wait else None,
        waiting_by_replica={replica: _waiting(of_replica) for replica, of_replica in waits.items()},
        link=link,
        staleness=_staleness(steps),
        slowest=_slowest(steps),
        train_loss=_final_loss(steps),
        lost=sum(isinstance(event, events.Lost) for event in history),
        rolled_back=sum(isinstance(event, events.RolledBack) for event in history),
        curve=_curve(steps, clock),
    )


def units(steps: Sequence[Step]) -> Iterator[list[Step]]:
    """Steps by what was agreed on at once. Those of a round share what was measured of it: they say the same to the last bit."""

    def unit(step: Step) -> tuple[object, ...]:
        if step.sync in _ROUNDS:
            return step.phase, step.seconds, *step.waited.items()
        return (step.step,)

    for _, together in groupby(steps, key=unit):
        yield list(together)


def _clocked(history: Sequence[Event]) -> tuple[list[Step], list[float]]:
    """Committed steps, and the seconds of training that had passed when each was done."""
    passed, since = 0.0, None
    at: dict[int, float] = {}
    for event in history:
        if isinstance(event, events.Started | events.Resumed):
            since = event.time
        elif isinstance(event, Step):
            passed += max(0.0, event.time - (event.time - event.seconds if since is None else since))
            since = event.time
            at[event.step] = passed
    steps = events.committed(history)
    clock: list[float] = []
    for unit in units(steps):
        begun, ended = clock[-1] if clock else 0.0, at[unit[-1].step]
        clock += [begun + (ended - begun) * (number + 1) / len(unit) for number in range(len(unit))]
    return steps, clock


def _waits(steps: Sequence[Step]) -> dict[str, list[float]]:
    """By replica, what it waited in each unit that it took part in."""
    waits: dict[str, list[float]] = {}
    for unit in units(steps):
        for replica in unit[0].waited:
            waits.setdefault(replica, []).append(math.fsum(step.waited.get(replica, 0.0) for step in unit))
    return dict(sorted(waits.items(), key=lambda item: (len(item[0]), item[0])))


def _waiting(waits: list[float]) -> Waiting:
    p50, p95 = np.quantile(waits, [0.5, 0.95])
    return Waiting(float(p50), float(p95), max(waits), math.fsum(waits))


def _bandwidth(steps: Sequence[Step]) -> float | None:
    """The mean over replicas of what each sent while something of it was under way."""
    sent: Counter[str] = Counter()
    communicating: Counter[str] = Counter()
    for step in steps:
        sent.update(step.sent)
        communicating.update(step.communicating)
    rates = [sent[replica] / seconds for replica, seconds in communicating.items() if seconds > 0 and replica in sent]
    return math.fsum(rates) / len(rates) if rates else None


def _link(history: Sequence[Event], replicas: int) -> Link | None:
    """Linked tells what is all-reduced in a second: of it each of R replicas sends 2 (R - 1) / R times as much."""
    linked = next((event for event in reversed(history) if isinstance(event, events.Linked)), None)
    if linked is None or replicas < 2:
        return None
    return Link(linked.latency, linked.bandwidth * 2 * (replicas - 1) / replicas, linked.backend, linked.emulated)


def _staleness(steps: Sequence[Step]) -> dict[int, int]:
    counts: Counter[int] = Counter()
    for step in steps:
        counts.update({int(late): count for late, count in step.staleness.items()})
    return dict(sorted(counts.items()))


def _slowest(steps: Sequence[Step]) -> dict[str, int]:
    named = Counter(unit[-1].slowest for unit in units(steps))
    return {replica: count for replica, count in sorted(named.items(), key=str) if replica is not None}


def _final_loss(steps: Sequence[Step]) -> float | None:
    """None where one of them was not finite."""
    last = [finite_or_nan(step.loss) for step in steps[-math.ceil(LAST * len(steps)) :]]
    mean = math.fsum(last) / len(last)
    return mean if math.isfinite(mean) else None


def _curve(steps: Sequence[Step], clock: list[float]) -> Curve:
    tokens = np.cumsum([step.tokens for step in steps]).tolist()
    return Curve(tokens, clock, [finite_or_nan(step.loss) for step in steps])


def finite_or_nan(loss: float | None) -> float:
    """Journals have null for what was not finite."""
    return math.nan if loss is None else loss


def _ratio(amount: float | None, of: float | None) -> float | None:
    return amount / of if amount is not None and of else None
