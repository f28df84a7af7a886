"""Chunks: a corpus cut in handfuls of documents, the unit in which it is cleaned, tokenised, and resumed after a kill."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from plait.data import records

SMALLEST, LARGEST, CHUNKS = 1 << 19, 1 << 24, 256


@dataclass(frozen=True)
class Taken:
    """A document on its way. record: a row of records.RECORD. read: how far the corpus was read for it, in bytes."""

    source: int
    text: str
    record: np.void
    fields: dict[str, Any]
    read: int
    ids: np.ndarray | None = None
    """Of a document that comes as tokens, without text."""


@dataclass(frozen=True)
class Chunk:
    """Documents of one source that are worked on together; `read` is how far the corpus was read for them, in bytes.

    records: one a document, those that are dropped included, which have no text here. fields: of each text, what settings ask for.
    """

    number: int
    source: int
    texts: list[str]
    read: int
    records: np.ndarray = field(default_factory=lambda: records.blank(0))
    fields: list[dict[str, Any]] = field(default_factory=list)
    numbers: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    ids: list[np.ndarray] | None = None
    """The documents' tokens, where they come as tokens; they have no texts then."""


def cut(documents: Iterable[Taken], corpus_bytes: int, numeric: list[str]) -> Iterator[Chunk]:
    """Documents in chunks whose size hangs on the corpus alone, not on who prepares it."""
    size = min(max(corpus_bytes // CHUNKS, SMALLEST), LARGEST)
    held: list[Taken] = []
    number, characters = 0, 0
    for each in documents:
        if held and (characters >= size or _kind(each) != _kind(held[0])):
            yield _chunk(number, held, each.read, numeric)
            number, characters, held = number + 1, 0, []
        held.append(each)
        characters += len(each.text) if each.ids is None else 4 * len(each.ids)
    if held:
        yield _chunk(number, held, held[-1].read, numeric)


def _kind(each: Taken) -> tuple[int, bool]:
    """Of one source, and all texts or all tokens, a chunk is."""
    return each.source, each.ids is None


def _chunk(number: int, held: list[Taken], read: int, numeric: list[str]) -> Chunk:
    rows = np.array([each.record for each in held], dtype=records.RECORD)
    fields = [each.fields for each in held]
    ids = None if held[0].ids is None else [each.ids for each in held if each.ids is not None]
    return Chunk(number, held[0].source, [each.text for each in held], read, rows, fields, numbers_of(fields, numeric), ids)


def numbers_of(fields: list[dict[str, Any]], numeric: list[str]) -> np.ndarray:
    """The numeric fields of some documents, float64 [documents, fields]."""
    return np.array([[float(each[name]) for name in numeric] for each in fields], dtype=np.float64).reshape(len(fields), len(numeric))
