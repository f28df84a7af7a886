"""Augmentation: another form of a training sample each time that it is drawn, by a hash of (seed, sample's number in the run).

    stream   ...| It was late . Nobody came . |...          a row's tokens, and some after them
    shuffle     | Nobody came . It was late . |             sentences of a document, in another order
    swap        | It late was . Nobody came . |             words change places with the next
    dropout     | It late . Nobody came . And |             words are left out; what follows in the stream moves up
    BPE         | It l ate . No body came .   |             words in other pieces (Provilkov, Emelianenko and Voita 2020)
    hide        | It l ##  . No body ##  .    |  inputs alone, by random tokens; targets stay

It acts when a batch is read, not when text is prepared: so an epoch differs from the one before, nothing is stored, and token files, with
their fingerprint, stay what they were. A row always is full again, so that the number of targets of a step is told by arithmetic, as it is
without. Nothing is carried from row to row: whoever reads a row, in whichever micro-batch, reads the same.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from plait import spec
from plait.data import chance, corruption, order
from plait.data.merges import Merges
from plait.data.tokenizer import Tokenizer
from plait.data.words import Words

SHUFFLE, ORDER, SWAP, DROP, MERGE = range(5)
"""Purposes, for which a row's key is drawn from anew."""


@dataclass(frozen=True)
class Tables:
    """By token: its bytes; whether it begins with a space; whether with a character of a script without spaces, with a sign of one, or
    inside a character."""

    pieces: list[bytes]
    spaced: np.ndarray
    single: np.ndarray
    signs: np.ndarray
    inner: np.ndarray
    words: Words
    end_of_text: int

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Tables:
        pieces = tokenizer.pieces()
        spaced = np.array([piece[:1].isspace() and len(piece) > 1 for piece in pieces])
        single, signs = np.array([_single(piece) for piece in pieces]), np.array([piece[:1] in _WIDE for piece in pieces])
        inner = np.array([0x80 <= piece[0] < 0xC0 if piece else False for piece in pieces])
        return cls(pieces, spaced, single, signs & ~single, inner, Words.of(tokenizer), tokenizer.end_of_text)

    def starts(self, tokens: np.ndarray) -> np.ndarray:
        """Where words begin, int64; end-of-text tokens are words of their own."""
        numbers = self.words.number(tokens[None])[0]
        begins = np.ones(len(tokens), dtype=bool)
        begins[1:] = (numbers[1:] != numbers[:-1]) | self.single[tokens[1:]] | self.signs[tokens[1:]]
        begins[1:] &= ~self.inner[tokens[1:]]
        end = tokens == self.end_of_text
        begins |= end
        begins[1:] |= end[:-1]
        return np.flatnonzero(begins)

    def sentences(self, tokens: np.ndarray) -> np.ndarray:
        """Where sentences begin, int64. A sign that ends one may be of several tokens, so that bytes are looked at."""
        end = tokens == self.end_of_text
        pieces = [b"\x00" if stop else self.pieces[token] for token, stop in zip(tokens.tolist(), end.tolist(), strict=True)]
        edges = np.cumsum([0, *map(len, pieces)])
        ends = [found.end() for found in _SENTENCE.finditer(b"".join(pieces))]
        begins = np.isin(edges[:-1], ends) | end
        begins[1:] |= end[:-1]
        begins[0] = True
        return np.flatnonzero(begins)


# UTF-8's first byte: Han is E4 to E9 (and E3 with E3 90..BF), Japanese syllables E3 81..83; their signs E3 80 and EF BC.
_WIDE = {bytes([first]) for first in (0xE3, *range(0xE4, 0xEA), 0xEF)}
_SENTENCE = re.compile(
    rb"[.!?]+[\"')\]]*(?=\s)"
    rb"|(?:\xe3\x80\x82|\xef\xbc\x81|\xef\xbc\x9f|\xe2\x80\xa6)+(?:\xe2\x80\x9d|\xe3\x80\x8d|\xe3\x80\x8f)*"  # 。！？… and ”」』
)


def _single(piece: bytes) -> bool:
    return 0xE4 <= piece[0] <= 0xE9 or (piece[0] == 0xE3 and len(piece) > 1 and piece[1] > 0x80) if piece else False


class Stream(Protocol):
    """A source's tokens, of which rows are read (tokens.TokenFile)."""

    def __len__(self) -> int: ...
    def rows(self, firsts_B: np.ndarray, length: int, /) -> np.ndarray: ...


