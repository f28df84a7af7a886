"""Rows of tokens: cut from a stream, and of conversations: whole ones, a row each, or as many as fit into one.

    stream      t t t t t t t t t t t                    row i has inputs [i*L, i*L + L), and targets one further; the last may be short,
    rows        └ 0 ──┘ └ 1 ──┘ └ 2 ─                    and is padded: so every token but the first is a target exactly once an epoch

    tokens      <end> Q Q Q A A <end> <end> Q A A <end> <end> Q ...        learned: A A <end> of each
    one a row   └──── row 0 ────────┘ └─── row 1 ─────┘
    packed      └─────────────── row 0 ───────────────┘ └─── ...           documents 0 0 0 0 0 0 0 1 1 1 1 1, which do not see each other

Conversations keep their order, so that a row is one span of the tokens. One that is longer than a row is cut off; of a row nothing may be
left to learn, and then there is none.
"""

from __future__ import annotations

import numpy as np

from plait.data import chance
from plait.data.augment import Augmentation
from plait.data.micro_batch import MicroBatch
from plait.data.objective import NO_TARGET, Spans, Translation
from plait.data.reader import Reader, by_source
from plait.data.tokens import Split, TokenFile
from plait.errors import DataError


class RowReader(Reader):
    """Of tokens cut from a stream, or of conversations. seed: of what is drawn to be hidden."""

    def __init__(self, split: Split, seed: int = 0, augmentation: Augmentation | None = None) -> None:
        assert not isinstance(split.masking, Translation)
        self._seed, self._masking, self._augmentation = seed, split.masking, augmentation
        self._sequence, self._document_mask = split.sequence, split.document_mask
        self._streams = [_rows_of(file, split) for file in split.sources]
        super().__init__(split, self._streams)

    def targets(self, sources_B: np.ndarray, samples_B: np.ndarray) -> np.ndarray:
        lengths_B = self._lengths(sources_B, samples_B)
        return lengths_B if self._masking is None else self._masking.targets(lengths_B)

    def read(self, sources_B: np.ndarray, samples_B: np.ndarray, numbers_B: np.ndarray, step: int) -> MicroBatch:
        shape = (len(numbers_B), self._sequence)
        tokens_BL = np.zeros(shape, dtype=np.int64)
        targets_BL = np.full(shape, NO_TARGET, dtype=np.int64)
        documents_BL = np.zeros(shape, dtype=np.int64) if self._document_mask else None
        for source, stream in enumerate(self._streams):
            rows = np.flatnonzero(sources_B == source)
            stream.fill(rows, samples_B[rows], tokens_BL, targets_BL)
            if documents_BL is not None:
                stream.fill_documents(rows, samples_B[rows], documents_BL)
        if self._augmentation is not None:
            tokens_BL, documents_BL = self._augmented(sources_B, samples_B, numbers_B, tokens_BL, targets_BL, documents_BL)
        if self._masking is None:
            filled_B = self.lengths(sources_B, samples_B)
            filled = None if filled_B is None else int(filled_B.max(initial=0))
            return MicroBatch(tokens_BL, targets_BL, numbers_B, documents_BL, step, filled=filled)
        lengths_B, keys_B = self._lengths(sources_B, samples_B), chance.keys(self._seed, "masked", numbers_B)
        if isinstance(self._masking, Spans):
            tokens_BL, targets_BL, documents_BL = self._masking.apply(tokens_BL, lengths_B, keys_B)
            return MicroBatch(tokens_BL, targets_BL, numbers_B, documents_BL[:, : self._masking.source], step, self._masking.source)
        tokens_BL, targets_BL = self._masking.apply(tokens_BL, lengths_B, keys_B)
        return MicroBatch(tokens_BL, targets_BL, numbers_B, _padding_apart(documents_BL, lengths_B, self._sequence), step)

    def lengths(self, sources_B: np.ndarray, samples_B: np.ndarray) -> np.ndarray | None:
        """Of conversations."""
        conversations = [stream for stream in self._streams if isinstance(stream, Conversations)]
        if len(conversations) < len(self._streams):
            return None
        return by_source(sources_B, samples_B, [each.lengths.take for each in conversations])

    def _lengths(self, sources_B: np.ndarray, samples_B: np.ndarray) -> np.ndarray:
        """Next tokens to tell in each sample: fewer than it has places in the last one of a source, and of conversations."""
        return super().targets(sources_B, samples_B)

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
        keys_B, lengths_B = chance.keys(self._seed, "augmented", numbers_B), self._lengths(sources_B, samples_B)
        for row in range(len(numbers_B)) if self._augmentation.rewrites else ():
            stream, count = self._streams[sources_B[row]], int(lengths_B[row])
            assert isinstance(stream, Stream)
            tokens = self._augmentation.rewrite(stream.file, int(samples_B[row]) * self._sequence, count + 1, keys_B[row])
            tokens_BL[row, :count], targets_BL[row, :count] = tokens[:-1], tokens[1:]
            if documents_BL is not None:
                documents_BL[row, 1:count] = (tokens[1:-1] == self._augmentation.end_of_text).cumsum()
        return self._augmentation.hide(tokens_BL, lengths_B, keys_B), documents_BL


