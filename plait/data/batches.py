"""Batches: which samples a step consists of, and what stands in them.

    step -> positions of the run -> (source, draw) -> (epoch, place) -> permuted -> sample -> tokens
            first(step) + 0, 1, ..   keyed blocks       draw // n      keyed       i       [i*L, i*L + L]

All of it is arithmetic on (fingerprint, seed, step, and what is left out): nothing is kept from one step to the next, so a run
resumes anywhere at once, and who reads which positions does not matter.

Sample i of a source covers inputs [i*L, i*L + L) of its stream; targets are one further. The last sample may be short: it is
padded with weightless targets. So every token but a stream's first is a target exactly once an epoch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from plait import spec
from plait.data import chance, order
from plait.data.augment import Augmentation
from plait.data.micro_batch import MicroBatch
from plait.data.mixture import Mixture
from plait.data.objective import NO_TARGET, Spans, Translation
from plait.data.pairs import Filling, Pairs
from plait.data.rows import Conversations, number_documents
from plait.data.samples import SampleReader
from plait.data.skipping import Skipped
from plait.data.tokens import Split, TokenFile
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
        self._drawn: tuple[int, np.ndarray, np.ndarray] | None = None
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
            self._skipped, self._drawn = Skipped(skipped), None

    def first(self, step: int) -> int:
        """Samples that the run has taken before this step."""
        return self._stage(step).before(step)

    def samples(self, step: int) -> Ranges:
        """Of the run's order, those that a step takes."""
        return self._skipped.spans(self.first(step), self.first(step) + self.size(step))

    def targets(self, step: int, ranges: Ranges | None = None) -> int:
        """Target tokens of the global batch, or of some positions of it; no token is read."""
        sources, samples = self._samples(step)
        per_position = self._reader.targets(sources, samples)
        asked = [[0, self.size(step)]] if ranges is None else ranges
        return sum(int(per_position[first:end].sum()) for first, end in asked)

    def read(self, step: int, first: int, end: int) -> MicroBatch:
        """Positions [first, end) of the step's global batch."""
        assert 0 <= first <= end <= self.size(step), (step, first, end)
        sources, samples = self._samples(step)
        return self._reader.read(sources[first:end], samples[first:end], self._positions(step)[first:end], step)

    def ahead(self, step: int, ranges: Ranges) -> None:
        """These positions of a step will be read soon: of token files that are far away, what they need is fetched meanwhile."""
        if self._reader.far:
            positions = self._positions(step)
            self._reader.ahead(*self._draw(np.concatenate([positions[first:end] for first, end in ranges] or [positions[:0]])))

    def _samples(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Source and sample at each position of a step; the last step asked for is remembered."""
        if self._drawn is None or self._drawn[0] != step:
            self._drawn = (step, *self._draw(self._positions(step)))
        return self._drawn[1], self._drawn[2]

    def _positions(self, step: int) -> np.ndarray:
        """Samples of the run's order at each position of a step."""
        return self._skipped.samples(self.first(step), self.first(step) + self.size(step))

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


def _reader(split: Split, seed: int = 0, augmentation: Augmentation | None = None) -> _Reader | SampleReader:
    return _Reader(split, seed, augmentation) if split.told is None else SampleReader(split)


class _Reader:
    """Rows of tokens out of the sources' streams."""

    def __init__(self, split: Split, seed: int = 0, augmentation: Augmentation | None = None) -> None:
        self._seed = seed
        self._augmentation = augmentation
        self._masking = split.masking
        self._sequence = split.sequence
        self._document_mask = split.document_mask
        self._streams = [_stream(file, split) for file in split.sources]
        self._names = split.names
        self.far = any(file.far for file in split.sources)

    @property
    def sequences(self) -> int:
        """An epoch's, of all sources."""
        return sum(stream.length for stream in self._streams)

    @property
    def filling(self) -> list[Filling]:
        pairs = [stream for stream in self._streams if isinstance(stream, Pairs)]
        return [replace(each.filling, name=name) for each, name in zip(pairs, self._names, strict=bool(pairs))]

    def length(self, source: int) -> int:
        """Samples an epoch."""
        return self._streams[source].length

    def targets(self, sources_B: np.ndarray, samples_B: np.ndarray) -> np.ndarray:
        targets_B = self._counted(sources_B, samples_B)
        return targets_B if self._masking is None or isinstance(self._masking, Translation) else self._masking.targets(targets_B)

    def _counted(self, sources_B: np.ndarray, samples_B: np.ndarray) -> np.ndarray:
        """Next tokens to tell in each sample: fewer than it has places in the last one of a source, and of conversations."""
        counts_B = np.empty_like(samples_B)
        for source, stream in enumerate(self._streams):
            mine = sources_B == source
            counts_B[mine] = stream.targets(samples_B[mine])
        return counts_B

    def ahead(self, sources_B: np.ndarray, samples_B: np.ndarray) -> None:
        for source, stream in enumerate(self._streams):
            stream.ahead(samples_B[sources_B == source])

    def read(self, sources_B: np.ndarray, samples_B: np.ndarray, numbers_B: np.ndarray, step: int) -> MicroBatch:
        if isinstance(self._masking, Translation):
            return self._read_pairs(self._masking, sources_B, samples_B, numbers_B, step)
        shape = (len(numbers_B), self._sequence)
        tokens_BL = np.zeros(shape, dtype=np.int64)
        targets_BL = np.full(shape, NO_TARGET, dtype=np.int64)
        documents_BL = np.zeros(shape, dtype=np.int64) if self._document_mask else None
        for source, stream in enumerate(self._streams):
            assert not isinstance(stream, Pairs)
            rows = np.flatnonzero(sources_B == source)
            stream.fill(rows, samples_B[rows], tokens_BL, targets_BL)
            if documents_BL is not None:
                stream.fill_documents(rows, samples_B[rows], documents_BL)
        if self._augmentation is not None:
            tokens_BL, documents_BL = self._augmented(sources_B, samples_B, numbers_B, tokens_BL, targets_BL, documents_BL)
        if self._masking is None:
            return MicroBatch(tokens_BL, targets_BL, numbers_B, documents_BL, step)
        lengths_B, keys_B = self._counted(sources_B, samples_B), chance.keys(self._seed, "masked", numbers_B)
        if isinstance(self._masking, Spans):
            tokens_BL, targets_BL, documents_BL = self._masking.apply(tokens_BL, lengths_B, keys_B)
            return MicroBatch(tokens_BL, targets_BL, numbers_B, documents_BL[:, : self._masking.source], step, self._masking.source)
        tokens_BL, targets_BL = self._masking.apply(tokens_BL, lengths_B, keys_B)
        return MicroBatch(tokens_BL, targets_BL, numbers_B, _padding_apart(documents_BL, lengths_B, self._sequence), step)

    def _read_pairs(self, sides: Translation, sources_B: np.ndarray, samples_B: np.ndarray, numbers_B: np.ndarray, step: int) -> MicroBatch:
        """Where each row holds one pair, nothing need tell pairs apart but padding from the source."""
        shape = (len(numbers_B), sides.source + sides.target)
        tokens_BL, targets_BL = np.full(shape, sides.end, dtype=np.int64), np.full(shape, NO_TARGET, dtype=np.int64)
        documents_BL = np.zeros(shape, dtype=np.int64)
        documents_BL[:, : sides.source] = -1
        for source, stream in enumerate(self._streams):
            assert isinstance(stream, Pairs)
            rows = np.flatnonzero(sources_B == source)
            stream.fill(rows, samples_B[rows], tokens_BL, targets_BL, documents_BL)
        told_BL = documents_BL if sides.packed else documents_BL[:, : sides.source]
        return MicroBatch(tokens_BL, targets_BL, numbers_B, told_BL, step, sides.source)

    def _augmented(
        self,
        sources_B: np.ndarray,
        samples_B: np.ndarray,
        numbers_B: np.ndarray,
        tokens_BL: np.ndarray,
        targets_BL: np.ndarray,
        documents_BL: np.ndarray | None,
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Inputs and documents of the rows in their other form; targets are changed in place, and their number is the same."""
        assert self._augmentation is not None
        keys_B, lengths_B = chance.keys(self._seed, "augmented", numbers_B), self._counted(sources_B, samples_B)
        for row in range(len(numbers_B)) if self._augmentation.rewrites else ():
            stream, count = self._streams[sources_B[row]], int(lengths_B[row])
            assert isinstance(stream, _Stream)
            tokens = self._augmentation.rewrite(stream.file, int(samples_B[row]) * self._sequence, count + 1, keys_B[row])
            tokens_BL[row, :count], targets_BL[row, :count] = tokens[:-1], tokens[1:]
            if documents_BL is not None:
                documents_BL[row, 1:count] = (tokens[1:-1] == self._augmentation.end_of_text).cumsum()
        return self._augmentation.hide(tokens_BL, lengths_B, keys_B), documents_BL


def _padding_apart(documents_BL: np.ndarray | None, lengths_B: np.ndarray, length: int) -> np.ndarray | None:
    """Where a row is padded nothing sees the padding."""
    if (lengths_B == length).all():
        return documents_BL
    padded_BL = np.arange(length) >= lengths_B[:, None]
    return np.where(padded_BL, -1, 0 if documents_BL is None else documents_BL)


def _stream(file: TokenFile, split: Split) -> _Stream | Conversations | Pairs:
    if isinstance(split.masking, Translation):
        return Pairs(file, split.masking)
    return _Stream(file, split.sequence) if file.learned is None else Conversations(file, split.sequence, split.packed)


class _Stream:
    """One source's tokens, seen as rows: inputs, and the same shifted by one."""

    def __init__(self, file: TokenFile, sequence: int) -> None:
        self.whole, self.tail = divmod(len(file) - 1, sequence)
        self.length = self.whole + (self.tail > 0)
        self._sequence = sequence
        self._starts = file.starts
        self.file = file

    def targets(self, samples: np.ndarray) -> np.ndarray:
        return np.where(samples < self.whole, self._sequence, self.tail)

    def fill(self, rows: np.ndarray, samples: np.ndarray, tokens_BL: np.ndarray, targets_BL: np.ndarray) -> None:
        full = samples < self.whole
        self._fill(rows[full], samples[full], self._sequence, tokens_BL, targets_BL)
        self._fill(rows[~full], samples[~full], self.tail, tokens_BL, targets_BL)

    def _fill(self, rows: np.ndarray, samples: np.ndarray, length: int, tokens_BL: np.ndarray, targets_BL: np.ndarray) -> None:
        if len(rows):
            read_BL = self.file.rows(samples * self._sequence, length + 1)
            tokens_BL[rows, :length] = read_BL[:, :-1]
            targets_BL[rows, :length] = read_BL[:, 1:]

    def ahead(self, samples: np.ndarray) -> None:
        """These samples will be read soon."""
        self.file.ahead(samples[samples < self.whole] * self._sequence, self._sequence + 1)

    def fill_documents(self, rows: np.ndarray, samples: np.ndarray, documents_BL: np.ndarray) -> None:
        """A one where a document begins inside a row; summed along the row they number its documents."""
        number_documents(self._starts, rows, samples * self._sequence, documents_BL)


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
