"""Sources: which files a corpus names, and the documents in them.

`resolve` turns the run file's paths and globs into files; `documents` reads one file. Both go in one fixed order,
so that whoever reads a corpus twice sees the same documents in the same sequence.
"""

from __future__ import annotations

import glob
import io
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from plait import spec
from plait.data import streams
from plait.errors import DataError

Format = Literal["text", "jsonl", "parquet"]
_FORMATS: dict[str, Format] = {".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}


@dataclass(frozen=True)
class SourceFile:
    """One file of a corpus."""

    path: Path
    format: Format


@dataclass(frozen=True)
class Source:
    """What is mixed by weight: some files under one name."""

    name: str
    weight: float
    files: list[SourceFile]


def resolve(data: spec.Data) -> list[Source]:
    """The sources of a corpus: all plain paths together are one, each `Source` table is one.

    Raises DataError: a path or glob that matches no file, a folder, a URL, two sources of one name.
    """
    plain = [entry for entry in data.corpus if isinstance(entry, str)]
    found = [Source("corpus", 1.0, _files(plain, None))] if plain else []
    for entry in data.corpus:
        if isinstance(entry, spec.Source):
            found.append(Source(entry.name or entry.path, entry.weight, _files([entry.path], entry.format)))
    names = [source.name for source in found]
    if len(set(names)) < len(names):
        raise DataError(f"data.corpus: two sources bear one name ({', '.join(names)}); give each its own `name`")
    return found


def documents(file: SourceFile, data: spec.Data, on_read: Callable[[int], None] = lambda count: None) -> Iterator[str]:
    """The documents of one file, in order; those of white space alone are left out.

    `on_read` hears how many bytes left the disk. Raises DataError naming the file and the line or byte.
    """
    if file.format == "jsonl":
        texts = _jsonl(file.path, data.field, on_read)
    elif file.format == "parquet":
        texts = _parquet(file.path, data.field, on_read)
    else:
        texts = _plain(file.path, data.separator, on_read)
    return (text for text in texts if text and not text.isspace())


def _files(patterns: list[str], named: Format | None) -> list[SourceFile]:
    """Each file once: patterns in the order given, the files of a pattern sorted."""
    paths = dict.fromkeys(path for pattern in patterns for path in _matches(pattern))
    return [SourceFile(Path(path), named or _format(path)) for path in paths]


def _matches(pattern: str) -> list[str]:
    if "://" in pattern:
        raise DataError(f"data.corpus: {pattern} is a URL, which is not read yet; copy it here and name the file")
    expanded = os.path.expanduser(pattern)
    if os.path.isfile(expanded):
        return [expanded]
    if os.path.isdir(expanded):
        raise DataError(f"data.corpus: {pattern} is a folder; name its files, for example {pattern.rstrip('/')}/*.txt")
    found = sorted(path for path in glob.glob(expanded, recursive=True) if os.path.isfile(path))
    if not found:
        what = "no file matches it" if glob.has_magic(expanded) else "there is no such file"
        raise DataError(f"data.corpus: {pattern}: {what} (looked from {os.getcwd()})")
    return found


def _format(path: str) -> Format:
    stem = Path(path)
    suffix = stem.with_suffix("").suffix if stem.suffix in streams.COMPRESSIONS else stem.suffix
    return _FORMATS.get(suffix.lower(), "text")


def _plain(path: Path, separator: str, on_read: Callable[[int], None]) -> Iterator[str]:
    """Line breaks beside a separator belong to it, not to the documents."""
    for offset, piece in streams.cut(streams.read(path, on_read), separator.encode()):
        yield streams.text(path, offset, piece).strip("\r\n")


def _jsonl(path: Path, field: str, on_read: Callable[[int], None]) -> Iterator[str]:
    for number, (offset, line) in enumerate(streams.cut(streams.read(path, on_read), b"\n"), start=1):
        if not line.isspace() and line:
            yield _row(f"{path}:{number}", streams.text(path, offset, line), field)


def _row(place: str, line: str, field: str) -> str:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: is not JSON: {error}") from None
    if not isinstance(row, dict):
        raise DataError(f"{place}: is not a JSON object; each line must be one with the text under {field!r}")
    if field not in row:
        raise DataError(f"{place}: has no {field!r}; its keys are {', '.join(map(repr, row)) or 'none'}; set data.field")
    return _checked(place, field, row[field])


def _checked(place: str, field: str, value: Any) -> str:
    if not isinstance(value, str):
        raise DataError(f"{place}: {field!r} is {type(value).__name__}, not text; set data.field to the key that holds the text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise DataError(f"{place}: {field!r} holds half of a surrogate pair, which is no text") from None
    return value


def _parquet(path: Path, field: str, on_read: Callable[[int], None]) -> Iterator[str]:
    try:
        import pyarrow
        import pyarrow.parquet as pq
    except ImportError:
        raise DataError(f"{path}: reading Parquet needs pyarrow: pip install 'plait[parquet]'") from None
    try:
        table = pq.ParquetFile(_parquet_bytes(path))
        if field not in table.schema_arrow.names:
            raise DataError(f"{path}: has no column {field!r}; its columns are {', '.join(table.schema_arrow.names)}; set data.field")
        row = 0
        for group in range(table.num_row_groups):
            for batch in table.iter_batches(batch_size=1024, columns=[field], row_groups=[group]):
                for value in batch.column(0).to_pylist():
                    row += 1
                    yield _checked(f"{path}, row {row}", field, value)
            on_read(path.stat().st_size // table.num_row_groups)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: is no Parquet file or a broken one: {error}") from None


def _parquet_bytes(path: Path) -> Any:
    """Parquet is read at random places: one that is compressed as a whole is unpacked in memory first."""
    return io.BytesIO(b"".join(streams.read(path))) if path.suffix in streams.COMPRESSIONS else str(path)