class Stream:
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
        _number_documents(self._starts, rows, samples * self._sequence, documents_BL)


class Conversations:
    """One source's rows. length: how many. lengths: places of each that hold tokens, the rest being padding. cut: conversations longer than
    a row. Raises DataError: nothing to learn."""

    def __init__(self, file: TokenFile, sequence: int, packed: bool) -> None:
        assert file.learned is not None
        self.file, self._learned = file, file.learned
        ends = np.append(file.starts[1:], len(file))
        self.cut = int((ends - file.starts > sequence + 1).sum())
        firsts, ends = _packed(file.starts, ends, sequence + 1) if packed else (file.starts, ends)
        ends = np.minimum(ends, firsts + sequence + 1)
        targets = _counts(file.learned, firsts, ends)
        self._firsts, self._ends, self._targets = firsts[targets > 0], ends[targets > 0], targets[targets > 0]
        self.length = len(self._firsts)
        self.lengths = self._ends - self._firsts - 1
        if not self.length:
            raise DataError(
                f"data.sequence = {sequence}: no conversation of {file.path} has an answer that begins within it; make it longer"
            )

    def targets(self, samples: np.ndarray) -> np.ndarray:
        counted: np.ndarray = self._targets[samples]
        return counted

    def fill(self, rows: np.ndarray, samples: np.ndarray, tokens_BL: np.ndarray, targets_BL: np.ndarray) -> None:
        for row, sample in zip(rows, samples, strict=True):
            first, end = self._firsts[sample], self._ends[sample]
            (tokens,) = self.file.rows(np.array([first]), int(end - first)).astype(np.int64)
            tokens_BL[row, : end - first - 1] = tokens[:-1]
            targets_BL[row, : end - first - 1] = np.where(self._learned[first + 1 : end], tokens[1:], NO_TARGET)

    def ahead(self, samples: np.ndarray) -> None:
        """These samples will be read soon."""
        for sample in samples:
            self.file.ahead(self._firsts[sample : sample + 1], int(self._ends[sample] - self._firsts[sample]))

    def fill_documents(self, rows: np.ndarray, samples: np.ndarray, documents_BL: np.ndarray) -> None:
        _number_documents(self.file.starts, rows, self._firsts[samples], documents_BL)


def _rows_of(file: TokenFile, split: Split) -> Stream | Conversations:
    return Stream(file, split.sequence) if file.learned is None else Conversations(file, split.sequence, split.packed)


def _padding_apart(documents_BL: np.ndarray | None, lengths_B: np.ndarray, length: int) -> np.ndarray | None:
    """Where a row is padded nothing sees the padding."""
    if (lengths_B == length).all():
        return documents_BL
    padded_BL = np.arange(length) >= lengths_B[:, None]
    return np.where(padded_BL, -1, 0 if documents_BL is None else documents_BL)


def _number_documents(starts: np.ndarray, rows: np.ndarray, offsets: np.ndarray, documents_BL: np.ndarray) -> None:
    """A one where a document begins inside a row, which begins at an offset; their sums along the row number its documents."""
    low = np.searchsorted(starts, offsets, side="right")
    counts = np.searchsorted(starts, offsets + documents_BL.shape[1]) - low
    begins = np.repeat(low - (np.cumsum(counts) - counts), counts) + np.arange(counts.sum())
    documents_BL[np.repeat(rows, counts), starts[begins] - np.repeat(offsets, counts)] = 1
    documents_BL[rows] = documents_BL[rows].cumsum(axis=1)


def _packed(firsts: np.ndarray, ends: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Neighbours together, as long as they have `most` tokens at most."""
    groups, place = [], 0
    while place < len(firsts):
        beyond = max(place + 1, int(np.searchsorted(ends, firsts[place] + most, side="right")))
        groups.append((firsts[place], ends[beyond - 1]))
        place = beyond
    spans = np.array(groups, dtype=np.int64).reshape(-1, 2)
    return spans[:, 0], spans[:, 1]


def _counts(learned: np.ndarray, firsts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Learned tokens of each span but its first, which nothing tells."""
    if not len(firsts):
        return np.zeros(0, dtype=np.int64)
    edges = np.stack([np.minimum(firsts + 1, ends), ends], 1).reshape(-1)
    padded = np.append(np.asarray(learned, dtype=np.int8), np.int8(0))
    sums: np.ndarray = np.add.reduceat(padded, edges, dtype=np.int64)[::2]
    return np.where(ends - firsts > 1, sums, 0)
