"""Sources: which files a corpus names, and the documents in them.

`resolve` turns the run file's paths and globs into files; `documents` reads one file. Both go in one fixed order,
so that whoever reads a corpus twice sees the same documents in the same sequence.
"""

from __future__ import annotations

import glob
import json
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any, Literal

from plait import spec
from plait.data import chat, labels, parallel, saved, streams, tables
from plait.data.broken import Unusable, refuse
from plait.errors import DataError

Format = Literal["text", "jsonl", "parquet", "arrow", "bin", "tsv", "po", "mo"]
_FORMATS: dict[str, Format] = {".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet", ".arrow": "arrow", ".bin": "bin"}
_OF_PAIRS: dict[str, Format] = {".tsv": "tsv", ".po": "po", ".mo": "mo"}


@dataclass(frozen=True)
class SourceFile:
    """One file of a corpus."""

    path: Path
    format: Format
    split: str | None = None
    """Where its documents go, of a token file that is made for one split."""
    target: Path | None = None
    """Of two aligned files, the other one."""
    sides: tuple[str, str] | None = None
    prefix: str = ""


@dataclass(frozen=True)
class Source:
    """What is mixed by weight: some files under one name."""

    name: str
    weight: float
    files: list[SourceFile]


@dataclass(frozen=True)
class Document:
    """A text, and where it stands in its file: line or row, from 1, or byte of a plain text file. fields: what else its row tells of it,
    of what was asked for."""

    text: str
    place: int
    fields: dict[str, Any]
    key: str | None = None
    """What tells its split where that is not the text: of a pair the source."""


def resolve(data: spec.Data) -> list[Source]:
    """The sources of a corpus: all plain paths together are one, each `Source` table is one.

    Raises DataError: a path or glob that matches no file, a folder, two sources of one name.
    """
    plain = [entry for entry in data.corpus if isinstance(entry, str)]
    found = [Source("corpus", 1.0, _files(plain, None, data.translates))] if plain else []
    for entry in data.corpus:
        if isinstance(entry, spec.Source):
            found.append(Source(entry.name or entry.path, entry.weight, _files_of(entry, data.translates)))
    _check_binary(found, data)
    if data.translates:
        _check_pairs(found, data)
    names = [source.name for source in found]
    if len(set(names)) < len(names):
        raise DataError(f"data.corpus: two sources bear one name ({', '.join(names)}); give each its own `name`")
    return found


def _check_binary(found: list[Source], data: spec.Data) -> None:
    """What token files cannot be asked for."""
    file = next((file for file in every_file(found) if file.format == "bin"), None)
    if file is None:
        return
    fields = next(iter(data.needed_fields), None)
    asked = "data.chat" if data.chat else "data.clean" if data.clean else "data.split.together" if data.split.together else fields
    asked = "data.objective" if asked is None and data.objective.labelled else asked
    if asked is not None:
        raise DataError(f"{file.path}: holds tokens, and {asked} is for text; leave it out, or name the text that they were made from")
    if data.tokenizer.file is None:
        raise DataError(f"{file.path}: holds tokens, which mean something to the tokenizer alone that made them; set data.tokenizer.file")


def _check_pairs(found: list[Source], data: spec.Data) -> None:
    """Each file must be one that pairs can be read from."""
    for file in every_file(found):
        if file.format == "text" and file.target is None:
            raise DataError(
                f"{file.path}: is text of one language; name the file of its translations: "
                f'{{ path = "{file.path}", target = "..." }}, or use TSV, JSONL, Parquet, .po or .mo'
            )
        if file.format != "text" and file.target is not None:
            raise DataError(f"{file.path}: holds both sides, and `target` is for text files of one each; leave it out")
        if data.needed_fields and file.format not in ("jsonl", "parquet", "arrow"):
            setting, field = next(iter(data.needed_fields.items()))
            raise DataError(f"{file.path}: has no fields but its sides, and {setting} = {field!r} asks for one; use JSONL or Parquet")


def every_file(found: list[Source]) -> list[SourceFile]:
    return [file for source in found for file in source.files]


