"""Samples with labels: each row of data is one, framed by special tokens and padded.

    one text     <begin> Fine . <end> · ·                    targets  2 · · · · ·     a label of the sample stands at its first place
    two texts    <begin> Fine . <end> Not so . <end>         segments 0 0 0 0 1 1 1 1
    words        <begin> An n sings <end> ·                  targets  · 0 · 1 · ·
    a question   <begin> Who ? <end> Ann sings . <end>       targets  4 4 · · · · · · first and last token of the answer; 0 0: none here

A text that is too long is cut off, of two the longer one; a passage becomes windows, a sample each. How many targets a sample has is known
when a split is opened.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from plait import spec
from plait.data import labels, vocabulary
from plait.data.labels import has_parts
from plait.data.micro_batch import MicroBatch
from plait.data.objective import NO_TARGET
from plait.data.reader import Reader, by_source
from plait.data.tokenizer import Tokenizer

if TYPE_CHECKING:
    from plait.data.manifest import Manifest
    from plait.data.tokens import Prepared, Split, TokenFile


class Frame(NamedTuple):
    """How texts become a row of so many tokens."""

    sequence: int
    begin: int
    end: int

    @classmethod
    def of(cls, tokenizer: Tokenizer, sequence: int) -> Frame:
        begins = (tokenizer.token(name) for name in vocabulary.BEGINS)
        begin = next((token for token in begins if token is not None), tokenizer.end_of_text)
        return cls(sequence, begin, tokenizer.end_of_text)

    def one(self, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        return np.array([self.begin, *ids[: self.sequence - 2], self.end], dtype=np.int64)

    def two(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """The longer one is cut off."""
        room = self.sequence - 3
        behind = min(len(second), max(room - len(first), room // 2))
        return np.array([self.begin, *first[: room - behind], self.end, *second[:behind], self.end], dtype=np.int64)

    def windows(self, question: int, passage: int, stride: int | None) -> Iterator[tuple[int, int]]:
        """Spans of a passage of so many tokens, each as long as fits beside the question, of which at most half a row is kept."""
        room = self.sequence - 3 - min(question, self.sequence // 2)
        step = min(stride or max(1, room // 2), room)
        first = 0
        while True:
            yield first, min(first + room, passage)
            if first + room >= passage:
                return
            first += step

    def asked(self, question: np.ndarray, passage: np.ndarray) -> np.ndarray:
        """A question, of which at most half a row is kept, and a window that fits behind it."""
        return np.array([self.begin, *question[: self.sequence // 2], self.end, *passage, self.end], dtype=np.int64)


def segments(row: np.ndarray, end: int) -> np.ndarray:
    """0 up to the first end and with it, 1 behind it."""
    behind: np.ndarray = np.cumsum(row[1:] == end)
    found: np.ndarray = np.append([0, 0], behind[:-1] > 0).astype(np.int64)
    return found


class Batched(NamedTuple):
    """Rows side by side. documents_BL: 0, and -1 for padding; None where nothing is padded."""

    tokens_BL: np.ndarray
    documents_BL: np.ndarray | None
    segments_BL: np.ndarray | None


def batched(rows: Sequence[np.ndarray], width: int, frame: Frame, pairs: bool) -> Batched:
    """Rows padded to a width. pairs: they have two segments."""
    tokens_BL = np.full((len(rows), width), frame.end, dtype=np.int64)
    documents_BL = np.full((len(rows), width), -1, dtype=np.int64)
    segments_BL = np.zeros((len(rows), width), dtype=np.int64)
    for number, row in enumerate(rows):
        tokens_BL[number, : len(row)] = row
        documents_BL[number, : len(row)] = 0
        if pairs:
            segments_BL[number, : len(row)] = segments(row, frame.end)
    return Batched(tokens_BL, documents_BL if (documents_BL < 0).any() else None, segments_BL if pairs else None)


@dataclass(frozen=True)
class Told:
    """What is told of a split's documents. of: by source, int of each document or token, a float of each document, or an answer's place."""

    objective: spec.Objective
    frame: Frame
    of: list[np.ndarray]


def settled(data: spec.Data, manifest: Manifest) -> spec.Objective:
    """The objective with all that rows tell: labels, what each weighs, by what numbers are scaled. Raises DataError: unknown labels."""
    objective = data.objective
    if objective.kind == "regress" and objective.scale is None:
        kept = manifest.numeric[data.numbers.index(objective.label_field)]
        return objective.model_copy(update={"scale": [kept.mean, kept.deviation]})
    return labels.settled(objective, manifest.labels) if objective.kind in ("classify", "tag") else objective


def told(prepared: Prepared, data: spec.Data, split: str, sources: Sequence[int], sequence: int) -> Told | None:
    """What is told of a split's documents, of these sources; None where nothing but tokens is. Raises as `settled`."""
    objective = data.objective
    if not objective.labelled:
        return None
    own = _numbers if objective.kind == "regress" else _labels
    return Told(objective, Frame.of(prepared.tokenizer(), sequence), [own(prepared, data, split, source) for source in sources])


