"""Rows that ranks share: each holds one of [ranks, N] and all need every one, or each holds all and needs one of the sum.

    gather_rows    . x .      a x c        sum_rows    x0 x1 x2        Σx1
                   (rank 1)                            (rank 1)

Through gloo both are sent directly, rank to rank: its own all-gather and reduce-scatter take 1.5 to 3.3 times as long between the
processes of one host (docs/shard.md). What they need meanwhile comes from a pool, so that a step allocates nothing.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed
from torch import Tensor
from torch.distributed import ProcessGroup

# torch 2.13 renamed them; the older names warn there.
all_gather: Any = getattr(torch.distributed, "all_gather_single", None) or torch.distributed.all_gather_into_tensor
reduce_scatter: Any = getattr(torch.distributed, "reduce_scatter_single", None) or torch.distributed.reduce_scatter_tensor


class Pool:
    """Memory that is never given back: addresses stay, and so does the resident memory.

    What was handed out returns by itself when the last tensor over it is gone. On a GPU torch's own allocator does as much.
    """

    def __init__(self) -> None:
        self._pieces: list[_Piece] = []

    def take(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        """A contiguous tensor of unknown values; on the CPU from the smallest free piece that fits."""
        if device.type != "cpu":
            return torch.empty(*shape, dtype=dtype, device=device)
        size = math.prod(shape) * dtype.itemsize
        fitting = [piece for piece in self._pieces if piece.free and piece.size >= size]
        if not fitting:
            fitting.append(_Piece(size))
            self._pieces += fitting
        return min(fitting, key=lambda piece: piece.size).take(size).view(dtype).view(*shape)

    @property
    def size(self) -> int:
        """Bytes of all pieces."""
        return sum(piece.size for piece in self._pieces)


POOL = Pool()
"""This process's: all that ranks of a replica send one another lies in it."""


def gather_rows(rows_RN: Tensor, group: ProcessGroup) -> None:
    """Fill the rows of other ranks, in place; this rank's is there already."""
    rank = group.rank()
    if rows_RN.device.type != "cpu":
        all_gather(rows_RN.view(-1), rows_RN[rank], group=group)
        return
    others = [other for other in range(group.size()) if other != rank]
    sent = [torch.distributed.isend(rows_RN[rank], group=group, group_dst=other) for other in others]
    received = [torch.distributed.irecv(rows_RN[other], group=group, group_src=other) for other in others]
    for work in (*sent, *received):
        assert work is not None
        work.wait()


def sum_rows(rows_RN: Tensor, own_N: Tensor, group: ProcessGroup, pool: Pool) -> None:
    """Write this rank's row, summed over the ranks in their order, to `own_N`."""
    if rows_RN.device.type != "cpu":
        reduce_scatter(own_N, rows_RN.view(-1), group=group)
        return
    parts_RN = pool.take(rows_RN.shape, rows_RN.dtype, rows_RN.device)
    torch.distributed.all_to_all_single(parts_RN, rows_RN, group=group)
    torch.sum(parts_RN, 0, out=own_N)


class _Piece:
    def __init__(self, size: int) -> None:
        self.size = size
        self._memory = torch.empty(size, dtype=torch.uint8)
        self._taken: weakref.ref[np.ndarray] | None = None

    @property
    def free(self) -> bool:
        return self._taken is None or self._taken() is None

    def take(self, size: int) -> Tensor:
        # The storage of the tensor holds this array, and nothing else does: it lives as long as any view of the tensor.
        window = self._memory.numpy()[:size]
        self._taken = weakref.ref(window)
        return torch.from_numpy(window)