def paths(found: list[Source]) -> list[Path]:
    """The files that documents are of, in order."""
    return [file.path for file in every_file(found)]


def read_paths(found: list[Source]) -> list[Path]:
    """All that is read: the other ones of aligned files too."""
    return [*paths(found), *(file.target for file in every_file(found) if file.target is not None)]


def size(found: list[Source]) -> int:
    """Of the source files, in bytes on the disk."""
    return sum(os.path.getsize(path) for path in read_paths(found))


def files(patterns: list[str]) -> list[SourceFile]:
    """The files of paths and globs outside the corpus: evaluation sets. Raises DataError."""
    return _files(patterns, None)


def documents(
    file: SourceFile,
    data: spec.Data,
    on_read: Callable[[int], None] = lambda count: None,
    on_broken: Callable[[Unusable], None] = refuse,
) -> Iterator[Document]:
    """The documents of one file, in order; those of white space alone are left out.

    `on_read` hears how many bytes left the disk, `on_broken` what is no document; a file that breaks off ends there. Raises DataError.
    """
    if file.format == "jsonl":
        items = _jsonl(file, data, on_read)
    elif file.format in ("parquet", "arrow"):
        items = _table(file, data, on_read)
    elif data.translates:
        items = _pairs(file, data, on_read)
    else:
        items = _plain(file.path, data, on_read)
    for item in _to_its_end(file.path, items):
        if isinstance(item, Unusable):
            on_broken(item)
        elif item.text and not item.text.isspace():
            yield item


Item = Document | Unusable


def _to_its_end(path: Path, items: Iterator[Item]) -> Iterator[Item]:
    """What a file holds until it ends or breaks off."""
    if path.stat().st_size == 0:
        yield Unusable(str(path), "empty file", "is empty: it has no bytes; was it written whole?")
        return
    try:
        yield from items
    except Unusable as unusable:
        yield unusable


def _files(patterns: list[str], named: Format | None, paired: bool = False) -> list[SourceFile]:
    """Each file once: patterns in the order given, the files of a pattern sorted."""
    paths = dict(match for pattern in patterns for match in _matches(pattern))
    return [SourceFile(Path(path), named or _format(path, paired), split) for path, split in paths.items()]


def _files_of(entry: spec.Source, paired: bool) -> list[SourceFile]:
    """Those of a table of the corpus; of two aligned globs the first belongs to the first."""
    found = _files([entry.path], entry.format, paired)
    others = [None] * len(found) if entry.target is None else [Path(path) for path, _ in _matches(entry.target)]
    if len(others) != len(found):
        raise DataError(f"data.corpus: {entry.path} names {len(found)} files and its target {entry.target} {len(others)}; name as many")
    about = partial(replace, sides=None if entry.sides is None else (entry.sides[0], entry.sides[1]), prefix=entry.prefix or "")
    return [about(file, split=entry.split or file.split, target=other) for file, other in zip(found, others, strict=True)]


def _matches(pattern: str) -> list[tuple[str, str | None]]:
    """Files, and of those of a saved data set the split that they are of."""
    expanded = os.path.expanduser(pattern)
    if os.path.isfile(expanded):
        return [(expanded, None)]
    if os.path.isdir(expanded):
        if saved.is_saved(Path(expanded)):
            return [(str(path), split) for path, split in saved.files(Path(expanded))]
        raise DataError(f"data.corpus: {pattern} is a folder; name its files, for example {pattern.rstrip('/')}/*.txt")
    found = sorted(path for path in glob.glob(expanded, recursive=True) if os.path.isfile(path))
    if not found:
        what = "no file matches it" if glob.has_magic(expanded) else "there is no such file"
        raise DataError(f"data.corpus: {pattern}: {what} (looked from {os.getcwd()})")
    return [(path, None) for path in found]


def _format(path: str, paired: bool) -> Format:
    stem = Path(path)
    suffix = stem.with_suffix("").suffix if stem.suffix in streams.COMPRESSIONS else stem.suffix
    return (_FORMATS | (_OF_PAIRS if paired else {})).get(suffix.lower(), "text")


