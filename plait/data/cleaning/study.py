"""The study: documents cleaned chunk by chunk, then compared with one another, before any is tokenised.

    chunk ─ worker ─ 00000042.study.npz     cleaned texts, records, hashes, signatures in bands
    all of them ─ parent ─ decided.npy      the records with duplicates dropped and splits told

A study's chunk appears whole or not at all, as pieces do; what is decided is decided once all chunks stand.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

from plait import spec
from plait.data import order, records, splits
from plait.data.chunks import Chunk
from plait.data.cleaning import cleaner, near
from plait.data.cleaning.cleaner import Cleaner
from plait.store import durable

DECIDED = "decided.npy"


def similarity(data: spec.Data) -> float | None:
    """From which share of words in common two documents are alike; None where nobody asks."""
    asked = [data.split.together] if data.split.together is not None else []
    if data.clean is not None and data.clean.duplicates == "near":
        asked.append(data.clean.similarity)
    return min(asked) if asked else None


def cleaner_of(data: spec.Data, evaluation: Path) -> Cleaner:
    grams = np.load(evaluation, allow_pickle=False) if evaluation.exists() else np.zeros(0, np.uint64)
    return Cleaner(data.clean, grams, similarity(data) is not None)


def write(folder: Path, chunk: Chunk, clean: Cleaner, data: spec.Data) -> None:
    """Clean a chunk into its file. Raises OSError."""
    rows = chunk.records.copy()
    cleaned = [clean(text) for text in chunk.texts]
    reasons = {name: number for number, name in enumerate(cleaner.reasons(data.clean), start=1)}
    rows["id"] = [records.identity(text) for text in chunk.texts]
    rows["before"] = [len(text) for text in chunk.texts]
    rows["after"] = [len(each.text) for each in cleaned]
    rows["changed"] = [each.changed for each in cleaned]
    rows["language"] = [each.language.encode() for each in cleaned]
    rows["reason"] = [reasons[each.verdict.rule] if each.verdict else records.KEPT for each in cleaned]
    rows["value"] = [each.verdict.value if each.verdict else 0 for each in cleaned]
    rows["limit"] = [each.verdict.limit if each.verdict else 0 for each in cleaned]
    kept = [index for index, each in enumerate(cleaned) if each.verdict is None]
    texts = [cleaned[index].text.encode() for index in kept]
    arrays: dict[str, Any] = {
        "records": rows,
        "content": np.array([each.content for each in cleaned], dtype=np.uint64),
        "texts": np.frombuffer(zstandard.ZstdCompressor(level=1).compress(b"".join(texts)), dtype=np.uint8),
        "lengths": np.array([len(text) for text in texts], dtype=np.int64),
        "fields": np.frombuffer(json.dumps(chunk.fields).encode(), dtype=np.uint8),
        "labels": np.array([_label(fields, data) for fields in chunk.fields], dtype=np.uint64),
    }
    if (least := similarity(data)) is not None:
        none = np.zeros(near.MINIMA, np.uint32)
        signatures = np.array([none if each.signature is None else each.signature for each in cleaned])
        arrays["signatures"] = signatures
        arrays |= {f"band{number}": band for number, band in enumerate(near.bands(signatures, near.rows_of_a_band(least)))}
    with durable.writing(path_of(folder, chunk.number)) as file:
        np.savez(file, **arrays)


def _label(fields: dict[str, Any], data: spec.Data) -> int:
    return order.key_of("label", fields[data.split.stratify]) if data.split.stratify else 0


def path_of(folder: Path, number: int) -> Path:
    return folder / f"{number:08}.study.npz"


@dataclass(frozen=True)
class Studied:
    """A chunk as it was cleaned: texts and fields of those that no rule dropped, records of all."""

    records: np.ndarray
    texts: list[str]
    fields: list[dict[str, Any]]


def read(folder: Path, number: int) -> Studied:
    with np.load(path_of(folder, number), allow_pickle=False) as piece:
        rows, lengths = piece["records"], piece["lengths"]
        content = zstandard.ZstdDecompressor().decompress(piece["texts"].tobytes())
        fields = json.loads(piece["fields"].tobytes())
    ends = lengths.cumsum()
    texts = [content[end - length : end].decode() for end, length in zip(ends.tolist(), lengths.tolist(), strict=True)]
    return Studied(rows, texts, [fields[index] for index in np.flatnonzero(rows["reason"] == records.KEPT)])


def decide(folder: Path, numbers: list[int], data: spec.Data) -> None:
    """Compare all documents, and write down which are duplicates and where each goes. numbers: of the chunks, in order."""
    rows = np.concatenate([records.blank(0), *_each(folder, numbers, "records")])
    content = np.concatenate([np.zeros(0, np.uint64), *_each(folder, numbers, "content")])
    passed = np.flatnonzero(rows["reason"] == records.KEPT)
    _drop_duplicates(rows, content, passed, folder, numbers, data)
    _tell_splits(rows, content, passed, folder, numbers, data)
    with durable.writing(folder / DECIDED) as file:
        np.save(file, rows)


def _drop_duplicates(rows: np.ndarray, content: np.ndarray, passed: np.ndarray, folder: Path, numbers: list[int], data: spec.Data) -> None:
    """Of what is alike the first stays."""
    if data.clean is None or data.clean.duplicates == "keep":
        return
    salt = rows["source"] if data.clean.within == "source" else np.zeros(len(rows), np.int64)
    exact = near.Clusters(len(rows))
    exact.join_equal(order.draws(content[passed], salt[passed]), passed)
    _drop(rows, exact, cleaner.EXACT, 1.0, data)
    if data.clean.duplicates == "near":
        left = passed[rows["reason"][passed] == records.KEPT]
        similar = _similar(left, salt, folder, numbers, data.clean.similarity, data)
        _drop(rows, similar, cleaner.NEAR, data.clean.similarity, data)


def _drop(rows: np.ndarray, clusters: near.Clusters, reason: str, limit: float, data: spec.Data) -> None:
    firsts = clusters.firsts()
    dropped = firsts != np.arange(len(rows))
    rows["reason"][dropped] = cleaner.reasons(data.clean).index(reason) + 1
    rows["twin"][dropped] = firsts[dropped]
    rows["value"][dropped] = clusters.value[dropped]
    rows["limit"][dropped] = limit


def _similar(members: np.ndarray, salt: np.ndarray, folder: Path, numbers: list[int], least: float, data: spec.Data) -> near.Clusters:
    """Clusters of documents whose words are alike, found band by band."""
    clusters = near.Clusters(len(salt))
    width = similarity(data)
    assert width is not None
    with _signatures(folder, numbers) as signatures:
        for band in range(near.MINIMA // near.rows_of_a_band(width)):
            hashes = np.concatenate([np.zeros(0, np.uint64), *_each(folder, numbers, f"band{band}")])
            clusters.join_similar(order.draws(hashes[members], salt[members]), members, signatures, least)
    return clusters


@contextlib.contextmanager
def _signatures(folder: Path, numbers: list[int]) -> Iterator[Callable[[np.ndarray], np.ndarray]]:
    """Reads the signatures of some documents, wherever in the corpus they stand, off one file."""
    path = folder / "signatures.part"
    with path.open("wb") as file:
        for part in _each(folder, numbers, "signatures"):
            file.write(part.tobytes())
    try:
        empty = path.stat().st_size == 0
        signatures = np.zeros((0, near.MINIMA), np.uint32) if empty else np.memmap(path, np.uint32, "r").reshape(-1, near.MINIMA)
        yield lambda members: signatures[members]
    finally:
        path.unlink()


def _tell_splits(rows: np.ndarray, content: np.ndarray, passed: np.ndarray, folder: Path, numbers: list[int], data: spec.Data) -> None:
    """The split of each document that stays, by the rules of splits.py."""
    kept = passed[rows["reason"][passed] == records.KEPT]
    left = kept[rows["split"][kept] == splits.UNTOLD]  # a field or a source has told the others
    told = data.split
    firsts = np.arange(len(rows))
    if told.together is not None:
        firsts = _similar(left, np.zeros(len(rows), np.int64), folder, numbers, told.together, data).firsts()
    heads = left[firsts[left] == left]
    if told.stratify is not None:
        labels = np.concatenate([np.zeros(0, np.uint64), *_each(folder, numbers, "labels")])
        rows["split"][heads] = splits.stratified(content[heads], labels[heads], told)
    else:
        rows["split"][heads] = [splits.by_hash(int(value), told) for value in content[heads]]
    rows["split"][left] = rows["split"][firsts[left]]
    rows["split"][rows["split"] == splits.UNTOLD] = splits.TRAIN  # of what is dropped it means nothing


def _each(folder: Path, numbers: list[int], name: str) -> Iterator[np.ndarray]:
    for number in numbers:
        with np.load(path_of(folder, number), allow_pickle=False) as piece:
            yield piece[name]
