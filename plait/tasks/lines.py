"""Lines in, their translations out: from arguments, a file or standard input, to a file or standard output, as they come."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from plait.data import streams
from plait.data.scoring import Scorer, Scores
from plait.errors import UserError
from plait.tasks.translate import OnDone, Translator

WINDOW = 64
"""Batches that are translated before any of them is written: lines of like lengths are searched together."""


def translate_lines(translator: Translator, lines: Iterable[str]) -> None:
    """Each to standard output, as it comes."""
    for number, line in enumerate(lines, 1):
        print(translator.translate([line], first=number)[0], flush=True)
    _tell_longer(translator)


def translate_file(translator: Translator, file: Path, out: Path | None, against: Path | None) -> tuple[int, Scores, Scores, str] | None:
    """The lines of a file, to another or to standard output. against: right translations, line by line, that the result is compared with:
    then (how many, scores, those of copying the source, how they were counted). Raises UserError."""
    lines = _lines(file)
    right = None if against is None else _lines(against)
    if right is not None and len(right) != len(lines):
        raise UserError(
            f"--against {against}: has {len(right):,} lines and {file} {len(lines):,}; the two must belong together, line by line"
        )
    scorer = None if right is None else Scorer(right)
    translated: list[str] = []
    with _written(out) as target, _progress(len(lines)) as done:
        window = WINDOW * translator.batch
        for first in range(0, len(lines), window):
            some = translator.translate(lines[first : first + window], lambda count: done(first + count), first + 1)  # noqa: B023
            translated += some
            target.write("".join(f"{line}\n" for line in some))
            target.flush()
    _tell_longer(translator)
    return None if scorer is None else (len(lines), scorer.scores(translated), scorer.scores(lines), scorer.signature)


def _lines(path: Path) -> list[str]:
    """Of a text file, compressed or not. Raises UserError."""
    if not path.is_file():
        raise UserError(f"{path}: there is no such file")
    return [streams.text(path, offset, line).rstrip("\r") for offset, line in streams.cut(streams.read(path), b"\n")]


@contextmanager
def _written(out: Path | None) -> Iterator[TextIO]:
    if out is None:
        yield sys.stdout
        return
    try:
        with out.open("w", encoding="utf-8") as file:
            yield file
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written: {error.strerror}") from None


@contextmanager
def _progress(total: int) -> Iterator[OnDone]:
    """A bar on a terminal, nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("translating"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=total)
        yield lambda count: bar.update(task, completed=count)


def _tell_longer(translator: Translator) -> None:
    if translator.longer:
        done = {"cut": "cut off", "skip": "left empty", "fail": ""}[translator.policy]
        most = translator.trained.run.data.sequence - 1
        print(f"{translator.longer} lines were longer than the {most} tokens of a source, and were {done}", file=sys.stderr)
