"""Pieces: how a corpus is tokenised a chunk of documents at a time, so that a killed preparation loses one chunk.

    documents --> chunks of about equal size --> a worker each --> 00000042.npz --> ... --> joined to token files

A piece holds a chunk's tokens by split. Its name is the chunk's number, and chunks are cut the same way each time, so
a restarted preparation knows by the names what is done.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from plait.data import labels, manifest, records
from plait.data.chat import ConversationEncoder
from plait.data.chunks import Chunk
from plait.data.labels import Documents, Encoded
from plait.data.parallel import PairEncoder
from plait.data.splits import SPLITS
from plait.data.tokenizer import Tokenizer
from plait.store import durable


@dataclass(frozen=True)
class Done:
    """What a piece holds."""

    documents: int
    tokens: int


def write(
    folder: Path,
    chunk: Chunk,
    tokenizer: Tokenizer,
    encoder: ConversationEncoder | PairEncoder | None = None,
    labelled: Documents | None = None,
) -> Done:
    """Tokenise a chunk into its piece; its records learn how many tokens each document has. encoder, labelled: of documents that are
    conversations or pairs, or have something told of them. Raises OSError, DataError."""
    dtype = token_dtype(tokenizer.vocabulary)
    end = np.array([tokenizer.end_of_text], dtype=dtype)
    told = None if encoder is None else encoder.encode(chunk.texts)
    asked = [] if labelled is None else labelled.encode(chunk.texts, chunk.fields)
    encoded = [each.ids for each in asked] or (_encoded(chunk, tokenizer) if told is None else [ids for ids, _ in told])
    sizes = [len(text.encode()) for text in chunk.texts] if chunk.ids is None else _bytes_of(chunk.ids, tokenizer)
    rows = chunk.records.copy()
    kept = np.flatnonzero(rows["reason"] == records.KEPT)
    rows["tokens"][kept] = [len(each) + 1 for each in encoded]
    arrays: dict[str, Any] = {"about": np.array([len(encoded), sum(map(len, encoded)) + len(encoded)]), "records": rows}
    if labelled is not None:
        arrays["names"] = np.frombuffer(json.dumps(list(labelled.names)).encode(), dtype=np.uint8)
    for home, split in enumerate(SPLITS):
        mine = np.flatnonzero(rows["split"][kept] == home).tolist()
        arrays[split] = np.concatenate([end[:0], *(part for index in mine for part in (end, encoded[index].astype(dtype)))])
        arrays[f"{split}_lengths"] = np.array([len(encoded[index]) + 1 for index in mine], dtype=np.int64)
        arrays[f"{split}_bytes"] = np.array(sum(sizes[index] for index in mine))
        arrays[f"{split}_numbers"] = chunk.numbers[mine]
        if told is not None:
            none = np.zeros(1, dtype=np.bool_)
            arrays[f"{split}_learned"] = np.concatenate([none[:0], *(part for index in mine for part in (none, told[index][1]))])
        if labelled is not None:
            arrays |= _told(split, asked, mine, rows[kept], labelled)
    with durable.writing(path_of(folder, chunk.number)) as file:
        np.savez(file, **arrays)
    return Done(*map(int, arrays["about"]))


def _told(split: str, asked: list[Encoded], mine: list[int], rows: np.ndarray, labelled: Documents) -> dict[str, np.ndarray]:
    """What is told of a split's documents, one after the other, and in which file and place the first of each label stands."""
    lead = [labels.NONE] if labelled.of_tokens else []  # of the token that begins a document
    parts = [np.append(lead, asked[index].told).astype(np.int32) for index in mine]
    whole = np.concatenate([np.zeros(0, np.int32), *parts])
    homes = np.repeat(mine, [len(part) for part in parts]).astype(np.int64)
    places = [[number, *_place(rows[homes[whole == number][0]])] for number in range(len(labelled.names)) if (whole == number).any()]
    return {f"{split}_told": whole, f"{split}_first": np.array(places, dtype=np.int64).reshape(-1, 3)}


def _place(row: np.void) -> tuple[int, int]:
    return int(row["file"]), int(row["place"])


def _bytes_of(documents: list[np.ndarray], tokenizer: Tokenizer) -> list[int]:
    """Bytes of text that tokens stand for."""
    sizes = np.array([len(piece) for piece in tokenizer.pieces()])
    return [int(sizes[ids].sum()) for ids in documents]


def _encoded(chunk: Chunk, tokenizer: Tokenizer) -> list[np.ndarray]:
    return tokenizer.encode(chunk.texts) if chunk.ids is None else chunk.ids


def done(folder: Path, number: int) -> Done | None:
    """What a chunk's piece holds, when it stands."""
    path = path_of(folder, number)
    if not path.exists():
        return None
    with np.load(path, allow_pickle=False) as piece:
        return Done(*map(int, piece["about"]))


def path_of(folder: Path, number: int) -> Path:
    return folder / f"{number:08}.npz"


def token_dtype(vocabulary: int) -> np.dtype:
    return np.dtype("<u2") if vocabulary <= 1 << 16 else np.dtype("<u4")


