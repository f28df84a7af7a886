"""Batches: which samples a step consists of; what stands in them, readers tell (reader.py).

    step -> positions of the run -> (source, draw) -> (epoch, place) -> permuted -> sample
            first(step) + 0, 1, ..   keyed blocks       draw // n      keyed

All of it is arithmetic on (fingerprint, seed, step, and what is left out): nothing is kept from one step to the next, so a run
resumes anywhere at once, and who reads which positions does not matter. Where rows are of unlike lengths a step's samples stand at
positions that spread them (dealing.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from plait import spec
from plait.data import dealing, order
from plait.data.augment import Augmentation
from plait.data.micro_batch import MicroBatch
from plait.data.mixture import Mixture
from plait.data.objective import NO_TARGET, Translation
from plait.data.pairs import Filling, PairReader
from plait.data.reader import Reader
from plait.data.rows import RowReader
from plait.data.samples import SampleReader
from plait.data.skipping import Skipped
from plait.data.tokens import Split
from plait.errors import RunFileError
from plait.events import Ranges

__all__ = ["NO_TARGET", "Batches", "EvaluationBatches", "MicroBatch", "batch_sizes", "in_lane"]


def in_lane(read: Callable[[int, int], MicroBatch], first: int, end: int, lane: tuple[int, int]) -> MicroBatch:
    """The sequences of positions [first, end) that fall to one of several lanes; a stand-in without targets where none does.

    in_lane(read, 0, 3, (1, 2)) is read(2, 3); in_lane(read, 0, 1, (0, 2)) is read(0, 1).without_targets().
    """
    number, lanes = lane
    low, high = (first + (end - first) * edge // lanes for edge in (number, number + 1))
    return read(low, high) if low < high else read(first, first + 1).without_targets()


class Batches:
    """The global batch, a pure function of (data fingerprint, seed, step, samples that are left out). Steps count from 1."""

    def __init__(self, split: Split, train: spec.Train, fingerprint: str, skipped: Ranges | None = None) -> None:
        key = order.key_of(fingerprint, train.seed)
        self._split = split
        self._reader = _reader(split, train.seed, split.augmentation)
        self._mixture = Mixture(split.weights, key)
        self._keys = [order.key_of(key, source) for source in range(len(split.sources))]
        self._stages = _stages(train, split.sequence)
        self._drawn: dict[int, _Drawn] = {}
        self._skipped = Skipped(skipped or ())
        self.steps = self.steps_of(train.duration)

    def steps_of(self, duration: spec.Duration) -> int:
        """A duration in steps, rounded up; a sequence counts as `data.sequence` tokens."""
        if duration.unit == "steps":
            return int(duration.amount)
        per_epoch = self._reader.sequences if duration.unit == "epochs" else 1 / self._split.sequence
        return self._steps_until(math.ceil(duration.amount * per_epoch))

    def size(self, step: int) -> int:
        """Sequences in the step's global batch."""
        return self._stage(step).batch

    @property
    def filling(self) -> list[Filling]:
        """Of rows of pairs, how full they are, by source; empty of others."""
        return self._reader.filling

    @property
    def skipped(self) -> Ranges:
        """Samples of the run's order that are left out."""
        return self._skipped.ranges

    def leave_out(self, skipped: Ranges) -> None:
        """From now on these samples of the run's order, and no others."""
        if skipped != self._skipped.ranges:
            self._skipped, self._drawn = Skipped(skipped), {}

    def first(self, step: int) -> int:
        """Samples that the run has taken before this step."""
        return self._stage(step).before(step)

    def samples(self, step: int) -> Ranges:
        """Of the run's order, those that a step takes."""
        return self._skipped.spans(self.first(step), self.first(step) + self.size(step))

    def targets(self, step: int, ranges: Ranges | None = None) -> int:
        """Target tokens of the global batch, or of some positions of it; no token is read."""
        drawn = self._step(step)
        per_position = self._reader.targets(drawn.sources, drawn.samples)
        asked = [[0, self.size(step)]] if ranges is None else ranges
        return sum(int(per_position[first:end].sum()) for first, end in asked)

    def lengths(self, step: int) -> np.ndarray | None:
        """Tokens of the row at each position of a step; None where all rows are alike."""
        return self._step(step).lengths

    def along(self, step: int) -> np.ndarray:
        """The positions of a step in the run's order of samples."""
        return np.argsort(self._step(step).numbers)

    def read(self, step: int, first: int, end: int) -> MicroBatch:
        """Positions [first, end) of the step's global batch."""
        assert 0 <= first <= end <= self.size(step), (step, first, end)
        return self.take(step, np.arange(first, end))

    def take(self, step: int, places: np.ndarray) -> MicroBatch:
        """Some positions of the step's global batch, in this order."""
        drawn = self._step(step)
        return self._reader.read(drawn.sources[places], drawn.samples[places], drawn.numbers[places], step)

    def ahead(self, step: int, ranges: Ranges) -> None:
        """These positions of a step will be read soon: of token files that are far away, what they need is fetched meanwhile."""
        if self._reader.far:
            drawn = self._step(step)
            places = np.concatenate([np.arange(first, end) for first, end in ranges] or [np.arange(0)])
            self._reader.ahead(drawn.sources[places], drawn.samples[places])

    def _step(self, step: int) -> _Drawn:
        """What stands at the positions of a step; the last two steps asked for are remembered."""
        if step not in self._drawn:
            numbers = self._skipped.samples(self.first(step), self.first(step) + self.size(step))
            drawn = _Drawn(numbers, *self._draw(numbers))
            lengths = self._reader.lengths(drawn.sources, drawn.samples)
            if lengths is not None:
                along = dealing.spread(lengths)
                drawn = _Drawn(numbers[along], drawn.sources[along], drawn.samples[along], lengths[along])
            self._drawn = {**dict([*self._drawn.items()][-1:]), step: drawn}
        return self._drawn[step]

    def _draw(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        sources, draws = self._mixture.draw(positions)
        samples = np.empty_like(draws)
        for source, key in enumerate(self._keys):
            mine = sources == source
            epochs, places = np.divmod(draws[mine], self._reader.length(source))
            samples[mine] = order.permute(places, self._reader.length(source), order.keys_of(key, epochs))
        return sources, samples

    def _stage(self, step: int) -> _Stage:
        return _stage_of(self._stages, step)

    def _steps_until(self, samples: int) -> int:
        """Steps that it takes to see so many samples."""
        stage = next(stage for stage in reversed(self._stages) if stage.first_sample < samples or stage is self._stages[0])
        return stage.first_step - 1 + -(-(samples - stage.first_sample) // stage.batch)


class EvaluationBatches:
    """A split in order, each sequence once; with a limit, so many of them spread evenly over it."""

    def __init__(self, split: Split, limit: int | None = None) -> None:
        self._reader = _reader(split)
        self._edges = np.cumsum([0] + [self._reader.length(source) for source in range(len(split.sources))])
        self._sequences = self._reader.sequences
        self.size = min(limit or self._sequences, self._sequences)

    @property
    def filling(self) -> list[Filling]:
        """Of rows of pairs, how full they are, by source; empty of others."""
        return self._reader.filling

    def read(self, first: int, end: int) -> MicroBatch:
        """Sequences [first, end) of `size`; their numbers are those in the split."""
        numbers, sources, samples = self._samples(first, end)
        return self._reader.read(sources, samples, numbers, step=0)

    def targets(self, first: int, end: int) -> int:
        _, sources, samples = self._samples(first, end)
        return int(self._reader.targets(sources, samples).sum())

    def _samples(self, first: int, end: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        assert 0 <= first <= end <= self.size, (first, end)
        numbers = np.arange(first, end, dtype=np.int64) * self._sequences // self.size
        sources = np.searchsorted(self._edges, numbers, side="right") - 1
        return numbers, sources, numbers - self._edges[sources]


def _reader(split: Split, seed: int = 0, augmentation: Augmentation | None = None) -> Reader:
    if split.told is not None:
        return SampleReader(split, split.told)
    return PairReader(split, split.masking) if isinstance(split.masking, Translation) else RowReader(split, seed, augmentation)


@dataclass(frozen=True)
class _Drawn:
    """At each position of a step: the sample's number in the run's order, its source, and its number there; tokens of its row, where rows
    are of unlike lengths."""

    numbers: np.ndarray
    sources: np.ndarray
    samples: np.ndarray
    lengths: np.ndarray | None = None


@dataclass(frozen=True)
class _Stage:
    """A batch size from a step on."""

    first_step: int
    first_sample: int
    batch: int

    def before(self, step: int) -> int:
        """Samples before a step of it."""
        return self.first_sample + (step - self.first_step) * self.batch


def batch_sizes(train: spec.Train, sequence: int) -> Callable[[int], int]:
    """Sequences in the global batch of a step, from settings alone."""
    stages = _stages(train, sequence)
    return lambda step: _stage_of(stages, step).batch


def step_samples(train: spec.Train, sequence: int, skipped: Ranges) -> Callable[[int], Ranges]:
    """Samples of the run's order that a step takes, from settings and what is left out alone."""
    stages, left = _stages(train, sequence), Skipped(skipped)

    def samples(step: int) -> Ranges:
        stage = _stage_of(stages, step)
        return left.spans(stage.before(step), stage.before(step) + stage.batch)

    return samples


def _stage_of(stages: list[_Stage], step: int) -> _Stage:
    assert step >= 1, step
    return next(stage for stage in reversed(stages) if stage.first_step <= step)


def _stages(train: spec.Train, sequence: int) -> list[_Stage]:
    if isinstance(train.batch, int):
        return [_Stage(1, 0, train.batch)]
    stages: list[_Stage] = []
    step, sample = 1, 0
    for number, entry in enumerate(train.batch):
        stages.append(_Stage(step, sample, entry.batch))
        if entry.until is not None:
            steps = _steps_in(entry.until, step, sample, entry.batch, sequence)
            if steps < 1:
                raise RunFileError(f'train.batch.{number}.until: "{entry.until}" is over before the stage begins, at step {step}')
            step, sample = step + steps, sample + steps * entry.batch
    return stages


def _steps_in(until: spec.Duration, step: int, sample: int, batch: int, sequence: int) -> int:
    """Steps of a stage that begins at `step` and `sample`; both kinds of `until` count from the run's beginning."""
    if until.unit == "steps":
        return int(until.amount) - step + 1
    return -(-(math.ceil(until.amount / sequence) - sample) // batch)
