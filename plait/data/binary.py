"""Token files of others, read as documents of tokens: nanoGPT's and llm.c's .bin, Megatron-LM's .bin and .idx.

    nanoGPT           tokens, uint16, or uint32 where the vocabulary is larger; an end of text after each document
    llm.c, nanochat   256 int32 before them: a magic number, a version, how many tokens; an end of text before each document
    Megatron-LM       the .idx beside it tells sizes, places and documents; an end of text after each, or none

A document here is what stands between ends of text, without them: whatever writes token files puts them where they belong.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from plait.data.broken import Unusable

_MAGIC: dict[int, np.dtype] = {20240520: np.dtype("<u2"), 20240801: np.dtype("<u4")}
"""Of llm.c: GPT-2's tokens and Llama 3's."""
_HEADER = 256
_INDEX = b"MMIDIDX\x00\x00"
_KINDS = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
_BLOCK = 1 << 22


@dataclass(frozen=True)
class Tokens:
    """One document. place: number of its first token in the file."""

    ids: np.ndarray
    place: int


def documents(path: Path, end_of_text: int, vocabulary: int) -> Iterator[Tokens | Unusable]:
    """The documents of a token file, in order; those of no token are left out."""
    try:
        found = _indexed(path) if path.with_suffix(".idx").exists() else _cut(_plain(path, vocabulary), end_of_text)
        for place, ids in found:
            ids = ids[:-1] if len(ids) and ids[-1] == end_of_text else ids
            if not len(ids):
                continue
            if int(ids.min()) < 0 or int(ids.max()) >= vocabulary:
                strange = int(ids.max()) if int(ids.max()) >= vocabulary else int(ids.min())
                why = f"holds token {strange:,}, and data.tokenizer has {vocabulary:,}; is it the tokenizer that the file was made with?"
                yield Unusable(f"{path}, token {place}", "no token", why)
            else:
                yield Tokens(ids.astype(np.uint32), place)
    except Unusable as unusable:
        yield unusable


def _plain(path: Path, vocabulary: int) -> np.ndarray:
    """The tokens of a .bin without an index, memory-mapped. Raises Unusable: cut short."""
    size = path.stat().st_size
    if not size:
        raise Unusable(str(path), "empty file", "is empty: it has no bytes; was it written whole?")
    head = np.fromfile(path, "<i4", min(_HEADER, size // 4))
    if len(head) == _HEADER and int(head[0]) in _MAGIC:
        dtype, needed = _MAGIC[int(head[0])], 4 * _HEADER + int(head[2]) * _MAGIC[int(head[0])].itemsize
        if size < needed:
            raise _short(path, needed, size)
        told: np.ndarray = np.memmap(path, dtype, "r", 4 * _HEADER, (int(head[2]),))
        return told
    dtype = np.dtype("<u2") if vocabulary <= 1 << 16 else np.dtype("<u4")
    if size % dtype.itemsize:
        why = f"has {size:,} bytes, which are no whole tokens of {dtype.itemsize}; the file was cut short"
        raise Unusable(str(path), "cut short", why)
    tokens: np.ndarray = np.memmap(path, dtype, "r")
    return tokens


def _cut(tokens: np.ndarray, end_of_text: int) -> Iterator[tuple[int, np.ndarray]]:
    """What stands between ends of text, with its place; found a block at a time."""
    begin = 0
    for first in range(0, len(tokens), _BLOCK):
        for end in (np.flatnonzero(tokens[first : first + _BLOCK] == end_of_text) + first).tolist():
            yield begin, tokens[begin:end]
            begin = end + 1
    yield begin, tokens[begin:]


def _indexed(path: Path) -> Iterator[tuple[int, np.ndarray]]:
    """Megatron-LM's documents, each of one or more sequences. Raises Unusable: no index, or files that do not fit each other."""
    index = path.with_suffix(".idx")
    sizes, pointers, bounds, dtype = _read_index(index)
    needed = int((pointers + sizes.astype(np.int64) * dtype.itemsize).max(initial=0))
    if path.stat().st_size < needed:
        raise _short(path, needed, path.stat().st_size)
    content = np.memmap(path, np.uint8, "r") if needed else np.zeros(0, np.uint8)
    for first, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        spans = zip(pointers[first:end].tolist(), sizes[first:end].tolist(), strict=True)
        parts = [content[at : at + size * dtype.itemsize] for at, size in spans]
        place = int(pointers[first]) // dtype.itemsize if end > first else 0
        yield place, np.concatenate([np.zeros(0, np.uint8), *parts]).view(dtype)


def _read_index(index: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.dtype]:
    """Tokens of each sequence, where it begins in bytes, the sequence that each document begins with, and the kind of tokens."""
    content = index.read_bytes()
    if not content.startswith(_INDEX) or len(content) < 34:
        raise Unusable(str(index), "no index", f"is no index of Megatron-LM: it does not begin with {_INDEX[:7].decode()}")
    version, kind, sequences, documents_ = struct.unpack_from("<QBQQ", content, len(_INDEX))
    if version != 1 or kind not in _KINDS:
        raise Unusable(str(index), "no index", f"is an index of version {version} and kind {kind}; version 1 and whole numbers are read")
    if len(content) < 34 + 12 * sequences + 8 * documents_:
        raise _short(index, 34 + 12 * sequences + 8 * documents_, len(content))
    sizes = np.frombuffer(content, "<i4", sequences, 34)
    pointers = np.frombuffer(content, "<i8", sequences, 34 + 4 * sequences)
    return sizes, pointers, np.frombuffer(content, "<i8", documents_, 34 + 12 * sequences), np.dtype(_KINDS[kind])


def _short(path: Path, needed: int, size: int) -> Unusable:
    return Unusable(str(path), "cut short", f"has {size:,} bytes, and {needed:,} are told of; the file was cut short")
