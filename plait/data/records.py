"""Records: what became of each document, a row of fixed size each, in the order of the corpus.

    <prepared>/<request>/documents.npy    one row a document, those that were dropped included

A row names its document by a hash of its text as it stood in the corpus, and by source, file and place.
"""

from __future__ import annotations

import hashlib
from typing import Literal

import numpy as np
import pydantic

DOCUMENTS = "documents.npy"
KEPT = 0

RECORD = np.dtype(
    [
        ("id", "<u8"),  # blake2b of the text as it stood in the corpus
        ("place", "<u8"),  # line or row, from 1, or byte of a plain text file
        ("twin", "<i8"),  # number of the document that it duplicates, -1 without one
        ("file", "<u4"),  # number in Lineage.files
        ("before", "<u4"),  # characters as it stood
        ("after", "<u4"),  # characters once cleaned, 0 where it was dropped before
        ("tokens", "<u4"),  # 0 where it was dropped
        ("value", "<f4"),  # what the rule measured
        ("limit", "<f4"),  # what it allows
        ("changed", "<u2"),  # a bit for each of Lineage.steps
        ("source", "<u2"),
        ("reason", "u1"),  # 0: kept; n: dropped by Lineage.reasons[n - 1]
        ("split", "i1"),  # number in splits.SPLITS
        ("language", "S3"),  # ISO 639-1, or 639-3 where it has no shorter one; empty where nobody asked
    ]
)


class Step(pydantic.BaseModel):
    """What a step of the pipeline was and did. kind: it changes texts, drops documents, or does neither."""

    name: str
    kind: Literal["changes", "drops", "reads"]
    settings: dict[str, object] = {}
    by: str = ""
    """Library and version, or the paper that it follows."""
    documents: int = 0
    """Changed, dropped or taken."""


class Lineage(pydantic.BaseModel):
    """How a prepared folder came about, from files to splits."""

    plait: str
    files: list[str]
    sources: list[str]
    steps: list[Step]
    changes: list[str] = []
    """Steps that change texts, by bit of a record's `changed`."""
    reasons: list[str] = []
    """Why documents are dropped, by number of a record's `reason`, counted from 1."""
    broken: dict[str, int] = {}
    """Input that could not be used, by kind, where data.broken lets it be left out."""
    first_broken: dict[str, str] = {}


def identity(text: str) -> int:
    """64 bits that name a text."""
    return identity_of(text.encode())


def identity_of(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big")


def blank(count: int) -> np.ndarray:
    rows = np.zeros(count, dtype=RECORD)
    rows["twin"] = -1
    return rows


def spelled(identifier: int) -> str:
    """An identity as people write it: 16 digits."""
    return f"{identifier:016x}"
