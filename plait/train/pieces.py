"""Pieces: the safetensors files of a checkpoint, written and read through torch.distributed.checkpoint's planners.

torch's planners decide which rank writes which box of which tensor, and, in loading, which stored boxes overlap the boxes that a
rank holds: that is what lets a checkpoint be loaded in any layout. Its stock storage keeps the plan in a pickle, which can run code
when it is opened; here the plan is the JSON manifest and the values are safetensors.

Importing torch.distributed.checkpoint takes about half as long as importing torch: checkpoint.py imports this file when it is first needed.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem, SavePlan, SavePlanner, WriteItem
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from plait.errors import CheckpointError
from plait.ledger.progress import progress
from plait.replica.placed import Placed
from plait.train import manifest, tensorfile
from plait.train.manifest import Chunk, Manifest, Piece, TensorEntry
from plait.train.tensorfile import Kind

PIECE_BYTES = 256 << 20
_WRITE = 8 << 20  # big enough that the interpreter's lock is rarely asked for, small enough to stay in a cache for the checksum
_CODES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}

# torch warns at each save and load without a process group; one process needs none.
warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)


class StagedPlanner(DefaultSavePlanner):
    """Plans by the live tensors' shapes and placements; the values are the staged copies of this rank's local parts."""

    def __init__(self, live: dict[str, Any], staged: dict[str, Tensor]) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self._live, self._staged = live, staged

    def resolve_data(self, write_item: WriteItem) -> Tensor:
        index = write_item.index
        staged, live = self._staged[index.fqn], self._live[index.fqn]
        if not isinstance(live, Placed):
            return staged
        assert index.offset is not None
        return live.block(index.offset, staged)

    def must_be_finite(self, name: str) -> bool:
        """Of all but a model's buffers, where an infinity may be meant, in a mask."""
        live = self._live[name]
        return not name.startswith("model.") or isinstance(live, Placed) or live.requires_grad


class PlacedPlanner(DefaultLoadPlanner):
    """Finds the block of a Placed tensor that a box is loaded into."""

    def __init__(self) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)

    def set_up_planner(self, state_dict: dict[str, Any], metadata: Metadata | None = None, is_coordinator: bool = False) -> None:
        # The default one replaces values of types that it does not know.
        super().set_up_planner({}, metadata, is_coordinator)
        self.state_dict = self.original_state_dict = state_dict

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        found = self.state_dict[index.fqn]
        if isinstance(found, Placed):
            assert index.offset is not None
            return found.block(index.offset)
        return super().lookup_tensor(index)


@dataclass(frozen=True)
class Stored:
    """Where a box went: its piece file, its name inside, and the file's size and checksum."""

    file: str
    key: str
    piece: Piece


class PieceWriter(StorageWriter):
    """Writes one checkpoint: each rank its pieces, the coordinator the manifest over all of them.

    `partial` is the folder being written, on the coordinator; `written` the manifest and final path, once complete.
    """

    def __init__(self, folder: Path, step: int, about: dict[str, Any], scalars: dict[str, Any], piece_bytes: int = PIECE_BYTES) -> None:
        self._folder, self._step, self._about, self._scalars = folder, step, about, scalars
        self._piece_bytes = piece_bytes
        self.partial: Path | None = None
        self.written: tuple[Manifest, Path] | None = None

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """One object writes one checkpoint."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """The folder is made with the global plan."""

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """Leave out the empty shares that an uneven cut gives the last ranks: they hold nothing, and share their neighbour's offsets."""
        return replace(plan, items=[item for item in plan.items if not _is_empty_share(item)])

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        self.partial = manifest.partial_folder(self._folder, self._step)
        return [replace(plan, storage_data=(str(self.partial), rank)) for rank, plan in enumerate(plans)]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        assert isinstance(planner, StagedPlanner)
        folder, rank = plan.storage_data
        results: list[WriteResult] = []
        for number, items in enumerate(_batches(plan.items, self._piece_bytes)):
            file = f"piece-{rank:04d}-{number:03d}.safetensors"
            tensors = {_key(item): planner.resolve_data(item) for item in items}
            _check_finite({key: tensors[key] for item in items if planner.must_be_finite(item.index.fqn) for key in [_key(item)]})
            piece = write_piece(Path(folder) / file, tensors)
            results += [WriteResult(item.index, _bytes_of(item), Stored(file, _key(item), piece)) for item in items]
        manifest.sync_folder(Path(folder))
        done: Future[list[WriteResult]] = Future()
        done.set_result(results)
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        assert self.partial is not None
        stored = {result.index: result.storage_data for rank in results for result in rank}
        tensors = {path: _entry(path, found, stored) for path, found in sorted(metadata.state_dict_metadata.items())}
        pieces = {place.file: place.piece for place in stored.values()}
        whole = Manifest(self._step, self._about, self._scalars, tensors, dict(sorted(pieces.items())))
        self.written = whole, manifest.write(self.partial, whole)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return False


