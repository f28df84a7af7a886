"""Rows of pairs: a source that an encoder reads and its translation that a decoder tells, or as many of such pairs as fit into one row.

    tokens      end S S S T T T T end   end S S T T T end ...                           learned: T T T T end of each
    row         [S S S end S S end · · | begin T T T T begin T T T · ·]                 targets behind the bar: T T T T end T T T end
    documents   [0 0 0  0  1 1  1 -1-1 | 0     0 0 0 0 1     1 1 1 0 0]                 a pair sees its own source and target alone

Sentences differ in length tenfold, and a row a pair would be padding for the most part. Batches of rows of like lengths would have less,
but steps, shares and micro-batches of unlike costs; of packed rows each costs the same. Which pairs stand in a row hangs on the data alone:
they are taken in the order of a keyed permutation, the longest first, and the rest of a row is filled with the longest that fit. So the
number of rows is known without reading a token, and so are the targets of each. (Packing: Raffel et al. 2020; Krell et al. 2021.)
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from plait.data import order
from plait.data.micro_batch import MicroBatch
from plait.data.objective import NO_TARGET, Translation
from plait.data.reader import Reader
from plait.data.tokenizer import Tokenizer
from plait.data.tokens import Split, TokenFile
from plait.errors import DataError


@dataclass(frozen=True)
class Filling:
    """How full a source's rows are. pairs: in them; longer: pairs that are not, or cut. read, told: positions that hold a token, of source
    and target, of each side's in a row."""

    name: str
    cut: bool
    rows: int
    pairs: int
    longer: int
    read: int
    told: int
    sides: tuple[int, int]

    @property
    def padding(self) -> float:
        """The share of positions that hold nothing."""
        return 1 - (self.read + self.told) / (self.rows * sum(self.sides))

    def __str__(self) -> str:
        source, target = self.sides
        apart = 1 - (self.read + self.told) / (self.pairs * (source + target))
        laid = f"{self.name}: {self.pairs:,} pairs in {self.rows:,} rows of {source} + {target} tokens, {self.padding:.1%} of them padding"
        laid += f", {apart:.1%} with a pair a row" if self.rows < self.pairs else ""
        longer = f"; {self.longer:,} longer ones are {'cut off' if self.cut else 'left out'}" if self.longer else ""
        return f"{laid}{longer}"


class PairReader(Reader):
    """Of rows of pairs."""

    def __init__(self, split: Split, sides: Translation) -> None:
        self._sides, self._names = sides, split.names
        self._pairs = [Pairs(file, sides) for file in split.sources]
        super().__init__(split, self._pairs)

    @property
    def filling(self) -> list[Filling]:
        return [replace(each.filling, name=name) for each, name in zip(self._pairs, self._names, strict=True)]

    def read(self, sources_B: np.ndarray, samples_B: np.ndarray, numbers_B: np.ndarray, step: int) -> MicroBatch:
        """Where each row holds one pair, nothing need tell pairs apart but padding from the source."""
        sides = self._sides
        shape = (len(numbers_B), sides.source + sides.target)
        tokens_BL, targets_BL = np.full(shape, sides.end, dtype=np.int64), np.full(shape, NO_TARGET, dtype=np.int64)
        documents_BL = np.zeros(shape, dtype=np.int64)
        documents_BL[:, : sides.source] = -1
        for source, each in enumerate(self._pairs):
            rows = np.flatnonzero(sources_B == source)
            each.fill(rows, samples_B[rows], tokens_BL, targets_BL, documents_BL)
        told_BL = documents_BL if sides.packed else documents_BL[:, : sides.source]
        return MicroBatch(tokens_BL, targets_BL, numbers_B, told_BL, step, sides.source)


