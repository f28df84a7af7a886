"""Readers: micro-batches out of a split's sources, whatever its rows are.

    rows.py       tokens cut from a stream, conversations      told: each next token, or tokens that are hidden
    pairs.py      pairs of a source and its translation        told: the translation
    samples.py    samples with labels                          told: a label, a number, an answer's place

How many rows an epoch has, and how many targets each, is known before a token is read.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from plait.data.micro_batch import MicroBatch

if TYPE_CHECKING:
    from plait.data.pairs import Filling
    from plait.data.tokens import Split


class Rows(Protocol):
    """One source's. length: how many an epoch has; each is a sample, by number."""

    length: int

    def targets(self, samples: np.ndarray, /) -> np.ndarray: ...
    def ahead(self, samples: np.ndarray, /) -> None: ...


class Reader(ABC):
    """rows: of each source of the split."""

    def __init__(self, split: Split, rows: Sequence[Rows]) -> None:
        self._rows = rows
        self.far = any(file.far for file in split.sources)

    @property
    def sequences(self) -> int:
        """An epoch's, of all sources."""
        return sum(rows.length for rows in self._rows)

    def lengths(self, sources_B: np.ndarray, samples_B: np.ndarray) -> np.ndarray | None:
        """Places that each row fills, the rest being padding; None where all rows are alike, or nearly."""
        return None

    @property
    def filling(self) -> list[Filling]:
        """Of rows of pairs, how full they are, by source; empty of others."""
        return []

    def length(self, source: int) -> int:
        """Samples an epoch."""
        return self._rows[source].length

    def targets(self, sources_B: np.ndarray, samples_B: np.ndarray) -> np.ndarray:
        """How many each sample has."""
        return by_source(sources_B, samples_B, [rows.targets for rows in self._rows])

    def ahead(self, sources_B: np.ndarray, samples_B: np.ndarray) -> None:
        """These samples will be read soon."""
        for source, rows in enumerate(self._rows):
            rows.ahead(samples_B[sources_B == source])

    @abstractmethod
    def read(self, sources_B: np.ndarray, samples_B: np.ndarray, numbers_B: np.ndarray, step: int) -> MicroBatch:
        """numbers_B: of the samples in the run."""


def by_source(sources_B: np.ndarray, samples_B: np.ndarray, counts: Sequence[Callable[[np.ndarray], np.ndarray]]) -> np.ndarray:
    """What the source of each sample tells of it, int64 [B]. counts: of each source, by its samples' numbers."""
    found_B = np.empty_like(samples_B)
    for source, count in enumerate(counts):
        mine = sources_B == source
        found_B[mine] = count(samples_B[mine])
    return found_B