class PieceReader(StorageReader):
    """Reads the boxes that this rank's tensors overlap, after the checksums of the files that hold them."""

    def __init__(self, path: Path, whole: Manifest) -> None:
        self._path, self._manifest = path, whole
        self._chunks = {MetadataIndex(name, chunk.offsets): chunk for name, entry in whole.tensors.items() for chunk in entry.chunks}

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """One object reads one checkpoint."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return Metadata({path: _metadata(entry) for path, entry in self._manifest.tensors.items()})

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Everything needed is in the manifest."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """Every file that the plan reads is verified before the first value is copied. Raises CheckpointError."""
        manifest.verify(self._path, {self._chunks[item.storage_index].piece for item in plan.items})
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        by_file: dict[str, list[ReadItem]] = defaultdict(list)
        for item in plan.items:
            by_file[self._chunks[item.storage_index].piece].append(item)
        for file, items in sorted(by_file.items()):
            with safe_open(self._path / file, framework="pt") as piece:
                for item in items:
                    progress(f"reads {self._chunks[item.storage_index].key}")
                    box = piece.get_tensor(self._chunks[item.storage_index].key)
                    _copy(box, item, planner)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return False


def write_piece(file: Path, tensors: dict[str, Tensor]) -> Piece:
    """Write CPU tensors as one safetensors file and bring it to disk, hashing on the way. Raises OSError, TypeError.

    Format: 8 bytes, the header's length; the header, JSON of dtype, shape and byte range by name; the values, without gaps.
    """
    order = sorted(tensors, key=lambda key: (-tensors[key].element_size(), key))  # widest first: every tensor is aligned
    header = _header({key: tensors[key] for key in order})
    digest, size = hashlib.sha256(), 0
    with open(file, "wb", buffering=0) as stream:
        for block in (header, *(block for key in order for block in _blocks(tensors[key]))):
            digest.update(block)
            size += _write_all(stream, block)
        os.fsync(stream.fileno())
    return Piece(size, digest.hexdigest())


def _check_finite(tensors: dict[str, Tensor]) -> None:
    """A state that is not finite is no state to go on from. Raises CheckpointError."""
    for key, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.numel() and not all(map(torch.isfinite, torch.aminmax(_comparable(tensor)))):
            raise CheckpointError(f"{key} is not finite; a run is not to go on from it")


def _comparable(tensor: Tensor) -> Tensor:
    """Values of 8 bits have no order in torch."""
    return tensor if tensor.element_size() > 1 else tensor.float()


def _header(tensors: dict[str, Tensor]) -> memoryview:
    for key, tensor in tensors.items():
        if tensor.dtype not in _CODES:
            raise TypeError(f"{key}: {tensor.dtype} has no place in a safetensors file")
    return memoryview(tensorfile.header({key: Kind(_CODES[tensor.dtype], tuple(tensor.shape)) for key, tensor in tensors.items()}))


def _blocks(tensor: Tensor) -> Iterator[memoryview]:
    values = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data
    for first in range(0, len(values), _WRITE):
        yield values[first : first + _WRITE]


def _write_all(stream: Any, block: memoryview) -> int:
    written = 0
    while written < len(block):
        written += stream.write(block[written:])
    return written


def _batches(items: list[WriteItem], limit: int) -> Iterator[list[WriteItem]]:
    """Items in their order, cut into files of at most `limit` bytes; what is larger alone gets a file of its own."""
    batch: list[WriteItem] = []
    size = 0
    for item in items:
        if batch and size + _bytes_of(item) > limit:
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += _bytes_of(item)
    if batch:
        yield batch


def _bytes_of(item: WriteItem) -> int:
    assert item.tensor_data is not None
    return item.tensor_data.chunk.sizes.numel() * item.tensor_data.properties.dtype.itemsize


def _is_empty_share(item: WriteItem) -> bool:
    assert item.tensor_data is not None
    return item.tensor_data.chunk.sizes.numel() == 0 and item.tensor_data.size.numel() > 0


def _key(item: WriteItem) -> str:
    """A whole tensor keeps its path, so that any reader of safetensors finds it; a part says where it begins."""
    assert item.tensor_data is not None
    if item.tensor_data.chunk.sizes == item.tensor_data.size:
        return item.index.fqn
    return f"{item.index.fqn}@{','.join(map(str, item.tensor_data.chunk.offsets))}"


def _entry(path: str, found: Any, stored: dict[MetadataIndex, Stored]) -> TensorEntry:
    chunks = []
    for chunk in found.chunks:
        place = stored[MetadataIndex(path, chunk.offsets)]
        chunks.append(Chunk(list(chunk.offsets), list(chunk.sizes), place.file, place.key))
    return TensorEntry(str(found.properties.dtype).removeprefix("torch."), list(found.size), chunks)


def _metadata(entry: TensorEntry) -> TensorStorageMetadata:
    dtype = next(dtype for dtype in _CODES if str(dtype) == f"torch.{entry.dtype}")
    chunks = [ChunkStorageMetadata(torch.Size(chunk.offsets), torch.Size(chunk.sizes)) for chunk in entry.chunks]
    return TensorStorageMetadata(TensorProperties(dtype=dtype), torch.Size(entry.shape), chunks)


def _copy(box: Tensor, item: ReadItem, planner: LoadPlanner) -> None:
    """The part of a stored box that the plan asks for, into its place in this rank's tensor."""
    for dim, (first, length) in enumerate(zip(item.storage_offsets, item.lengths, strict=True)):
        box = box.narrow(dim, first, length)
    target = planner.resolve_tensor(item).detach()
    target.copy_(box)
    planner.commit_tensor(item, target)
