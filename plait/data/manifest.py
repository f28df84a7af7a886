"""The manifest: what a prepared folder says of itself, and how its files are called.

<data.prepared>/<request>/
    manifest.json              what is here: sizes, checksums, counts; a folder without it does not count
    tokenizer.json             or .model, .tiktoken: the tokenizer as it was used
    train-0.npy                tokens of source 0: end_of_text, a document, end_of_text, a document, ...
    train-0.starts.npy         where each document begins, int64
    train-0.counts.npy         how often each token comes, int64
    train-0.learned.npy        of conversations: which tokens are learned, bool
    chat_template.jinja        of conversations: the template that they were written by
    train-0.told.npy           of rows that are samples: a label of each document or token, or an answer's place, int32
    train-0.numbers.npy        numeric fields of each document, where data.numeric names some
    validation-0.npy ...
    documents.npy              what became of each document of the corpus (records.py)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pydantic

from plait.data import records
from plait.data.labels import Label, Scale
from plait.errors import DataError

FORMAT = 1
MANIFEST = "manifest.json"
"""Marks a folder as complete, so it is written last."""


class Part(pydantic.BaseModel):
    """One source's share of one split."""

    tokens: int
    documents: int
    text_bytes: int


class StoredFile(pydantic.BaseModel):
    bytes: int
    sha256: str


class StoredTokenizer(pydantic.BaseModel):
    file: str
    pattern: str | None
    fingerprint: str


class Manifest(pydantic.BaseModel):
    """What a prepared folder says of itself."""

    format: Literal[1]
    request: str
    vocabulary: int
    end_of_text: int
    tokenizer: StoredTokenizer
    splits: dict[str, list[Part]]
    files: dict[str, StoredFile]
    numeric: list[Scale] = []
    labels: list[Label] = []
    lineage: records.Lineage | None = None
    about: dict[str, StoredFile] = {}
    """Files that tell how the others came about: not part of what is trained on, nor of its fingerprint."""

    @property
    def fingerprint(self) -> str:
        """Of content: equal where tokenizer and token files are equal byte by byte."""
        content = {name: file.sha256 for name, file in sorted(self.files.items())}
        return hashlib.sha256(json.dumps([self.format, content]).encode()).hexdigest()[:32]


def read_manifest(folder: Path) -> Manifest:
    """Raises DataError: no manifest, or a corrupt one."""
    path = folder / MANIFEST
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{folder}: holds no prepared data ({MANIFEST} is missing); run plait data prepare") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    except pydantic.ValidationError:
        raise corrupt(folder, MANIFEST, f"it is no manifest of format {FORMAT}") from None


def check_size(folder: Path, name: str, file: StoredFile) -> None:
    """Raises DataError: a file that is missing, or has another size than the manifest says."""
    path = folder / name
    size = path.stat().st_size if path.is_file() else None
    if size != file.bytes:
        raise corrupt(folder, name, "it is missing" if size is None else f"it has {size} bytes, the manifest says {file.bytes}")


def check_content(folder: Path, manifest: Manifest, left_out: Callable[[str], bool] = lambda name: False) -> None:
    """Read every file whole, but those left out. Raises DataError naming the one whose checksum is not the manifest's."""
    for name, file in (manifest.files | manifest.about).items():
        if left_out(name):
            continue
        check_size(folder, name, file)
        with (folder / name).open("rb") as content:
            if hashlib.file_digest(content, "sha256").hexdigest() != file.sha256:
                raise corrupt(folder, name, "its checksum is not the manifest's")


def corrupt(folder: Path, name: str, why: str) -> DataError:
    return DataError(f"{folder / name}: is corrupt: {why}; remove {folder} and it is prepared anew")


def tokens_name(split: str, index: int) -> str:
    return f"{split}-{index}.npy"


def starts_name(split: str, index: int) -> str:
    return f"{split}-{index}.starts.npy"


def numbers_name(split: str, index: int) -> str:
    return f"{split}-{index}.numbers.npy"


def learned_name(split: str, index: int) -> str:
    return f"{split}-{index}.learned.npy"


def told_name(split: str, index: int) -> str:
    return f"{split}-{index}.told.npy"


def counts_name(split: str, index: int) -> str:
    return f"{split}-{index}.counts.npy"