def _numbers(prepared: Prepared, data: spec.Data, split: str, source: int) -> np.ndarray:
    """Of a source's documents, scaled as the run says."""
    column = data.numbers.index(data.objective.label_field)
    kept, (mean, deviation) = prepared.manifest.numeric[column], settled(data, prepared.manifest).scale or (0.0, 1.0)
    return (prepared.numbers(split, source)[:, column] * kept.deviation + kept.mean - mean) / deviation


def _labels(prepared: Prepared, data: spec.Data, split: str, source: int) -> np.ndarray:
    """Of a source's documents or tokens, numbered as the run names them; of answers where they stand."""
    own, every = prepared.told(split, source), prepared.manifest.labels
    if data.objective.kind == "answer":
        return own
    names = labels.known(data.objective, every)
    place = np.array([names.index(label.name) for label in every])
    return np.where(own >= 0, place[own.clip(0)], own)


class SampleReader(Reader):
    """Of samples with labels."""

    def __init__(self, split: Split, told: Told) -> None:
        self._told = told
        self._sources = [_source(file, own, told) for file, own in zip(split.sources, told.of, strict=True)]
        self._pairs = has_parts(told.objective) and told.objective.kind != "tag"
        super().__init__(split, self._sources)

    def read(self, sources_B: np.ndarray, samples_B: np.ndarray, numbers_B: np.ndarray, step: int) -> MicroBatch:
        read = [self._sources[source].read(int(sample)) for source, sample in zip(sources_B, samples_B, strict=True)]
        frame = self._told.frame
        inputs = batched([row for row, _, _ in read], frame.sequence, frame, self._pairs)
        targets_BL = np.full(inputs.tokens_BL.shape, NO_TARGET, dtype=np.int64)
        for row, (_, targets, _) in enumerate(read):
            targets_BL[row, : len(targets)] = targets
        values_B = np.array([value for _, _, value in read]) if self._told.objective.kind == "regress" else None
        filled = max((len(row) for row, _, _ in read), default=0)
        return MicroBatch(inputs.tokens_BL, targets_BL, numbers_B, inputs.documents_BL, step, 0, inputs.segments_BL, values_B, filled)

    def lengths(self, sources_B: np.ndarray, samples_B: np.ndarray) -> np.ndarray:
        return by_source(sources_B, samples_B, [each.lengths for each in self._sources])


Read = tuple[np.ndarray, np.ndarray, float]
"""A row, its targets from the first place on, and its number."""