def _plain(path: Path, data: spec.Data, on_read: Callable[[int], None]) -> Iterator[Item]:
    """Line breaks beside a separator belong to it, not to the documents."""
    if data.chat is not None:
        raise DataError(f"{path}: is plain text, and data.chat asks for conversations; use JSONL or Parquet")
    if data.needed_fields or data.objective.labelled:
        asked = ", ".join(f"{name} = {field!r}" for name, field in data.needed_fields.items()) or "data.objective"
        raise DataError(f"{path}: is plain text, and {asked} asks for a field of rows; use JSONL or Parquet")
    for offset, piece in streams.cut(streams.read(path, on_read), data.separator.encode(), data.largest):
        yield _usable(f"{path}, byte {offset}", piece, data, partial(_stripped, path, offset, piece))


def _stripped(path: Path, offset: int, piece: bytes) -> Document:
    return Document(streams.text(path, offset, piece).strip("\r\n"), offset, {})


def _pairs(file: SourceFile, data: spec.Data, on_read: Callable[[int], None]) -> Iterator[Item]:
    """What is parallel in another way than by fields of rows."""
    if file.target is not None:
        found = parallel.aligned(file.path, file.target, data.largest, on_read)
    elif file.format == "tsv":
        found = parallel.table(file.path, file.sides, data.largest, on_read)
    else:
        found = parallel.catalogue(file.path, on_read)
    for place, number, raw, made in found:
        yield _usable(place, raw, data, lambda: _pair(place, number, made(), file, data, {}))  # noqa: B023


def _pair(place: str, number: int, pair: parallel.Pair, file: SourceFile, data: spec.Data, fields: dict[str, Any]) -> Document:
    """Its text is the pair as JSON, or, for a decoder, the conversation that it is."""
    whole = parallel.checked(place, pair)
    if whole is None:
        return Document("", number, fields)
    sides = [file.prefix + whole[0], whole[1]]
    if data.chat is not None:
        said = [{"role": role, "content": side} for role, side in zip(("user", "assistant"), sides, strict=True)]
        return Document(
            json.dumps(chat.checked(place, said, data.chat.system, answered=True), ensure_ascii=False), number, fields, whole[0]
        )
    return Document(json.dumps(sides, ensure_ascii=False), number, fields, whole[0])


def _jsonl(file: SourceFile, data: spec.Data, on_read: Callable[[int], None]) -> Iterator[Item]:
    for number, (offset, line) in enumerate(streams.cut(streams.read(file.path, on_read), b"\n", data.largest), start=1):
        if line and not line.isspace():
            yield _usable(f"{file.path}:{number}", line, data, partial(_line, file, number, offset, line, data))


def _line(file: SourceFile, number: int, offset: int, line: bytes, data: spec.Data) -> Document:
    return _row(f"{file.path}:{number}", number, streams.text(file.path, offset, line), file, data)


def _usable(place: str, raw: bytes, data: spec.Data, made: Callable[[], Document]) -> Item:
    """The document, or why there is none."""
    if data.largest is not None and len(raw) > data.largest:
        return Unusable(place, "too large", f"is larger than data.largest = {data.largest:,} bytes; is a separator missing?", raw)
    try:
        document = made()
        _check_printable(place, document.text)
        return document
    except Unusable as unusable:
        unusable.raw = raw
        return unusable


def _check_printable(place: str, text: str) -> None:
    if text and not text.isspace() and not any(map(str.isprintable, text)):
        raise Unusable(place, "control characters", "holds control characters alone, which are no text")


def _row(place: str, number: int, line: str, file: SourceFile, data: spec.Data) -> Document:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise Unusable(place, "not JSON", f"is not JSON: {error}") from None
    if not isinstance(row, dict):
        raise Unusable(place, "no object", f"is not a JSON object; each line must be one with the text under {data.field!r}")
    return _of_row(place, number, row, file, data)