def join(
    folder: Path, numbers: list[int], split: str, index: int, target: Path, vocabulary: int, learned: bool = False
) -> tuple[manifest.Part, dict[str, Any]]:
    """Pieces of one source joined to its token file of a split, with starts and counts; returns what the manifest says of them. learned:
    what of it is learned is told token by token, and counted alone."""
    lengths = np.concatenate([np.zeros(0, np.int64), *_each(folder, numbers, f"{split}_lengths")])
    total, text_bytes = int(lengths.sum()), int(sum(_each(folder, numbers, f"{split}_bytes")))
    counts = np.zeros(vocabulary, dtype=np.int64)
    names = [name(split, index) for name in (manifest.tokens_name, manifest.starts_name, manifest.counts_name)]
    with durable.writing(target / names[0]) as file:
        written = _Hashed(file, token_dtype(vocabulary), total)
        for number in numbers:
            (part,) = _each(folder, [number], split)
            counted = part[next(_each(folder, [number], f"{split}_learned"))] if learned else part
            counts += np.bincount(counted, minlength=vocabulary)
            written.append(part)
    stored = {names[0]: written.stored()}
    if learned:
        whole = np.concatenate([np.zeros(0, np.bool_), *_each(folder, numbers, f"{split}_learned")])
        stored[manifest.learned_name(split, index)] = store(target / manifest.learned_name(split, index), whole)
    for name, array in ((names[1], np.cumsum(lengths) - lengths), (names[2], counts)):
        stored[name] = store(target / name, array.astype("<i8"))
    return manifest.Part(tokens=total, documents=len(lengths), text_bytes=text_bytes), stored


def join_told(
    folder: Path, numbers: list[int], split: str, index: int, target: Path, names: list[str], width: int
) -> tuple[str, manifest.StoredFile]:
    """What is told of one source's documents in a split, labels by their place in `names`; several numbers of each make a row."""
    place = {name: number for number, name in enumerate(names)}
    parts = [np.zeros(0, np.int32)]
    for number in numbers:
        own = np.array([place[name] for name in names_of(folder, number)], dtype=np.int32)
        [told] = _each(folder, [number], f"{split}_told")
        parts.append(np.where(told >= 0, own[told.clip(0)], told) if len(own) else told)
    name = manifest.told_name(split, index)
    whole = np.concatenate(parts)
    return name, store(target / name, whole.reshape(-1, width) if width > 1 else whole)


def names_of(folder: Path, number: int) -> list[str]:
    """The labels of a piece, in the order of its numbers."""
    [names] = _each(folder, [number], "names")
    found: list[str] = json.loads(names.tobytes())
    return found


def labels_of(folder: Path, numbers: list[int], files: list[str]) -> list[labels.Label]:
    """All labels that pieces tell of, counted. files: paths by number in a record."""
    tally = labels.Tally()
    for number in numbers:
        for split in SPLITS:
            told, first = (next(_each(folder, [number], f"{split}_{what}")) for what in ("told", "first"))
            places = {int(label): f"{files[file]}:{place}" for label, file, place in first}
            tally.take(names_of(folder, number), split, told, places)
    return tally.sorted()


def join_records(folder: Path, numbers: list[int], target: Path) -> manifest.StoredFile:
    """The records of all pieces, one after the other."""
    total = sum(len(part) for part in _each(folder, numbers, "records"))
    with durable.writing(target / records.DOCUMENTS) as file:
        written = _Hashed(file, records.RECORD, total)
        for part in _each(folder, numbers, "records"):
            written.append(part)
    return written.stored()


def joined_numbers(folder: Path, numbers: list[int], split: str) -> np.ndarray:
    """The numeric fields of a split's documents, float64 [documents, fields]."""
    return np.concatenate(list(_each(folder, numbers, f"{split}_numbers")))


def store(path: Path, array: np.ndarray) -> manifest.StoredFile:
    """An array in a .npy file."""
    with durable.writing(path) as file:
        written = _Hashed(file, array.dtype, array.shape)
        written.append(array)
    return written.stored()


def _each(folder: Path, numbers: list[int], name: str) -> Iterator[np.ndarray]:
    for number in numbers:
        with np.load(path_of(folder, number), allow_pickle=False) as piece:
            yield piece[name]


class _Hashed:
    """A .npy file written in parts, with its checksum and size told at the end."""

    def __init__(self, file: BinaryIO, dtype: np.dtype, shape: int | tuple[int, ...]) -> None:
        self._file = file
        self._dtype = dtype
        header = {
            "descr": np.lib.format.dtype_to_descr(dtype),
            "fortran_order": False,
            "shape": (shape,) if isinstance(shape, int) else shape,
        }
        start = io.BytesIO()
        np.lib.format.write_array_header_1_0(start, header)
        self._sha256 = hashlib.sha256(start.getvalue())
        self._bytes = file.write(start.getvalue())

    def append(self, part: np.ndarray) -> None:
        content = np.ascontiguousarray(part, dtype=self._dtype).tobytes()
        self._bytes += self._file.write(content)
        self._sha256.update(content)

    def stored(self) -> manifest.StoredFile:
        return manifest.StoredFile(bytes=self._bytes, sha256=self._sha256.hexdigest())
