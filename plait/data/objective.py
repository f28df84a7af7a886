"""What of a sample a model shall tell: each next token, or tokens that are hidden from it.

How many is known from a row's length alone, so that a step's divisor needs no token to be read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from plait import spec
from plait.data import corruption, vocabulary
from plait.data.tokenizer import Tokenizer
from plait.data.words import Words
from plait.errors import DataError
from plait.spec.objective import SIDES_EVEN

NO_TARGET = -100
RATE = 0.15
MEAN_SPAN = 3.0


@dataclass(frozen=True)
class Masking:
    """Some tokens of each row are hidden, and told from all the others."""

    rate: float
    mask_token: int
    vocabulary: int
    words: Words | None = None

    def targets(self, lengths_B: np.ndarray) -> np.ndarray:
        """How many there are in rows of so many tokens."""
        return corruption.masked_count(lengths_B, self.rate)

    def apply(self, tokens_BL: np.ndarray, lengths_B: np.ndarray, keys_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The rows as they are shown, and targets, NO_TARGET where nothing is to be told."""
        words_BL = None if self.words is None else self.words.number(tokens_BL)
        shown_BL, told_BL = corruption.mask(tokens_BL, lengths_B, keys_B, self.rate, self.mask_token, self.vocabulary, words_BL)
        return shown_BL, np.where(told_BL, tokens_BL, NO_TARGET)


@dataclass(frozen=True)
class Spans:
    """Spans of each row are hidden; a decoder tells them, each behind the sentinel that stands for it.

    row       [source: the row with sentinels, end, padding | target: begin, sentinel, span, ..., last sentinel, padding]
    targets   [none                                         | sentinel, span, ..., last sentinel, end]
    """

    sequence: int
    rate: float
    mean_span: float
    first_sentinel: int
    begin: int
    end: int

    @property
    def source(self) -> int:
        """Positions that an encoder reads."""
        return _even(corruption.span_widths(self.sequence, self.rate, self.mean_span)[0] + 1)

    @property
    def target(self) -> int:
        """Positions that a decoder writes."""
        return _even(self._told(self.sequence))

    def targets(self, lengths_B: np.ndarray) -> np.ndarray:
        """How many there are in rows of so many tokens."""
        known = {int(length): self._told(int(length)) for length in np.unique(lengths_B)}
        return np.array([known[int(length)] for length in lengths_B], dtype=np.int64)

    def apply(self, tokens_BL: np.ndarray, lengths_B: np.ndarray, keys_B: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(rows, targets, documents: -1 for the source's padding, which nothing shall see)."""
        shape = (len(tokens_BL), self.source + self.target)
        rows_BL, targets_BL = np.full(shape, self.end, dtype=np.int64), np.full(shape, NO_TARGET, dtype=np.int64)
        documents_BL = np.zeros(shape, dtype=np.int64)
        documents_BL[:, : self.source] = -1
        for length in (int(each) for each in np.unique(lengths_B) if each > 1):
            rows = np.flatnonzero(lengths_B == length)
            noise_BL = corruption.spans(keys_B[rows], length, self.rate, self.mean_span)
            source_BS, target_BT = corruption.collapse(tokens_BL[rows, :length], noise_BL, self.first_sentinel)
            read, told = source_BS.shape[1], target_BT.shape[1]
            rows_BL[rows, :read] = source_BS
            documents_BL[rows, : read + 1] = 0
            rows_BL[rows, self.source] = self.begin
            rows_BL[rows, self.source + 1 : self.source + 1 + told] = target_BT
            targets_BL[rows, self.source : self.source + told] = target_BT
            targets_BL[rows, self.source + told] = self.end
        documents_BL[lengths_B < 2, 0] = 0  # so that there is something to see
        return rows_BL, targets_BL, documents_BL

    def _told(self, length: int) -> int:
        """Tokens to tell of a row, the end included; none of a single token."""
        return corruption.span_widths(length, self.rate, self.mean_span)[1] + 1 if length > 1 else 0


@dataclass(frozen=True)
class Translation:
    """A source is read, and a decoder tells its translation; plait/data/pairs.py lays rows of them.

    source, target: positions of the two sides. packed: a row holds as many pairs as fit.
    """

    source: int
    target: int
    packed: bool
    longer: Literal["skip", "cut", "fail"]
    begin: int
    end: int


Telling = Masking | Spans | Translation
"""How a model tells something else than each next token."""


def build(objective: spec.Objective, tokenizer: Tokenizer, sequence: int) -> Telling | None:
    """None for the next token, and for what is no token. Raises DataError: a tokenizer without what the objective needs."""
    if objective.kind == "causal" or objective.labelled:
        return None
    if objective.kind == "translate":
        return _translation(objective, tokenizer, sequence)
    if objective.kind == "span":
        return _spans(objective, tokenizer, sequence)
    found = (tokenizer.token(name) for name in vocabulary.MASKS)
    token = next((token for token in found if token is not None), None)
    if token is None:
        raise DataError(
            f'data.objective.kind = "masked" needs a tokenizer with a mask token, and data.tokenizer.file has none of '
            f"{', '.join(vocabulary.MASKS)}; one that is trained here has it"
        )
    return Masking(objective.rate or RATE, token, tokenizer.vocabulary, Words.of(tokenizer) if objective.whole_words else None)


def _spans(objective: spec.Objective, tokenizer: Tokenizer, sequence: int) -> Spans:
    rate, mean_span = objective.rate or RATE, objective.mean_span or MEAN_SPAN
    needed = corruption.span_counts(sequence, rate, mean_span)[1] + 1
    found = [tokenizer.token(vocabulary.sentinel(number)) for number in range(needed)]
    first = found[0]
    if first is None or found != list(range(first, first - needed, -1)):
        raise DataError(
            f'data.objective.kind = "span" needs {needed} sentinels in sequences of {sequence} tokens, {vocabulary.sentinel(0)} and so on, '
            f"each numbered one below the one before it, as T5's tokenizer has {vocabulary.SENTINELS}; one that is trained here has as many"
        )
    return Spans(sequence, rate, mean_span, first, vocabulary.begin(tokenizer), tokenizer.end_of_text)


def _translation(objective: spec.Objective, tokenizer: Tokenizer, sequence: int) -> Translation:
    packed = True if objective.pack is None else objective.pack
    sides = _even(sequence), _even(objective.target or sequence)
    return Translation(*sides, packed, objective.longer or "skip", vocabulary.begin(tokenizer), tokenizer.end_of_text)


def _even(length: int) -> int:
    return -(-length // SIDES_EVEN) * SIDES_EVEN