class Pairs:
    """One source's rows. length: how many. Raises DataError: pairs that are longer than a row, where they may not be; no other ones."""

    def __init__(self, file: TokenFile, sides: Translation) -> None:
        assert file.learned is not None
        self.file, self._sides = file, sides
        self._starts = np.asarray(file.starts)
        ends = np.append(self._starts[1:], len(file))
        learned = np.asarray(file.learned)
        self._borders = np.flatnonzero(learned[1:] & ~learned[:-1]) + 1
        self._read, self._told = self._borders - self._starts, ends - self._borders
        self.longer = self._check()
        self._pairs, self._firsts = self._laid()
        self.length = len(self._firsts) - 1
        self._targets = np.add.reduceat(self._told[self._pairs], self._firsts[:-1])

    @property
    def filling(self) -> Filling:
        read, told = (int(lengths[self._pairs].sum()) for lengths in (self._read, self._told))
        sides, cut = (self._sides.source, self._sides.target), self._sides.longer == "cut"
        return Filling(self.file.path.stem, cut, self.length, len(self._pairs), self.longer, read, told, sides)

    def targets(self, samples: np.ndarray) -> np.ndarray:
        counted: np.ndarray = self._targets[samples]
        return counted

    def fill(self, rows: np.ndarray, samples: np.ndarray, tokens_BL: np.ndarray, targets_BL: np.ndarray, documents_BL: np.ndarray) -> None:
        """Rows that are all padding: end in tokens, NO_TARGET, and -1 and 0 in documents of the two sides."""
        sides = self._sides
        for row, sample in zip(rows, samples, strict=True):
            at, to = 0, sides.source
            for number, pair in enumerate(self.pairs_of(sample)):
                source, target = self.pair(pair)
                tokens_BL[row, at : at + len(source)] = source
                documents_BL[row, at : at + len(source)] = number
                tokens_BL[row, to] = sides.begin
                tokens_BL[row, to + 1 : to + len(target)] = target[:-1]
                targets_BL[row, to : to + len(target)] = target
                documents_BL[row, to : to + len(target)] = number
                at, to = at + len(source), to + len(target)

    def pairs_of(self, sample: int) -> np.ndarray:
        """The numbers of the pairs in a row."""
        numbers: np.ndarray = self._pairs[self._firsts[sample] : self._firsts[sample + 1]]
        return numbers

    def pair(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """(source, target) as they are read and told, an end behind each but of a target that was cut."""
        first, border = int(self._starts[number]), int(self._borders[number])
        (tokens,) = self.file.rows(np.array([first]), border - first + int(self._told[number])).astype(np.int64)
        source = np.append(tokens[1 : self._read[number]], self._sides.end)
        return source, tokens[border - first :]

    def ahead(self, samples: np.ndarray) -> None:
        """These samples will be read soon."""
        for sample in samples:
            for pair in self.pairs_of(sample):
                self.file.ahead(self._starts[pair : pair + 1], int(self._borders[pair] - self._starts[pair] + self._told[pair]))

    def _check(self) -> int:
        """How many pairs are longer than a row; they are cut here, where that is asked for."""
        sides = self._sides
        longer = (self._read > sides.source) | (self._told > sides.target)
        count, whole = int(longer.sum()), len(longer)
        if count and (sides.longer == "fail" or (sides.longer == "skip" and count == whole)):
            worst = int(np.argmax(np.maximum(self._read / sides.source, self._told / sides.target)))
            raise DataError(
                f"data.sequence = {sides.source}: {count:,} of {whole:,} pairs of {self.file.path} are longer than a row of {sides.source} "
                f"tokens of source and {sides.target} of target; the longest has {self._read[worst]} and {self._told[worst]}; make rows "
                "longer" + ("" if sides.longer == "skip" else ', or write data.objective.longer = "skip" or "cut"')
            )
        if sides.longer == "cut":
            self._read, self._told = np.minimum(self._read, sides.source), np.minimum(self._told, sides.target)
        return count

    def _laid(self) -> tuple[np.ndarray, np.ndarray]:
        """Pairs in the order in which rows hold them, and where each row begins."""
        fit = np.flatnonzero((self._read <= self._sides.source) & (self._told <= self._sides.target))
        if not self._sides.packed:
            return fit, np.arange(len(fit) + 1)
        taken = fit[order.permute(np.arange(len(fit)), len(fit), order.key_of("pairs", len(fit)))]
        places, firsts = packed(self._read[taken], self._told[taken], self._sides.source, self._sides.target)
        return taken[places], firsts


def texts(file: TokenFile, tokenizer: Tokenizer, most: int | None = None) -> list[tuple[str, str]]:
    """The pairs of a file, of whatever length, as they were tokenised. most: so many, spread evenly over it; all when None."""
    assert file.learned is not None
    tokens, learned = file.tokens, np.asarray(file.learned)
    borders = np.flatnonzero(learned[1:] & ~learned[:-1]) + 1
    ends = np.append(file.starts[1:], len(tokens))
    count = min(most or len(borders), len(borders))
    chosen = np.arange(count) * len(borders) // max(1, count)
    spans = zip(file.starts[chosen].tolist(), borders[chosen].tolist(), ends[chosen].tolist(), strict=True)
    sides = ((tokens[first + 1 : border], tokens[border : end - 1]) for first, border, end in spans)
    return [(tokenizer.decode(source.tolist()), tokenizer.decode(target.tolist())) for source, target in sides]


def packed(read_N: np.ndarray, told_N: np.ndarray, source: int, target: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of such lengths put into rows: their numbers one row behind the other, and where each row begins, int64 [N] and [rows + 1].

    A row begins with the longest source that is left, and takes the longest that still fits until none does: pairs lie on shelves by
    length.
    """
    shelves: list[list[int]] = [[] for _ in range(source + 1)]
    told, laid, firsts = told_N.tolist(), list[int](), [0]
    for number in reversed(range(len(told))):
        shelves[read_N[number]].append(number)
    longest = source
    while len(laid) < len(told):
        while not shelves[longest]:
            longest -= 1
        shelf, room = longest, [source, target]
        while shelf > 0:
            if shelves[shelf] and told[shelves[shelf][-1]] <= room[1]:
                number = shelves[shelf].pop()
                laid.append(number)
                room = [room[0] - shelf, room[1] - told[number]]
                shelf = min(shelf, room[0])
            else:
                shelf -= 1
        firsts.append(len(laid))
    return np.array(laid, dtype=np.int64), np.array(firsts, dtype=np.int64)
