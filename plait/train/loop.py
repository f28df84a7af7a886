"""The loop: lease, compute, settle, and what the verdict asks for; until there is no more work."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch

from plait.data import dealing
from plait.data.batches import Batches, MicroBatch, in_lane
from plait.data.dealing import Cost
from plait.events import Ranges
from plait.ledger.messages import Did, Part, Request, Verdict, Vote, Work
from plait.ledger.progress import progress
from plait.replica import device as devices
from plait.replica.replica import Replica
from plait.sync.phases import Phases
from plait.sync.strategy import PeerLost, Rate, Traffic, Votes
from plait.train.duties import Duties


def train(
    verdict: Verdict,
    ledger: Votes,
    sync: Phases,
    replica: Replica,
    loader: Loader,
    duties: Duties,
    rate: Rate,
    request: Callable[[], Request | None] = lambda: None,
) -> None:
    """Work until the ledger has none left. verdict: its first. `request` tells of a signal that this process got."""
    clock = Clock(replica.device)
    verdict = sync.join(verdict, replica)
    duties.perform(verdict)
    while (work := verdict.work) is not None:
        clock.start()
        if work.last or work.check == "each":  # what comes after it may lead back to the checkpoint that is being written
            duties.finish()
        try:
            if work.check:
                verdict = sync.compare(work, replica, ledger)
            elif (instead := sync.begin(work, replica)) is not None:
                verdict = instead
            else:
                loader.leave_out(work.skipped)
                done = [_learn(part, work, sync, replica, loader, ledger, rate, clock) for part in work.parts]
                verdict = sync.settle(work, replica, ledger, _reporter(work, done, replica, clock, request))
                clock.voted()
        except PeerLost as lost:
            verdict = sync.go_on(work, replica, ledger, lost)
        progress("follows a verdict")
        duties.perform(verdict)


def _learn(part: Part, work: Work, sync: Phases, replica: Replica, loader: Loader, ledger: Votes, rate: Rate, clock: Clock) -> Did:
    """This replica's share of one step. Raises PeerLost where the ledger calls it away; ranks of one replica go on to the end, since they
    could not all be told at the same micro-batch."""
    replica.begin(loader.divisor(part), loader.count(part))
    progress.step = part.step

    def leave_where_called() -> None:
        if work.peers and replica.mesh.ranks == 1 and ledger.called():
            raise PeerLost("the unit is void")

    with replica.asking(leave_where_called):
        for number, micro_batch in enumerate(clock.reading(loader.read(part)), 1):
            progress(f"computes micro-batch {number} of step {part.step}")
            with clock.computing():
                replica.accumulate(micro_batch)
            leave_where_called()
    squared_norm = sync.end(part, replica)
    return Did(replica.loss_sum(), squared_norm, rate(part.step), replica.load())


class Loader:
    """Cuts a lease into micro-batches of at most `micro_batch` sequences and reads this rank's lane of them.

    lane: (this one, how many): lanes share each micro-batch by whole sequences, and all take as many forward passes: where a lane has
    no sequence, one without targets stands in. cost: of rows that are computed without their padding; where they are of unlike lengths a
    micro-batch holds as many of them as have the places of `micro_batch` whole ones, so that each costs about the same.
    """

    def __init__(self, batches: Batches, micro_batch: int, lane: tuple[int, int] = (0, 1), cost: Cost | None = None) -> None:
        self._batches = batches
        self._micro_batch = micro_batch
        self._lane = lane
        self._cost = cost

    def leave_out(self, skipped: Ranges) -> None:
        """Samples of the run's order that its steps do not take."""
        self._batches.leave_out(skipped)

    def divisor(self, part: Part) -> int:
        """Target tokens of the whole that the part belongs to, from the index alone."""
        return self._batches.targets(part.step, part.whole)

    def count(self, part: Part) -> int:
        return len(self._cut(part))

    def read(self, part: Part) -> Iterator[MicroBatch]:
        self._batches.ahead(part.step + 1, part.ranges)
        return (self._in_lane(part.step, places) for places in self._cut(part))

    def _in_lane(self, step: int, places: np.ndarray) -> MicroBatch:
        return in_lane(lambda low, high: self._batches.take(step, places[low:high]), 0, len(places), self._lane)

    def _cut(self, part: Part) -> list[np.ndarray]:
        """The positions of each micro-batch."""
        lengths = None if self._cost is None else self._batches.lengths(part.step)
        if self._cost is None or lengths is None:
            size = self._micro_batch
            return [np.arange(at, min(at + size, end)) for first, end in part.ranges for at in range(first, end, size)]
        places = np.concatenate([np.arange(0), *(np.arange(first, end) for first, end in part.ranges)])
        cut = dealing.micro_batches(lengths[places], self._micro_batch, self._cost)
        lanes = self._lane[1]
        return [places[np.concatenate([rows[lane::lanes] for lane in range(lanes)])] for rows in cut]


class Clock:
    """Seconds of a unit: from the end of the last one's duties to the vote, and the update that followed the last vote; of these, what
    `data` took to be read, and what `computed` took."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._update = 0.0
        self.start()

    def start(self) -> None:
        self._started = time.perf_counter()
        self.data = 0.0
        self._passes: list[tuple[devices.Mark, devices.Mark]] = []

    def reading(self, micro_batches: Iterator[MicroBatch]) -> Iterator[MicroBatch]:
        """The same, each timed as it is read."""
        while True:
            began = time.perf_counter()
            micro_batch = next(micro_batches, None)
            self.data += time.perf_counter() - began
            if micro_batch is None:
                return
            yield micro_batch

    @contextmanager
    def computing(self) -> Iterator[None]:
        """A micro-batch's passes; on a GPU they may go on when this has ended."""
        began = devices.mark(self._device)
        yield
        self._passes.append((began, devices.mark(self._device)))

    @property
    def computed(self) -> float:
        return math.fsum(devices.between(began, ended) for began, ended in self._passes)

    def vote(self) -> float:
        self._voted_at = time.perf_counter()
        return self._voted_at - self._started + self._update

    def voted(self) -> None:
        self._update = time.perf_counter() - self._voted_at


def _reporter(
    work: Work, done: list[Did], replica: Replica, clock: Clock, request: Callable[[], Request | None]
) -> Callable[[Traffic], Vote]:
    def report(traffic: Traffic) -> Vote:
        busy, under_way = replica.pipeline_seconds()
        return Vote(
            work.unit,
            done,
            seconds=clock.vote(),
            waited=traffic.waited,
            memory=devices.peak_memory(replica.device),
            request=request(),
            busy=busy,
            under_way=under_way,
            sent=traffic.sent,
            communicating=traffic.communicating,
            computed=clock.computed,
            data=clock.data,
        )

    return report