def _of_row(place: str, number: int, row: dict[str, Any], file: SourceFile, data: spec.Data) -> Document:
    """The document of a row, of JSONL or of a table. Raises Unusable."""
    if data.translates:
        return _row_of_sides(place, number, row, file, data)
    if data.chat is not None:
        return _conversation(place, number, row, data)
    if labels.has_parts(data.objective):
        return Document(labels.document(place, row, data), number, _fields(place, row, data))
    if data.field not in row:
        why = f"has no {data.field!r}; its keys are {', '.join(map(repr, row)) or 'none'}; set data.field"
        raise Unusable(place, "no field", why)
    return Document(_checked(place, data.field, row[data.field]), number, _fields(place, row, data))


def _row_of_sides(place: str, number: int, row: dict[str, Any], file: SourceFile, data: spec.Data) -> Document:
    pair = parallel.of_row(place, row, file.sides or parallel.FIELDS)
    return _pair(place, number, pair, file, data, _fields(place, row, data))


def _conversation(place: str, number: int, row: dict[str, Any], data: spec.Data) -> Document:
    """Its text is its messages as JSON, in one way alone: what a document is known by."""
    assert data.chat is not None
    messages = chat.conversation(place, row, data.chat)
    return Document(json.dumps(messages, ensure_ascii=False), number, _fields(place, row, data))


def _fields(place: str, row: dict[str, Any], data: spec.Data) -> dict[str, Any]:
    """What settings ask for besides the text. Raises Unusable: a field that the row lacks, or of another kind."""
    return {field: _value(place, row, setting, field, data) for setting, field in data.needed_fields.items()}


def _value(place: str, row: dict[str, Any], setting: str, field: str, data: spec.Data) -> Any:
    value = row.get(field)
    if value is None:
        raise Unusable(place, "no field", f"has no {field!r}, which {setting} asks for; its keys are {', '.join(map(repr, row))}")
    value = value.isoformat() if isinstance(value, date) else value
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    since = next((each for each in (data.split.validation_from, data.split.test_from) if each is not None), None)
    asked = "a number" if field in data.numbers else None
    if setting == "data.split.by" and since is not None:
        asked = "text" if isinstance(since, str) else "a number"
    if (asked == "a number" and not number) or (asked == "text" and not isinstance(value, str)):
        raise Unusable(place, "wrong field", f"{field!r} is {value!r}, and {setting} asks for {asked}")
    return value


def _checked(place: str, field: str, value: Any) -> str:
    if not isinstance(value, str):
        raise Unusable(place, "no text", f"{field!r} is {type(value).__name__}, not text; set data.field to the key that holds the text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise Unusable(place, "no text", f"{field!r} holds half of a surrogate pair, which is no text") from None
    return value


def _table(file: SourceFile, data: spec.Data, on_read: Callable[[int], None]) -> Iterator[Item]:
    rows = tables.rows(file.path, file.format, lambda names: _columns(file, names, data), on_read)
    for number, row in enumerate(rows, 1):
        yield _table_row(f"{file.path}, row {number}", number, row, file, data)


def _columns(file: SourceFile, names: list[str], data: spec.Data) -> list[str]:
    """The columns to read. Raises Unusable: the file lacks one."""
    if data.translates:
        sides = [side if side in names else side.partition(".")[0] for side in file.sides or parallel.FIELDS]
        return [name for name in dict.fromkeys([*sides, *data.needed_fields.values()]) if name in names]
    if data.chat is not None:
        asked = [name for name in (data.chat.messages, data.chat.prompt, data.chat.answer) if name in names]
        return list(dict.fromkeys([*asked, *data.needed_fields.values()]))
    wanted = list(dict.fromkeys([*labels.fields_of(data), *data.needed_fields.values()]))
    for field in wanted:
        if field not in names:
            why = f"has no column {field!r}; its columns are {', '.join(names)}; set data.field"
            raise Unusable(str(file.path), "no field", why)
    return wanted


def _table_row(place: str, number: int, row: dict[str, Any], file: SourceFile, data: spec.Data) -> Item:
    value = row.get(data.field)
    raw = value if isinstance(value, str) else json.dumps(row, ensure_ascii=False, default=str)
    return _usable(place, raw.encode("utf-8", "surrogatepass"), data, partial(_of_row, place, number, row, file, data))
