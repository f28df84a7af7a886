"""plait classify: texts from the command line, standard input or a file, and what is printed of each.

A text is a line. Of JSONL it is the row's field that the model was trained on; a model that reads two texts takes both fields, or two parts
of a line with a tab between them. A model that labels words takes words with spaces between them, or lists of words.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from plait.data.labels import fields_of
from plait.errors import UserError
from plait.tasks.classify import Classified, Numbered, Tagged, Text, classify, needs_head, numbers, tag
from plait.tasks.trained import Trained

Told = Classified | Numbered | Tagged
AT_ONCE = 256


def label(trained: Trained, texts: Sequence[str], file: Path | None = None) -> Iterator[Told]:
    """What the model tells of each text, as they come; of standard input where there are no texts and no file. Raises UserError."""
    needs_head(trained, "classify", "regress", "tag")
    if texts and file is not None:
        raise UserError(f"--on {file}: texts are given as arguments too; leave one out")
    given = _arguments(trained, texts) if texts else _lines(trained, file)
    kind = trained.run.data.objective.kind
    coming = iter(given)
    while some := list(islice(coming, AT_ONCE)):
        if kind == "tag":
            yield from tag(trained, [_words(trained, each) for each in some])
        else:
            tell: Any = classify if kind == "classify" else numbers
            yield from tell(trained, some)


def line(told: Told) -> str:
    """Label and probability, or a number, before the text; or each word with its label behind it."""
    if isinstance(told, Tagged):
        return " ".join(f"{word}/{label or '?'}" for word, label in zip(told.words, told.labels, strict=True))
    text = told.text if isinstance(told.text, str) else " | ".join(told.text)
    return f"{told.label}  {told.probability:.1%}  {text}" if isinstance(told, Classified) else f"{told.value:.4g}  {text}"


def as_json(told: Told) -> str:
    return json.dumps(asdict(told), ensure_ascii=False)


def _arguments(trained: Trained, texts: Sequence[str]) -> list[Any]:
    if trained.run.data.objective.pair is None:
        return list(texts)
    if len(texts) % 2:
        raise UserError(f"{trained.folder}: reads two texts at a time, and there are {len(texts)}")
    return list(zip(texts[::2], texts[1::2], strict=True))


def _lines(trained: Trained, file: Path | None) -> Iterator[Any]:
    """Each row of a file, or line of standard input, that is not empty."""
    try:
        with file.open(encoding="utf-8") if file is not None else sys.stdin as stream:
            for number, row in enumerate(stream, 1):
                if row.strip():
                    yield _read(trained, f"{file or 'standard input'}:{number}", row.rstrip("\r\n"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--on {file}: cannot be read: {error}") from None


def _read(trained: Trained, place: str, row: str) -> Any:
    if row.lstrip().startswith("{"):
        return _fields(trained, place, row)
    if trained.run.data.objective.pair is None:
        return row
    first, _, second = row.partition("\t")
    if not (first.strip() and second.strip()):
        raise UserError(f"{place}: {trained.folder} reads two texts at a time; write them with a tab between them")
    return first, second


def _fields(trained: Trained, place: str, row: str) -> Any:
    data = trained.run.data
    names = [data.field] if data.objective.kind == "tag" else fields_of(data)
    try:
        found = json.loads(row)
    except ValueError as error:
        raise UserError(f"{place}: is not JSON: {error}") from None
    missing = [name for name in names if name not in found]
    if missing:
        raise UserError(f"{place}: has no {missing[0]!r}, which the model reads; its keys are {', '.join(map(repr, found))}")
    values = [found[name] for name in names]
    right = _is_words if data.objective.kind == "tag" else _is_text
    if not all(map(right, values)):
        wanted = "a list of words" if data.objective.kind == "tag" else "text"
        raise UserError(f"{place}: {', '.join(map(repr, names))} must be {wanted}, and not empty")
    return values[0] if len(values) == 1 else tuple(values)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_words(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_text, value))


def _words(trained: Trained, given: str | list[str] | Text) -> list[str]:
    """Of a text where words stand with nothing between them, its characters."""
    if isinstance(given, list):
        return given
    assert isinstance(given, str)
    words = given.split() if trained.run.data.objective.between != "" else [sign for sign in given if not sign.isspace()]
    if not words:
        raise UserError("there is an empty text, of which nothing can be told")
    return words
