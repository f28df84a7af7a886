"""The loop: lease, compute, settle, and what the verdict asks for; until there is no more work."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial

from plait.data.batches import Batches, MicroBatch, in_lane
from plait.ledger.messages import Request, Vote, Work
from plait.replica.device import peak_memory
from plait.replica.replica import Replica
from plait.sync.strategy import Rate, Sync, Votes
from plait.train.duties import Duties


def train(
    work: Work | None,
    ledger: Votes,
    sync: Sync,
    replica: Replica,
    loader: Loader,
    duties: Duties,
    rate: Rate,
    request: Callable[[], Request | None] = lambda: None,
) -> None:
    """Work until the ledger has none left. `request` tells of a signal that this process got."""
    clock = Clock()
    while work is not None:
        replica.begin(loader.divisor(work), loader.count(work))
        sync.begin(work, replica)
        for micro_batch in loader.read(work):
            replica.accumulate(micro_batch)
        verdict = sync.settle(work, replica, ledger, _reporter(work, replica, rate, clock, request))
        clock.voted()
        duties.perform(verdict)
        clock.start()
        work = verdict.work


class Loader:
    """Cuts a lease into micro-batches of at most `micro_batch` sequences and reads this rank's lane of them.

    lane: (this one, how many): lanes share each micro-batch by whole sequences, and all take as many forward passes: where a lane has
    no sequence, one without targets stands in.
    """

    def __init__(self, batches: Batches, micro_batch: int, lane: tuple[int, int] = (0, 1)) -> None:
        self._batches = batches
        self._micro_batch = micro_batch
        self._lane = lane

    def divisor(self, work: Work) -> int:
        """Target tokens of the whole unit, from the index alone."""
        return self._batches.targets(work.step, work.whole)

    def count(self, work: Work) -> int:
        return sum(1 for _ in self._cut(work))

    def read(self, work: Work) -> Iterator[MicroBatch]:
        return (in_lane(partial(self._batches.read, work.step), first, end, self._lane) for first, end in self._cut(work))

    def _cut(self, work: Work) -> Iterator[tuple[int, int]]:
        for first, end in work.ranges:
            for start in range(first, end, self._micro_batch):
                yield start, min(start + self._micro_batch, end)


class Clock:
    """Seconds of a step: from the end of the last one's duties to the vote, and the update that followed the last vote."""

    def __init__(self) -> None:
        self._update = 0.0
        self.start()

    def start(self) -> None:
        self._started = time.perf_counter()

    def vote(self) -> float:
        self._voted_at = time.perf_counter()
        return self._voted_at - self._started + self._update

    def voted(self) -> None:
        self._update = time.perf_counter() - self._voted_at


def _reporter(
    work: Work, replica: Replica, rate: Rate, clock: Clock, request: Callable[[], Request | None]
) -> Callable[[float, float], Vote]:
    def report(squared_norm: float, waited: float) -> Vote:
        return Vote(
            work.unit,
            replica.loss_sum(),
            squared_norm,
            rate(work.step),
            clock.vote(),
            waited,
            peak_memory(replica.device),
            request(),
            replica.load(),
            *replica.pipeline_seconds(),
        )

    return report
