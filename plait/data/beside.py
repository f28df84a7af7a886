"""What is kept beside the tokens of a corpus: labels that documents bear, and numbers.

numbers: of all these functions, the pieces of each source, in order.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np

from plait import __version__, spec
from plait.data import broken, lineage, manifest, pieces, records, sources
from plait.data.labels import Label, Scale
from plait.data.sources import Source
from plait.data.splits import SPLITS

Written = dict[str, manifest.StoredFile]


def labels(data: spec.Data, folder: Path, numbers: list[list[int]], target: Path, found: list[Source]) -> tuple[list[Label], Written]:
    """The labels that documents bear, and files of what is told of each. found: the corpus, in which labels have places."""
    if data.objective.kind not in ("classify", "tag", "answer"):
        return [], {}
    files = [str(path) for path in sources.paths(found)]
    every = pieces.labels_of(folder, sorted(number for mine in numbers for number in mine), files)
    names, width = [label.name for label in every], 2 if data.objective.kind == "answer" else 1
    return every, dict(
        pieces.join_told(folder, mine, split, index, target, names, width) for split in SPLITS for index, mine in enumerate(numbers)
    )


def numbers(data: spec.Data, folder: Path, numbers: list[list[int]], target: Path) -> tuple[list[Scale], Written]:
    """Numeric fields, scaled by what the training split says of them."""
    if not data.numbers:
        return [], {}
    whole = np.concatenate([pieces.joined_numbers(folder, mine, "train") for mine in numbers if mine])
    mean, deviation = (whole.mean(axis=0), whole.std(axis=0)) if len(whole) else (np.zeros(whole.shape[1]), np.ones(whole.shape[1]))
    deviation = np.where(deviation > 0, deviation, 1.0)
    files = {
        manifest.numbers_name(split, index): pieces.store(
            target / manifest.numbers_name(split, index), (pieces.joined_numbers(folder, mine, split) - mean) / deviation
        )
        for split in SPLITS
        for index, mine in enumerate(numbers)
        if mine
    }
    named = zip(data.numbers, mean.tolist(), deviation.tolist(), strict=True)
    return [Scale(field=field, mean=middle, deviation=width) for field, middle, width in named], files


def about(data: spec.Data, folder: Path, numbers: list[list[int]], target: Path, found: list[Source]) -> tuple[Written, records.Lineage]:
    """The records of all documents, and the steps that made them."""
    told = {records.DOCUMENTS: pieces.join_records(folder, sorted(number for mine in numbers for number in mine), target)}
    if (target / broken.QUARANTINE).exists():
        told[broken.QUARANTINE] = stored(target / broken.QUARANTINE)
    rows = np.load(target / records.DOCUMENTS, mmap_mode="r", allow_pickle=False)
    aside = json.loads((target / broken.ACCOUNT).read_bytes())
    return told, lineage.told(data, found, rows, aside, __version__)


def stored(path: Path) -> manifest.StoredFile:
    """What a manifest says of a file that stands."""
    with path.open("rb") as file:
        return manifest.StoredFile(bytes=path.stat().st_size, sha256=hashlib.file_digest(file, "sha256").hexdigest())
