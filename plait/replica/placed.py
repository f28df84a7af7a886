"""A tensor of which this rank holds a part, as torch.distributed.checkpoint's planners read it.

A DTensor says the same of even cuts along one dim; a part may be several blocks: rows of each matrix of a stack, cut again by another
axis. Each block is saved and loaded by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from plait.replica.part import Box, Part

if TYPE_CHECKING:
    from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex
    from torch.distributed.checkpoint.planner import WriteItem


@dataclass(frozen=True)
class Placed:
    """`local` values, which are `part` of the whole."""

    local: Tensor
    part: Part

    @property
    def shape(self) -> torch.Size:
        return self.part.shape

    @property
    def dtype(self) -> torch.dtype:
        return self.local.dtype

    def size(self) -> torch.Size:
        return self.part.shape

    def to_local(self) -> Tensor:
        return self.local

    def block(self, offsets: torch.Size, local: Tensor | None = None) -> Tensor:
        """The view of the block that begins at `offsets` of the whole, in `local` (its own, or a copy of it)."""
        box = next(box for box in self.part.boxes() if box.offsets == tuple(offsets))
        view = self.local if local is None else local
        for dim, (first, size) in enumerate(zip(box.local, box.sizes, strict=True)):
            view = view.narrow(dim, first, size)
        return view

    # What torch.distributed.checkpoint asks of a tensor that is spread: torch.distributed._checkpointable._Checkpointable.

    def __create_write_items__(self, fqn: str, _: Any) -> list[WriteItem]:
        from torch.distributed.checkpoint.metadata import MetadataIndex, TensorProperties
        from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType

        properties = TensorProperties.create_from_tensor(self.local)
        return [
            WriteItem(
                MetadataIndex(fqn, torch.Size(box.offsets)),
                WriteItemType.SHARD,
                tensor_data=TensorWriteData(_chunk(box), properties, self.part.shape),
            )
            for box in self.part.boxes()
        ]

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        return [_chunk(box) for box in self.part.boxes()]

    def __get_tensor_shard__(self, index: MetadataIndex) -> Tensor:
        assert index.offset is not None
        return self.block(index.offset)


def placed(value: Any, part: Part) -> Any:
    """A value of a parameter, or of its optimizer state, for a checkpoint: Placed where it is a part, and as it is otherwise."""
    is_cut = isinstance(value, Tensor) and not part.is_whole and value.shape == part.local_shape
    return Placed(value.detach(), part) if is_cut else value


def local_values(value: Any) -> Any:
    """What `placed` was given."""
    return value.local if isinstance(value, Placed) else value


def _chunk(box: Box) -> ChunkStorageMetadata:
    from torch.distributed.checkpoint.metadata import ChunkStorageMetadata

    return ChunkStorageMetadata(torch.Size(box.offsets), torch.Size(box.sizes))
