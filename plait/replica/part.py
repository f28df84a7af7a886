"""Parts: where the values that a rank holds stand in the whole tensor.

    whole, dim 0       0 1 2 3 4 5 6 7 8 9 a b          a stack [q | k | v] of 8, 2 and 2 rows
    tensor rank 1 of 2         4 5 6 7   9   b          spans [4, 8), [9, 10), [11, 12)
    then shard 0 of 2          4 5 6                    spans [4, 7)

A part is a list of spans for each dim; cutting one again cuts its local indices. Everything that asks where values belong
reads it: initial values, checkpoints, gathering.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor

Span = tuple[int, int]  # [first, end) in the whole dim


@dataclass(frozen=True)
class Box:
    """A block of the whole, and where it lies in the local tensor."""

    offsets: tuple[int, ...]
    local: tuple[int, ...]
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class Part:
    """`shape` of the whole; `spans` by dim, in the order in which they stand in the local tensor."""

    shape: torch.Size
    spans: tuple[tuple[Span, ...], ...]

    @classmethod
    def whole(cls, shape: torch.Size) -> Part:
        return cls(shape, tuple(((0, size),) for size in shape))

    @property
    def local_shape(self) -> torch.Size:
        return torch.Size(sum(end - first for first, end in spans) for spans in self.spans)

    @property
    def is_whole(self) -> bool:
        return self.local_shape == self.shape

    def cut(self, dim: int, local: list[Span]) -> Part:
        """The part of this part whose indices along `dim` are `local`, spans of the local dim."""
        spans = tuple(span for wanted in local for span in _inside(self.spans[dim], wanted))
        return replace(self, spans=(*self.spans[:dim], spans, *self.spans[dim + 1 :]))

    def boxes(self) -> Iterator[Box]:
        """The blocks that it consists of, empty ones left out."""
        for spans in product(*(_with_starts(spans) for spans in self.spans)):
            sizes = tuple(end - first for _, (first, end) in spans)
            if all(sizes):
                yield Box(tuple(first for _, (first, _) in spans), tuple(start for start, _ in spans), sizes)

    def take(self, whole: Tensor) -> Tensor:
        """The local values, out of those of the whole; a copy, unless everything is taken."""
        for dim, spans in enumerate(self.spans):
            if spans != ((0, self.shape[dim]),):
                pieces = [whole.narrow(dim, first, end - first) for first, end in spans]
                whole = torch.cat(pieces, dim) if pieces else whole.narrow(dim, 0, 0)
        return whole

    def put(self, local: Tensor, whole: Tensor) -> None:
        """Copy local values to where they belong in the whole."""
        for box in self.boxes():
            _block(whole, box.offsets, box.sizes).copy_(_block(local, box.local, box.sizes))


def stacked_spans(parts: tuple[int, ...], size: int, rank: int, ranks: int) -> list[Span]:
    """What rank `rank` of `ranks` holds of a dim of `size`, in which parts of these proportions are stacked: an equal piece of each.

    Raises ValueError where a part cannot be cut so.
    """
    unit, rest = divmod(size, sum(parts))
    if rest or any(part * unit % ranks for part in parts):
        raise ValueError(f"{size} in parts of {list(parts)} cannot be cut into {ranks}")
    spans, first = [], 0
    for part in parts:
        piece = part * unit // ranks
        spans.append((first + rank * piece, first + (rank + 1) * piece))
        first += part * unit
    return spans


def chunk_span(size: int, rank: int, ranks: int) -> Span:
    """What torch.chunk gives rank `rank` of `ranks`: ceil(size / ranks) each, the last ones less or nothing. So FSDP2 cuts."""
    step = -(-size // ranks)
    return min(rank * step, size), min((rank + 1) * step, size)


def _inside(spans: tuple[Span, ...], wanted: Span) -> Iterator[Span]:
    for start, (first, end) in _with_starts(spans):
        low, high = max(first, first + wanted[0] - start), min(end, first + wanted[1] - start)
        if low < high:
            yield low, high


def _with_starts(spans: tuple[Span, ...]) -> Iterator[tuple[int, Span]]:
    """Each span with the local index at which it begins."""
    start = 0
    for first, end in spans:
        yield start, (first, end)
        start += end - first


def _block(tensor: Tensor, offsets: tuple[int, ...], sizes: tuple[int, ...]) -> Tensor:
    for dim, (first, size) in enumerate(zip(offsets, sizes, strict=True)):
        tensor = tensor.narrow(dim, first, size)
    return tensor
