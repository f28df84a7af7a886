"""Folders that Hugging Face's `datasets.save_to_disk` wrote: which Arrow files they hold, and the split that each is of.

    FOLDER/state.json            a Dataset: its files in order            FOLDER/data-00000-of-00002.arrow ...
    FOLDER/dataset_dict.json     a DatasetDict: the names of its splits   FOLDER/train/state.json ...

Each file is a stream of record batches, which plait.data.sources reads.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from plait.data.splits import SPLITS
from plait.errors import DataError

_STATE, _DICT = "state.json", "dataset_dict.json"


def is_saved(folder: Path) -> bool:
    return (folder / _STATE).is_file() or (folder / _DICT).is_file()


def files(folder: Path) -> list[tuple[Path, str | None]]:
    """The Arrow files, each with the split that its folder is named for; a lone "train" is split as data.split tells. Raises DataError."""
    if (folder / _STATE).is_file():
        return [(path, None) for path in _of_one(folder)]
    splits = _read(folder / _DICT).get("splits")
    if not isinstance(splits, list) or not all(isinstance(split, str) and (folder / split / _STATE).is_file() for split in splits):
        raise DataError(f"data.corpus: {folder / _DICT}: is not what datasets wrote: the splits that it names do not stand beside it")
    if splits == ["train"]:
        return [(path, None) for path in _of_one(folder / "train")]
    if strange := [split for split in splits if split not in SPLITS]:
        raise DataError(
            f"data.corpus: {folder}: holds a split {strange[0]!r}, and those known here are {', '.join(SPLITS)}; "
            f'name the folders of those that are wanted, for example {{ path = "{folder / splits[0]}", split = "train" }}'
        )
    return [(path, split) for split in splits for path in _of_one(folder / split)]


def _of_one(folder: Path) -> list[Path]:
    state = _read(folder / _STATE)
    if state.get("_indices_data_files") or state.get("_indices_files"):
        raise DataError(
            f"data.corpus: {folder}: was saved with an index of the rows that count, which is not read; "
            "load it with datasets, call flatten_indices() and save_to_disk() again"
        )
    try:
        found = [folder / file["filename"] for file in state["_data_files"]]
    except (KeyError, TypeError):
        raise DataError(f"data.corpus: {folder / _STATE}: is not what datasets wrote: it names no files") from None
    if missing := [path for path in found if not path.is_file()]:
        raise DataError(f"data.corpus: {missing[0]}: is missing, and {_STATE} beside it names it")
    return found


def _read(path: Path) -> dict[str, Any]:
    try:
        told = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"data.corpus: {path}: cannot be read: {error}") from None
    return told if isinstance(told, dict) else {}
