"""What part of each sample a rank computes, where a layout cuts samples by positions or attention by heads.

    sample            0 1 2 3 4 5 6 7 8 9 a b c d e f      length
    context = 2       0 1 2 3 . . . . . . . . c d e f      positions_L: what attention computes here
    tensor = 2        0 1 2 3                              stream_S: what norms, residuals and dropout compute here

A model asks it for nothing but numbers: who holds the rest, and how it travels, is not known here.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Cut:
    """length: positions of a whole sample. positions_L, stream_S: global positions, int64. head_share: (which, of how many). parts: cuts
    of its sides, each with positions of its own, where a sample is a source and a target one behind the other. filled: positions from the
    first on that are shared out, the rest being padding that nobody computes; all when 0."""

    length: int
    positions_L: Tensor
    stream_S: Tensor
    head_share: tuple[int, int] = (0, 1)
    parts: tuple[Cut, ...] = ()
    filled: int = 0

    @property
    def shared(self) -> int:
        """Positions of a sample that ranks share."""
        return self.filled or self.length

    def rows(self, length: int) -> Tensor:
        """The global positions of a tensor of so many: the stream's, or attention's."""
        if length == len(self.stream_S):
            return self.stream_S
        assert length == len(self.positions_L), (length, len(self.stream_S), len(self.positions_L))
        return self.positions_L


def joined(parts: tuple[Cut, ...]) -> Cut:
    """One cut of sides that stand one behind the other."""
    positions, streams, first = [], [], 0
    for part in parts:
        positions.append(part.positions_L + first)
        streams.append(part.stream_S + first)
        first += part.length
    return Cut(first, torch.cat(positions), torch.cat(streams), parts[0].head_share, parts)
