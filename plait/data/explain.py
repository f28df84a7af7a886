"""Why a document was kept, changed or dropped: its record in words."""

from __future__ import annotations

import difflib
import re

import numpy as np

from plait.data import records
from plait.data.cleaning import cleaner
from plait.data.records import Lineage
from plait.data.splits import SPLITS
from plait.data.tokens import Prepared
from plait.errors import DataError

MOST = 20
"""Documents that are told of at once: those of one text."""


def explain(prepared: Prepared, document: str) -> str:
    """document: 16 hexadecimal digits, the hash of its text; FILE:PLACE, a line, row or byte as records and errors tell it; or its number.

    Raises DataError: no document of that name.
    """
    rows, lineage = prepared.records(), prepared.manifest.lineage
    assert lineage is not None
    found = _numbers(rows, lineage, document)
    if not len(found):
        raise DataError(f"{prepared.folder}: has no document {document!r}{_nearest(rows, lineage, document)}")
    told = [_told(int(number), rows, lineage) for number in found[:MOST]]
    more = [f"and {len(found) - MOST:,} more of this text"] if len(found) > MOST else []
    return "\n".join([*told, *more])


def place(row: np.void, lineage: Lineage) -> str:
    """Where a document stands: its file, and the line, row or byte in it."""
    return f"{lineage.files[int(row['file'])]}:{int(row['place'])}"


def _numbers(rows: np.ndarray, lineage: Lineage, document: str) -> np.ndarray:
    if re.fullmatch("[0-9a-f]{16}", document):
        return np.flatnonzero(rows["id"] == np.uint64(int(document, 16)))
    if document.isdecimal():
        return np.arange(len(rows))[int(document) : int(document) + 1]
    path, _, at = document.rpartition(":")
    files = [number for number, file in enumerate(lineage.files) if file == path or file.endswith(f"/{path}")]
    return np.flatnonzero(np.isin(rows["file"], files) & (rows["place"] == int(at))) if at.isdecimal() else np.zeros(0, np.int64)


def _nearest(rows: np.ndarray, lineage: Lineage, document: str) -> str:
    names = {file.rpartition("/")[2]: file for file in reversed(lineage.files)}
    if close := difflib.get_close_matches(document.rpartition(":")[0].rpartition("/")[2], names, n=1):
        return f": {names[close[0]]} has others"
    return f"; it holds documents 0 to {len(rows) - 1:,}, by number, by 16 digits of their hash, or by FILE:LINE"


def _told(number: int, rows: np.ndarray, lineage: Lineage) -> str:
    row = rows[number]
    language = row["language"].decode()
    head = f"document {number:,}  {records.spelled(int(row['id']))}  {place(row, lineage)}"
    about = f"  source {lineage.sources[int(row['source'])]}, {int(row['before']):,} characters" + (
        f", language {language}" if language else ""
    )
    changed = [name for bit, name in enumerate(lineage.changes) if int(row["changed"]) >> bit & 1]
    change = f"  changed by {', '.join(changed)}: {int(row['after']):,} characters" if changed else "  unchanged"
    return "\n".join([head, about, change, f"  {_fate(row, rows, lineage)}"])


def _fate(row: np.void, rows: np.ndarray, lineage: Lineage) -> str:
    if row["reason"] == records.KEPT:
        return f"kept: {int(row['tokens']):,} tokens in the {SPLITS[int(row['split'])]} split"
    reason = lineage.reasons[int(row["reason"]) - 1]
    value, limit = float(row["value"]), float(row["limit"])
    by = next((step.by for step in lineage.steps if step.name == reason), "")
    if row["twin"] >= 0:
        twin = rows[int(row["twin"])]
        kept = f"document {int(row['twin']):,}, {records.spelled(int(twin['id']))}, {place(twin, lineage)}, stays"
        similar = f" of similarity {value:.2f}, {limit:g} or more is one" if reason == cleaner.NEAR else ""
        return f"dropped: {reason}{similar}: {kept}"
    return f"dropped by {reason!r}: {_sentence(reason, value, limit)}" + (f" ({by})" if by not in ("", "plait") else "")


def _sentence(reason: str, value: float, limit: float) -> str:
    if reason == cleaner.EMPTY:
        return "nothing is left of it"
    if reason == cleaner.LANGUAGE:
        return "its language is not one of data.clean.languages"
    if reason == cleaner.EVALUATION:
        return f"{value:,.0f} of its word sequences stand in an evaluation set"
    return f"{value:,.4g} where {'at most' if value > limit else 'at least'} {limit:,.6g} is allowed"