class _Source:
    """One source's samples: a document each. counts: targets of each sample."""

    def __init__(self, file: TokenFile, own: np.ndarray, told: Told) -> None:
        self._file, self._own, self._told, self._frame = file, own, told, told.frame
        self._ends = np.append(file.starts[1:], len(file))
        self.length = len(file.starts)
        self.counts = np.ones(self.length, dtype=np.int64)

    def targets(self, samples: np.ndarray) -> np.ndarray:
        counted: np.ndarray = self.counts[samples]
        return counted

    def lengths(self, samples: np.ndarray) -> np.ndarray:
        """Of rows, in tokens: framed, and cut off."""
        framed: np.ndarray = np.minimum(self._ends[samples] - self._file.starts[samples] + 1, self._frame.sequence)
        return framed

    def ahead(self, samples: np.ndarray) -> None:
        for document in map(self._document, samples.tolist()):
            self._file.ahead(self._file.starts[document : document + 1], int(self._ends[document] - self._file.starts[document]))

    def read(self, sample: int) -> Read:
        number = self._own[sample]
        ids = self._ids(sample)
        row = self._frame.one(ids) if self._told.objective.pair is None else self._frame.two(*_halves(ids, self._frame.end))
        if self._told.objective.kind == "regress":
            return row, np.zeros(1, dtype=np.int64), float(number)
        return row, np.array([number], dtype=np.int64), 0.0

    def _document(self, sample: int) -> int:
        return sample

    def _ids(self, document: int) -> np.ndarray:
        first, end = int(self._file.starts[document]), int(self._ends[document])
        [read] = self._file.rows(np.array([first]), end - first)
        ids: np.ndarray = read[1:].astype(np.int64)  # without what begins every document in a stream
        return ids


class _Tagged(_Source):
    """A label of each word, at its first token."""

    def __init__(self, file: TokenFile, own: np.ndarray, told: Told) -> None:
        super().__init__(file, own, told)
        kept = np.minimum(self._ends, file.starts + told.frame.sequence - 1)
        edges = np.stack([file.starts, kept], 1).reshape(-1)
        bear = np.append(own >= 0, False).astype(np.int64)
        self.counts = np.add.reduceat(bear, edges)[::2] if self.length else self.counts

    def read(self, sample: int) -> Read:
        row = self._frame.one(self._ids(sample))
        first = int(self._file.starts[sample])
        return row, np.array(self._own[first : first + len(row) - 1], dtype=np.int64), 0.0  # the first bears none, as <begin> does not


class _Asked(_Source):
    """Windows of a passage, each a sample with the question before it."""

    def __init__(self, file: TokenFile, own: np.ndarray, told: Told) -> None:
        super().__init__(file, own, told)
        inner = np.flatnonzero(np.asarray(file.tokens) == told.frame.end)
        inner = inner[~np.isin(inner, file.starts)]
        assert len(inner) == self.length, file.path
        self._questions = inner - file.starts - 1
        passages = self._ends - inner - 1
        self._windows = [
            (document, *window)
            for document, lengths in enumerate(zip(self._questions.tolist(), passages.tolist(), strict=True))
            for window in told.frame.windows(*lengths, told.objective.stride)
        ]
        self.length = len(self._windows)
        self.counts = np.full(self.length, 2, dtype=np.int64)

    def lengths(self, samples: np.ndarray) -> np.ndarray:
        windows = np.array([self._windows[sample] for sample in samples.tolist()], dtype=np.int64).reshape(-1, 3)
        questions = np.minimum(self._questions[windows[:, 0]], self._frame.sequence // 2)
        lengths: np.ndarray = questions + windows[:, 2] - windows[:, 1] + 3
        return lengths

    def _document(self, sample: int) -> int:
        return self._windows[sample][0]

    def read(self, sample: int) -> Read:
        document, first, end = self._windows[sample]
        question, passage = _halves(self._ids(document), self._frame.end)
        row = self._frame.asked(question, passage[first:end])
        span = self._own[document] - (len(question) + 1)  # in the passage
        if self._own[document, 0] < 0 or span[0] < first or span[1] >= end:
            return row, np.zeros(2, dtype=np.int64), 0.0
        return row, span - first + (len(row) - (end - first) - 1), 0.0


def _source(file: TokenFile, own: np.ndarray, told: Told) -> _Source:
    return {"tag": _Tagged, "answer": _Asked}.get(told.objective.kind, _Source)(file, own, told)


def _halves(ids: np.ndarray, end: int) -> tuple[np.ndarray, np.ndarray]:
    """What stands before, and behind, the first end."""
    place = int((ids == end).argmax())
    return ids[:place], ids[place + 1 :]
