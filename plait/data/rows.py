"""Rows of conversations: whole ones, a row each, or as many as fit into one.

    tokens      <end> Q Q Q A A <end> <end> Q A A <end> <end> Q ...        learned: A A <end> of each
    one a row   └──── row 0 ────────┘ └─── row 1 ─────┘
    packed      └─────────────── row 0 ───────────────┘ └─── ...           documents 0 0 0 0 0 0 0 1 1 1 1 1, which do not see each other

Conversations keep their order, so that a row is one span of the tokens. One that is longer than a row is cut off; of a row nothing may be
left to learn, and then there is none.
"""

from __future__ import annotations

import numpy as np

from plait.data.objective import NO_TARGET
from plait.data.tokens import TokenFile
from plait.errors import DataError


class Conversations:
    """One source's rows. length: how many. filled: places that hold tokens, the rest being padding. cut: conversations longer than a row.
    Raises DataError: nothing to learn."""

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
        self.filled = int((self._ends - self._firsts - 1).sum())
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
        number_documents(self.file.starts, rows, self._firsts[samples], documents_BL)


def number_documents(starts: np.ndarray, rows: np.ndarray, offsets: np.ndarray, documents_BL: np.ndarray) -> None:
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
