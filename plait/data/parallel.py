"""Parallel text: pairs of a source and its translation, from two aligned files, TSV, or gettext's catalogues, and what they are in tokens.

    en.txt, de.txt     Save the file.  |  Die Datei speichern.        line n of one is line n of the other
    help.tsv           Save the file.\\tDie Datei speichern.           columns; titles in the first line where `sides` names them
    de.po, de.mo       msgid "Save the file."  msgstr "Die ..."       but for entries that are not translated, fuzzy or obsolete

    tokens             end  S S S  T T T T  end                       learned: the target and its end
    document           ["Save the file.", "Die Datei speichern."]

Rows of JSONL and Parquet are read where other rows are (sources.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from plait.data import streams
from plait.data.broken import Unusable
from plait.errors import DataError

if TYPE_CHECKING:
    from plait.data.tokenizer import Tokenizer

OnRead = Callable[[int], None]
Pair = tuple[str, str]
Found = tuple[str, int, bytes, Callable[[], Pair]]
"""A place as messages tell it, its number, what stands there, and a function that makes the pair of it or raises Unusable."""

FIELDS = ("source", "target")


def aligned(source: Path, target: Path, largest: int | None, on_read: OnRead) -> Iterator[Found]:
    """Line by line of two files. Raises DataError: one has more lines, and then nothing tells which belong together."""
    lines = [streams.cut(streams.read(path, on_read), b"\n", largest) for path in (source, target)]
    number = 0
    for number, sides in enumerate(zip_longest(*lines), start=1):
        if None in sides:
            raise _unequal(source, target, number, source if sides[1] is None else target, lines)
        raws = [line for _, line in sides]
        yield f"{source}:{number}", number, raws[0] + b"\t" + raws[1], _decoded(source, target, sides)


def table(path: Path, sides: Pair | None, largest: int | None, on_read: OnRead) -> Iterator[Found]:
    """The lines of a TSV file. sides: titles of two columns; the first two, and no titles, when None. Raises DataError: no such titles."""
    columns: tuple[int, int] | None = None if sides else (0, 1)
    for number, (offset, line) in enumerate(streams.cut(streams.read(path, on_read), b"\n", largest), start=1):
        if columns is None:
            columns = _columns(path, sides or FIELDS, streams.text(path, offset, line))
        elif line and not line.isspace():
            yield f"{path}:{number}", number, line, _cells(path, number, offset, line, columns)


def catalogue(path: Path, on_read: OnRead) -> Iterator[Found]:
    """The translated entries of a .po or .mo file; of one with plurals the singular, and the last form of the plural. Raises Unusable."""
    try:
        import polib
    except ImportError:
        raise DataError(f"{path}: reading gettext's catalogues needs polib: pip install 'plait[translate]'") from None
    content = b"".join(streams.read(path, on_read))
    binary = Path(path.name.removesuffix(".gz").removesuffix(".zst")).suffix == ".mo"
    try:
        found: Any = polib.mofile(content) if binary else polib.pofile(streams.text(path, 0, content))
    except Unusable:
        raise
    except Exception as error:  # polib raises OSError, ValueError, struct's and others
        raise Unusable(str(path), "broken catalogue", f"is no gettext catalogue or a broken one: {error}", content) from None
    for number, entry in enumerate(found.translated_entries(), start=1):
        line = getattr(entry, "linenum", None) or number
        forms = [entry.msgstr_plural[form] for form in sorted(entry.msgstr_plural)] or [entry.msgstr]
        pairs = [(entry.msgid, forms[0])] + ([(entry.msgid_plural, forms[-1])] if entry.msgid_plural else [])
        yield from ((f"{path}:{line}", line, "\t".join(pair).encode(), lambda pair=pair: pair) for pair in pairs)


def of_row(place: str, row: dict[str, Any], sides: Pair) -> Pair:
    """The two fields of a JSONL or Parquet row; a dot leads into an object. Raises Unusable."""
    found = [_field(place, row, side) for side in sides]
    return found[0], found[1]


def checked(place: str, pair: Pair) -> Pair | None:
    """Without white space at the ends; None where both are empty. Raises Unusable: one is, or is no text."""
    source, target = (side.strip() for side in pair)
    if bool(source) != bool(target):
        raise Unusable(place, "empty side", f"has no {'target' if source else 'source'}: a pair needs both")
    try:
        "".join(pair).encode()
    except UnicodeEncodeError:
        raise Unusable(place, "no text", "holds half of a surrogate pair, which is no text") from None
    return (source, target) if source else None


class PairEncoder:
    """Documents that are pairs: how they become tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def encode(self, documents: list[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        """(ids uint32, learned bool) of each pair's JSON."""
        pairs = [json.loads(document) for document in documents]
        sources, targets = (self._tokenizer.encode([pair[side] for pair in pairs]) for side in (0, 1))
        end = np.array([self._tokenizer.end_of_text], dtype=np.uint32)
        encoded = []
        for source, target in zip(sources, targets, strict=True):
            ids = np.concatenate([source, target, end]).astype(np.uint32)
            encoded.append((ids, np.arange(len(ids)) >= len(source)))
        return encoded


def _unequal(source: Path, target: Path, number: int, longer: Path, lines: list[Iterator[Any]]) -> DataError:
    """number: of the first line that has no counterpart; of `longer` the rest is counted."""
    total = number + sum(1 for each in lines for _ in each)
    counts = [total if path == longer else number - 1 for path in (source, target)]
    return DataError(
        f"{source} has {counts[0]:,} lines and {target} has {counts[1]:,}: line {number:,} of {longer.name} has no counterpart; the "
        "two must hold the same sentences, line by line"
    )


def _decoded(source: Path, target: Path, sides: tuple[tuple[int, bytes], ...]) -> Callable[[], Pair]:
    def made() -> Pair:
        texts = [streams.text(path, offset, line) for path, (offset, line) in zip((source, target), sides, strict=True)]
        return texts[0], texts[1]

    return made


def _columns(path: Path, titles: Pair, line: str) -> tuple[int, int]:
    there = line.rstrip("\r\n").split("\t")
    if missing := next((title for title in titles if title not in there), None):
        raise DataError(f"{path}: has no column {missing!r}; its first line has {', '.join(map(repr, there))}; set `sides`")
    return there.index(titles[0]), there.index(titles[1])


def _cells(path: Path, number: int, offset: int, line: bytes, columns: tuple[int, int]) -> Callable[[], Pair]:
    def made() -> Pair:
        cells = streams.text(path, offset, line).rstrip("\r\n").split("\t")
        if len(cells) <= max(columns):
            wanted = f"a source and a target stand in columns {columns[0] + 1} and {columns[1] + 1}"
            raise Unusable(f"{path}:{number}", "no pair", f"has {len(cells)} column{'s' * (len(cells) > 1)}, and {wanted}")
        return cells[columns[0]], cells[columns[1]]

    return made


def _field(place: str, row: dict[str, Any], name: str) -> str:
    value: Any = row
    for part in [name] if name in row else name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    if value is None:
        raise Unusable(place, "no field", f"has no {name!r}; its keys are {', '.join(map(repr, row)) or 'none'}; set `sides`")
    if not isinstance(value, str):
        raise Unusable(place, "no text", f"{name!r} is {type(value).__name__}, not text; set `sides` to the two fields that hold texts")
    return value
