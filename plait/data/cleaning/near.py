"""Near-duplicates: MinHash signatures, bands of them, and clusters (Broder 1997; Leskovec, Rajaraman and Ullman, ch. 3).

    words ─ sequences of 5 ─ hashes ─ rensa ─ 128 minima ─┬─ bands of r rows ─ equal in one: candidates
                                                          └─ share of equal minima, an estimate of the Jaccard index ─ confirmed

Candidates are found band by band, so that memory is a few numbers a document whatever the corpus; the first document of a cluster, in the
corpus' order, stands for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from plait.data import order
from plait.data.cleaning.repair import missing

MINIMA = 128
SHINGLE = 5
MISSED = 0.01
"""Pairs of exactly the wanted similarity that no band finds."""
_SEED = 1
_ROUNDS = 16
_BLOCK = 1 << 16


def signer() -> Callable[[np.ndarray], np.ndarray]:
    """From hashes of sequences of words (uint64) to a signature, uint32 [MINIMA]. Raises DataError: rensa is not installed."""
    try:
        from rensa import RMinHash
    except ImportError:
        raise missing("near-duplicates", "rensa") from None

    def sign(grams: np.ndarray) -> np.ndarray:
        ends = np.array([0, len(grams)], dtype=np.uint64)
        rows = RMinHash.digest_matrix_from_flat_token_hashes(grams, ends, MINIMA, _SEED).to_rows()
        return np.array(rows[0], dtype=np.uint32)

    return sign


def of_content(content: int) -> np.ndarray:
    """The signature of a text without words, which is like itself alone."""
    return order.draws(np.array([content], dtype=np.uint64), np.arange(MINIMA)).astype(np.uint32)


def rows_of_a_band(similarity: float) -> int:
    """The most that still find all but MISSED of the pairs that are just similar enough: wrong candidates are cheap, missed ones stay."""
    return max(rows for rows in range(1, 17) if (1 - similarity**rows) ** (MINIMA // rows) <= MISSED or rows == 1)


def bands(signatures: np.ndarray, rows: int) -> np.ndarray:
    """A hash of each band of each signature, uint64 [bands, documents]."""
    count = MINIMA // rows
    cut = signatures[:, : count * rows].reshape(len(signatures), count, rows).astype(np.uint64)
    hashes = np.zeros((len(signatures), count), dtype=np.uint64)
    for row in range(rows):
        hashes = order.draws(hashes ^ cut[:, :, row], np.array(row + 1))
    return np.ascontiguousarray(hashes.T)


class Clusters:
    """Documents joined step by step; the smallest number of a cluster stands for it."""

    def __init__(self, count: int) -> None:
        self._above = np.arange(count)
        self.value = np.ones(count, dtype=np.float32)
        """How similar a document is to the one that it was joined by."""

    def find(self, number: int) -> int:
        above = self._above
        while (parent := int(above[number])) != number:
            above[number] = number = int(above[parent])
        return number

    def join(self, one: int, other: int, value: float) -> None:
        first, second = sorted((self.find(one), self.find(other)))
        if first != second:
            self._above[second] = first
            self.value[max(one, other)] = value

    def firsts(self) -> np.ndarray:
        """For each document the one that stands for its cluster, int64."""
        above = self._above
        while not np.array_equal(above, above[above]):
            above = above[above]
        return above

    def join_equal(self, hashes: np.ndarray, members: np.ndarray) -> None:
        """Join documents (their numbers, ascending) of equal hashes."""
        for one, other in _pairs(hashes, members):
            for first, second in zip(one.tolist(), other.tolist(), strict=True):
                self.join(first, second, 1.0)

    def join_similar(
        self, hashes: np.ndarray, members: np.ndarray, signatures: Callable[[np.ndarray], np.ndarray], similarity: float
    ) -> None:
        """Join those of equal band hashes whose signatures agree enough.

        Each is compared with the first of its bucket; those that differ from it form the bucket again without it.
        """
        for _ in range(_ROUNDS):
            left: list[np.ndarray] = []
            for one, other in _pairs(hashes, members):
                alike = np.concatenate([_agreement(signatures(one[at]), signatures(other[at])) for at in _blocks(len(one))])
                for index in np.flatnonzero(alike >= similarity).tolist():
                    self.join(int(one[index]), int(other[index]), float(alike[index]))
                left.append(other[alike < similarity])
            rest = np.isin(members, np.concatenate([np.zeros(0, np.int64), *left]))
            hashes, members = hashes[rest], members[rest]
            if len(members) < 2:
                return


def _pairs(hashes: np.ndarray, members: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(first of a bucket, another of it), if there are any."""
    along = np.argsort(hashes, kind="stable")
    hashes, members = hashes[along], members[along]
    begins = np.ones(len(hashes), dtype=bool)
    begins[1:] = hashes[1:] != hashes[:-1]
    firsts = members[np.maximum.accumulate(np.where(begins, np.arange(len(members)), 0))] if len(members) else members
    if not begins.all():
        yield firsts[~begins], members[~begins]


def _agreement(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    share: np.ndarray = (one == other).mean(axis=1, dtype=np.float32)
    return share


def _blocks(count: int) -> Iterator[slice]:
    return (slice(first, first + _BLOCK) for first in range(0, count, _BLOCK))
