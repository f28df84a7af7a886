"""How tensors and JSON become frames, and come out of frames that anybody may have sent.

    token | envelope                                                       | tensors that lie in no shared memory, a frame each
          | {"kind": "message", "head": {...},
          |  "tensors": [["float32", [3, 4]], ...], "segment": [number, fd]}

In shared memory tensors lie one after the other, each at a multiple of ALIGNMENT: no offset is ever sent. Nothing is unpickled.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from plait.replica.transport import Pool
from plait.sync.memory import Mappings, Segment, Segments, Unshared

DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int8, torch.uint8, torch.int32, torch.int64)
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
ALIGNMENT = 64
SMALL = 2**15
"""Bytes: less than these are not worth two messages about shared memory."""
WINDOW = 8
"""Segments that one holder may have; what it is sent beyond them goes by frames."""
MOST_JSON = 2**22
MOST_TENSORS = 2**14
MOST_DIMS = 16
MOST_ELEMENTS = 2**48

CPU = torch.device("cpu")


class Refusal(Exception):
    """What came is turned away. kind: a word of few, for counting and logging; why: for whom it came from."""

    def __init__(self, kind: str, why: str) -> None:
        super().__init__(why)
        self.kind = kind
        self.why = why


class Packer:
    """Copies tensors to where they travel from: the caller may change them as soon as `pack` returns."""

    def __init__(self) -> None:
        self.segments = Segments()
        self._pool = Pool()  # a piece returns by itself once ZeroMQ has sent what lies in it

    def pack(self, head: dict[str, Any], tensors: Sequence[Tensor], holders: Collection[str] = ()) -> list[Any]:
        """An envelope and frames. holders: those who read the tensors in shared memory, or nobody where they travel in frames."""
        envelope: dict[str, Any] = {"kind": "message", "head": head}
        if not tensors:
            return [envelope_of(envelope)]
        if len(tensors) > MOST_TENSORS:
            raise ValueError(f"{len(tensors)} tensors in a message; the most is {MOST_TENSORS}")
        envelope["tensors"] = [[_name(tensor), list(tensor.shape)] for tensor in tensors]
        if not holders:
            described = envelope_of(envelope)
            bytes_N = self._pool.take([_end(tensors)], torch.uint8, CPU)
            return [described, *(part_N.numpy() for part_N in _fill(bytes_N, tensors))]
        segment = self.segments.take(_end(tensors), holders)
        _fill(segment.bytes_N, tensors)
        envelope |= {"segment": _named(segment), "segments": self.segments.numbers}
        return [envelope_of(envelope)]


def nbytes(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def envelope_of(envelope: dict[str, Any]) -> bytes:
    """Raises ValueError where it would be turned away for its length."""
    encoded = json.dumps(envelope, separators=(",", ":")).encode()
    if len(encoded) > MOST_JSON:
        raise ValueError(f"a head of {len(encoded)} bytes; the most is {MOST_JSON}")
    return encoded


def open_envelope(frame: Any) -> dict[str, Any]:
    """Raises Refusal."""
    if len(frame) > MOST_JSON:
        raise Refusal("envelope", f"an envelope of {len(frame)} bytes; the most is {MOST_JSON}")
    try:
        envelope = json.loads(bytes(frame))
    except (ValueError, RecursionError) as error:
        raise Refusal("envelope", "an envelope that is no JSON") from error
    if not isinstance(envelope, dict) or not isinstance(envelope.get("kind"), str):
        raise Refusal("envelope", "an envelope without a kind")
    return envelope


def unpack(envelope: dict[str, Any], frames: Sequence[Any], mappings: Mappings | None) -> tuple[dict[str, Any], list[Tensor], int | None]:
    """The head, the tensors, and the segment in which they lie until it is released, if they lie in one. Raises Refusal."""
    head, described = envelope.get("head"), _described(envelope.get("tensors", []))
    if not isinstance(head, dict):
        raise Refusal("envelope", "a message without a head")
    if "segment" not in envelope:
        return head, _framed(described, frames), None
    match envelope["segment"], envelope.get("segments"):
        case [int(number), int(fd)], list(numbers):
            pass
        case _:
            raise Refusal("memory", "a segment that is no number and file")
    if mappings is None or frames:
        raise Refusal("memory", "shared memory that was not agreed on" if mappings is None else "tensors both in memory and in frames")
    mappings.keep(numbers)
    try:
        return head, _laid(described, mappings.open(number, fd)), number
    except Unshared as error:
        raise Refusal("memory", str(error)) from error


Described = tuple[torch.dtype, list[int], int]
"""dtype, shape, bytes"""


def _described(tensors: Any) -> list[Described]:
    if not isinstance(tensors, list) or len(tensors) > MOST_TENSORS:
        raise Refusal("tensors", f"tensors that are no list of at most {MOST_TENSORS}")
    return [_one_described(tensor) for tensor in tensors]


def _one_described(tensor: Any) -> Described:
    match tensor:
        case [str(name), list(shape)] if name in DTYPES:
            pass
        case _:
            raise Refusal("tensors", f"a tensor that is no dtype and shape; dtypes are {', '.join(DTYPES)}")
    if len(shape) > MOST_DIMS or not all(type(size) is int and 0 <= size <= MOST_ELEMENTS for size in shape):
        raise Refusal("tensors", f"a shape that is not up to {MOST_DIMS} sizes")
    if math.prod(max(1, size) for size in shape) > MOST_ELEMENTS:
        raise Refusal("tensors", f"a tensor of more than {MOST_ELEMENTS} elements")
    return DTYPES[name], shape, math.prod(shape) * DTYPES[name].itemsize


def _framed(described: list[Described], frames: Sequence[Any]) -> list[Tensor]:
    if len(described) != len(frames):
        raise Refusal("tensors", f"{len(described)} tensors in {len(frames)} frames")
    for (dtype, shape, size), frame in zip(described, frames, strict=True):
        if len(frame) != size:
            raise Refusal("tensors", f"{len(frame)} bytes for a tensor of {size}: {NAMES[dtype]} {shape}")
    return [_of_frame(dtype, shape, frame) for (dtype, shape, _), frame in zip(described, frames, strict=True)]


def _of_frame(dtype: torch.dtype, shape: list[int], frame: Any) -> Tensor:
    if not len(frame):
        return torch.empty(shape, dtype=dtype)
    bytes_N = torch.frombuffer(frame.buffer, dtype=torch.uint8)
    if bytes_N.data_ptr() % dtype.itemsize:  # small frames lie anywhere in what ZeroMQ read
        bytes_N = bytes_N.clone()
    return bytes_N.view(dtype).view(shape)


def _laid(described: list[Described], bytes_N: Tensor) -> list[Tensor]:
    tensors, begin = [], 0
    for dtype, shape, size in described:
        if begin + size > len(bytes_N):
            raise Refusal("memory", f"tensors of more than {len(bytes_N)} bytes in a segment of {len(bytes_N)}")
        tensors.append(bytes_N[begin : begin + size].view(dtype).view(shape) if size else torch.empty(shape, dtype=dtype))
        begin = _aligned(begin + size)
    return tensors


def _fill(bytes_N: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copy the tensors to where they lie; returns the bytes of each."""
    parts, begin = [], 0
    for tensor in tensors:
        end = begin + nbytes([tensor])
        if end > begin:
            bytes_N[begin:end].view(tensor.dtype).view(tensor.shape).copy_(tensor.detach())
        parts.append(bytes_N[begin:end])
        begin = _aligned(end)
    return parts


def _end(tensors: Sequence[Tensor]) -> int:
    return sum(_aligned(nbytes([tensor])) for tensor in tensors)


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _name(tensor: Tensor) -> str:
    name = NAMES.get(tensor.dtype)
    if name is None:
        raise TypeError(f"{tensor.dtype} does not travel; these do: {', '.join(NAMES.values())}")
    return name


def _named(segment: Segment) -> list[int]:
    return [segment.number, segment.fd]
