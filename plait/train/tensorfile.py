"""safetensors files, read box by box and written block by block: a file of any size passes through a few megabytes, without torch.

    8 bytes, the header's length │ header: JSON, name -> dtype, shape, byte range │ values, without gaps

The safetensors library writes what is in memory as a whole and maps what it reads; this does neither. Values are numpy's; those that numpy
lacks, bfloat16 and eight-bit floats, are held as their bits. Source: the format's description in the library's documentation.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np

from plait.errors import CheckpointError

BLOCK = 8 << 20
"""Bytes at once: enough that the interpreter's lock is rarely asked for, few enough to stay in a cache for the checksum."""
DTYPES: dict[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": np.uint16,
    "F8_E4M3": np.uint8,
    "F8_E5M2": np.uint8,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
FLOATS = ("F64", "F32", "F16", "BF16")
_STRIP = 64  # columns at once: four lines of the cache, and of usual matrices as many rows as a second-level cache holds
_MOST_HEADER = 100 << 20  # the library's own limit


class Kind(NamedTuple):
    """What is stored under a name: a code of DTYPES, and the shape."""

    code: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * int(np.dtype(DTYPES[self.code]).itemsize)


@dataclass(frozen=True)
class Written:
    """bytes of the whole file, and its sha256."""

    bytes: int
    sha256: str


class TensorFile:
    """A safetensors file that is open for reading. Use as a context manager."""

    def __init__(self, path: Path) -> None:
        """Raises CheckpointError: missing, cut short, no safetensors file, a dtype that is none of DTYPES."""
        self.path = path
        try:
            self._file = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
        try:
            self.kinds, self._starts = _read_header(path, self._file)
        except BaseException:
            os.close(self._file)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        os.close(self._file)

    def read(self, name: str, low: Sequence[int], high: Sequence[int]) -> np.ndarray:
        """The box [low, high) of a tensor."""
        kind = self.kinds[name]
        box = np.empty([end - first for first, end in zip(low, high, strict=True)], DTYPES[kind.code])
        self._fill(box, self._starts[name], kind.shape, low)
        return box

    def _fill(self, box: np.ndarray, start: int, shape: Sequence[int], low: Sequence[int]) -> None:
        """Where all dims but the first are whole, the box is one piece of the file; else its rows are boxes of their own."""
        if not box.size:
            return
        row = math.prod(shape[1:]) * box.itemsize
        if tuple(box.shape[1:]) == tuple(shape[1:]):
            self._read_into(box, start + (low[0] * row if low else 0))
            return
        for place, inner in enumerate(box):
            self._fill(inner, start + (low[0] + place) * row, shape[1:], low[1:])

    def _read_into(self, box: np.ndarray, start: int) -> None:
        waiting = box.reshape(-1).view(np.uint8).data
        while waiting:
            got = os.preadv(self._file, [waiting], start)
            if not got:
                raise CheckpointError(f"{self.path}: is cut short")
            start += got
            waiting = waiting[got:]


def write(
    path: Path, kinds: Mapping[str, Kind], blocks: Callable[[str], Iterable[np.ndarray]], about: Mapping[str, str] | None = None
) -> int:
    """Write tensors in the order of `kinds`, each from the blocks of its values, and bring the file to disk; returns its bytes.

    Raises OSError.
    """
    return _stream(path, _bytes_of(kinds, blocks, about))


def write_hashed(path: Path, kinds: Mapping[str, Kind], blocks: Callable[[str], Iterable[np.ndarray]]) -> Written:
    """The same with a checksum, which is taken of one block while the next is being read and written."""
    digest = hashlib.sha256()
    with ThreadPoolExecutor(1) as hashing:
        size = _stream(path, _hashed(_bytes_of(kinds, blocks, None), digest.update, hashing), at_once=True)
    return Written(size, digest.hexdigest())


def transposed(values: np.ndarray) -> np.ndarray:
    """A matrix turned over, in memory row by row: some columns at a time are brought together first, so that what is read lies side by side
    and what is written is read out of a core's cache."""
    turned = np.empty(values.shape[::-1], values.dtype)
    for first in range(0, len(turned), _STRIP):
        turned[first : first + _STRIP] = np.ascontiguousarray(values[:, first : first + _STRIP]).T
    return turned


def header(kinds: Mapping[str, Kind], about: Mapping[str, str] | None = None) -> bytes:
    """The header of a file with these tensors, its length before it."""
    entries: dict[str, Any] = {} if about is None else {"__metadata__": dict(about)}
    end = 0
    for name, kind in kinds.items():
        first, end = end, end + kind.bytes
        entries[name] = {"dtype": kind.code, "shape": list(kind.shape), "data_offsets": [first, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def cast(values: np.ndarray, code: str, wanted: str) -> np.ndarray:
    """Floating-point values of one dtype as another, rounded to the nearest; the values themselves where the two are one."""
    if code == wanted:
        return values
    if code == "BF16":
        return cast((values.astype(np.uint32) << 16).view(np.float32), "F32", wanted)
    if wanted == "BF16":
        return _bfloat16(values.astype(np.float32))
    with np.errstate(over="ignore"):  # what is too large becomes infinite, as in torch
        return values.astype(DTYPES[wanted])


def _bfloat16(values: np.ndarray) -> np.ndarray:
    """The upper half of each value's bits, rounded to the nearest, of two to the even one; what is no number stays none."""
    bits = values.view(np.uint32)
    rounded = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)


def _bytes_of(
    kinds: Mapping[str, Kind], blocks: Callable[[str], Iterable[np.ndarray]], about: Mapping[str, str] | None
) -> Iterator[memoryview]:
    yield memoryview(header(kinds, about))
    for name, kind in kinds.items():
        left = kind.bytes
        for block in blocks(name):
            values = np.ascontiguousarray(block).reshape(-1).view(np.uint8)
            left -= len(values)
            yield values.data
        assert not left, (name, left)


def _hashed(blocks: Iterator[memoryview], update: Callable[[memoryview], None], hashing: ThreadPoolExecutor) -> Iterator[memoryview]:
    """The blocks; each has been told to `update` before the next but one is made."""
    last = hashing.submit(update, memoryview(b""))
    for block in blocks:
        last.result()
        last = hashing.submit(update, block)
        yield block
    last.result()


def _stream(path: Path, blocks: Iterator[memoryview], at_once: bool = False) -> int:
    """at_once: the disk is begun on while the next blocks are made, not at the end."""
    size = 0
    with open(path, "wb", buffering=0) as stream:
        for block in blocks:
            written = _write_all(stream, block)
            if at_once and hasattr(os, "posix_fadvise"):
                os.posix_fadvise(stream.fileno(), size, written, os.POSIX_FADV_DONTNEED)  # Linux begins to write what it is to forget
            size += written
        os.fsync(stream.fileno())
    return size


def _write_all(stream: Any, block: memoryview) -> int:
    written = 0
    while written < len(block):
        written += stream.write(block[written:])
    return written


def _read_header(path: Path, file: int) -> tuple[dict[str, Kind], dict[str, int]]:
    """What is there, and where in the file each tensor begins."""
    try:
        length = int.from_bytes(os.pread(file, 8, 0), "little")
        if not 0 < length <= _MOST_HEADER:
            raise ValueError(f"its header would be {length} bytes long")
        entries: dict[str, Any] = json.loads(os.pread(file, length, 8))
        entries.pop("__metadata__", None)
        kinds = {name: Kind(entry["dtype"], tuple(entry["shape"])) for name, entry in entries.items()}
        starts = {name: 8 + length + entry["data_offsets"][0] for name, entry in entries.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: is no safetensors file: {error}") from None
    for name, kind in kinds.items():
        if kind.code not in DTYPES:
            raise CheckpointError(f"{path}: {name} is stored as {kind.code}, which plait does not read")
    size = os.fstat(file).st_size
    if any(starts[name] + kind.bytes > size for name, kind in kinds.items()):
        raise CheckpointError(f"{path}: is cut short: {size} bytes are there")
    return kinds, starts
