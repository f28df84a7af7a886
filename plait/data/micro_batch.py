"""The micro-batch: sequences that are computed at once."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from plait.data.objective import NO_TARGET


@dataclass(frozen=True)
class MicroBatch:
    """B sequences of L tokens, int64.

    targets_BL: the next tokens, or those that were hidden, NO_TARGET where there is none; of samples with labels (samples.py) what is told
    of each place, or in the first place what is told of the sample. samples_B: numbers of the samples in the run,
    which dropout is keyed by. documents_BL: number of the document within the row, only with data.document_mask, or where tokens see those
    behind them and a row is padded: padding is a document of its own, -1. source: how many positions an encoder reads, and a decoder
    writes the rest; targets are then the decoder's, and documents those of the source alone, unless a row holds several pairs of both.
    segments_BL: 1 where the second of two texts stands. values_B: the number that is told of each sample, where one is. filled: behind so
    many places all rows are padding, which nothing sees; all places when None.
    """

    tokens_BL: np.ndarray
    targets_BL: np.ndarray
    samples_B: np.ndarray
    documents_BL: np.ndarray | None
    step: int
    source: int = 0
    segments_BL: np.ndarray | None = None
    values_B: np.ndarray | None = None
    filled: int | None = None

    def beginning(self, length: int) -> MicroBatch:
        """Its first places alone."""
        cut = {
            name: value[:, :length]
            for name in ("tokens_BL", "targets_BL", "documents_BL", "segments_BL")
            if (value := getattr(self, name)) is not None
        }
        return replace(self, **cut)

    def without_targets(self) -> MicroBatch:
        """The same forward pass, which counts for nothing."""
        return replace(self, targets_BL=np.full_like(self.targets_BL, NO_TARGET))