class Augmentation:
    """What a run file asks for, for one tokenizer. Raises DataError: BPE dropout of a tokenizer without merges."""

    def __init__(self, told: spec.Augment, tokenizer: Tokenizer) -> None:
        self._told = told
        self._tables = Tables.of(tokenizer)
        self._merges = Merges.of(tokenizer) if told.bpe_dropout else None
        self._vocabulary = tokenizer.vocabulary
        self.rewrites = told.rewrites
        self.end_of_text = tokenizer.end_of_text

    def rewrite(self, stream: Stream, offset: int, count: int, key: np.uint64) -> np.ndarray:
        """`count` tokens in place of those of the stream from `offset` on, int64. The stream goes on at its beginning."""
        tokens = _circular(stream, offset, count)
        if _draw(key, SHUFFLE, 1)[0] < self._told.sentence_shuffle:
            tokens = self._shuffled(tokens, key)
        if self._told.word_swap:
            tokens = self._swapped(tokens, key)
        if self._told.word_dropout:
            tokens = self._thinned(tokens, stream, offset + count, key)
        if self._merges is not None:
            tokens = self._in_other_pieces(tokens, count, key, self._merges)
        return tokens[:count]

    def hide(self, tokens_BL: np.ndarray, lengths_B: np.ndarray, keys_B: np.ndarray) -> np.ndarray:
        """Input tokens exchanged for random ones, as many in each row; never an end of text."""
        if not (self._told.token_mask or self._told.span_mask) or not len(tokens_BL):
            return tokens_BL
        hidden_BL = self._hidden(tokens_BL.shape[1], lengths_B, keys_B) & (tokens_BL != self._tables.end_of_text)
        random_BL = (chance.uniform(keys_B, tokens_BL.shape[1], first=3 * tokens_BL.shape[1]) * self._vocabulary).astype(np.int64)
        return np.where(hidden_BL & (random_BL != self._tables.end_of_text), random_BL, tokens_BL)

    def _hidden(self, length: int, lengths_B: np.ndarray, keys_B: np.ndarray) -> np.ndarray:
        if self._told.token_mask:
            return chance.chosen(keys_B, length, corruption.masked_count(lengths_B, self._told.token_mask), lengths_B)
        hidden_BL = np.zeros((len(keys_B), length), dtype=bool)
        for each in np.unique(lengths_B[lengths_B > 1]).tolist():
            rows = np.flatnonzero(lengths_B == each)
            hidden_BL[rows, :each] = corruption.spans(keys_B[rows], each, self._told.span_mask, self._told.mean_span)
        return hidden_BL

    def _shuffled(self, tokens: np.ndarray, key: np.uint64) -> np.ndarray:
        """The sentences of each document in another order; those that the row's ends cut are sentences like any other."""
        end = tokens == self._tables.end_of_text
        starts = self._tables.sentences(tokens)
        documents = end[starts].cumsum() * 2 - end[starts]  # a document's end-of-text token is a part before its sentences
        return _reordered(tokens, starts, np.lexsort((_draw(key, ORDER, len(starts)), documents)))

    def _swapped(self, tokens: np.ndarray, key: np.uint64) -> np.ndarray:
        starts = self._tables.starts(tokens)
        first = tokens[starts]
        alike = (self._tables.spaced[first[:-1]] & self._tables.spaced[first[1:]]) | (
            self._tables.single[first[:-1]] & self._tables.single[first[1:]]
        )
        drawn = (_draw(key, SWAP, len(starts))[:-1] < self._told.word_swap) & alike
        places = np.arange(len(drawn))
        run = np.maximum.accumulate(np.where(drawn, 0, places + 1)) if len(drawn) else places
        pairs = np.flatnonzero(drawn & ((places - run) % 2 == 0))  # of words drawn one after the other every second
        along = np.arange(len(starts))
        along[pairs], along[pairs + 1] = pairs + 1, pairs
        return _reordered(tokens, starts, along)

    def _thinned(self, tokens: np.ndarray, stream: Stream, after: int, key: np.uint64) -> np.ndarray:
        """Words left out, and as many tokens of what follows as it takes."""
        rate, count = self._told.word_dropout, len(tokens)
        extra = math.ceil(count * rate / (1 - rate) * 1.5) + 16
        while True:
            more = np.concatenate([tokens, _circular(stream, after, extra)])
            starts = self._tables.starts(more)
            may = self._tables.spaced[more[starts]] | self._tables.single[more[starts]]
            dropped = may & (_draw(key, DROP, len(starts)) < rate)
            kept: np.ndarray = more[~np.repeat(dropped, np.diff(starts, append=len(more)))]
            if len(kept) >= count:
                return kept
            extra *= 2

    def _in_other_pieces(self, tokens: np.ndarray, count: int, key: np.uint64, merges: Merges) -> np.ndarray:
        numbers = _numbers(key)
        pieces: list[int] = []
        words = np.split(tokens, self._tables.starts(tokens)[1:])
        for word in words:
            pieces += merges.again(word.tolist(), self._told.bpe_dropout, numbers)
            if len(pieces) >= count:
                break
        return np.array(pieces, dtype=np.int64)


def _circular(stream: Stream, offset: int, count: int) -> np.ndarray:
    parts = []
    while count > 0:
        offset %= len(stream)
        taken = min(count, len(stream) - offset)
        parts.append(stream.rows(np.array([offset]), taken)[0].astype(np.int64))
        offset, count = offset + taken, count - taken
    return np.concatenate(parts)


def _reordered(tokens: np.ndarray, starts: np.ndarray, along: np.ndarray) -> np.ndarray:
    parts = np.split(tokens, starts[1:])
    return np.concatenate([parts[index] for index in along.tolist()])


def _draw(key: np.uint64, purpose: int, count: int) -> np.ndarray:
    drawn: np.ndarray = chance.uniform(_key(key, purpose), count)[0]
    return drawn


def _key(key: np.uint64, purpose: int) -> np.ndarray:
    return order.keys_of(int(key), np.array([purpose]))


def _numbers(key: np.uint64) -> Iterator[float]:
    first, block = 0, 1024
    while True:
        yield from chance.uniform(_key(key, MERGE), block, first)[0].tolist()
        first += block
