"""A prepared corpus, as a person asks for it: found by its folder or its run file, and told in tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from plait import spec
from plait.cluster.plans import cost_of
from plait.data import kept, skew, statistics
from plait.data.prepare import find
from plait.data.statistics import QUANTILES, Lengths, Statistics
from plait.data.tokens import Prepared
from plait.errors import DataError


def opened(what: Path, overrides: Iterable[str] = ()) -> Prepared:
    """What was prepared: in a folder, or for a run file. Raises DataError, RunFileError."""
    if what.suffix != ".toml" or what.is_dir():
        return Prepared.open(what)
    prepared = find(spec.load(what, overrides).data)
    if prepared is None:
        raise DataError(f"{what}: its corpus is not prepared, or has changed since; run plait data prepare {what}")
    return prepared


def told(what: Path, overrides: Iterable[str] = ()) -> tuple[Prepared, Statistics]:
    """What was prepared, and what it holds; by a run file also what the pieces of its steps cost. Raises as `opened`."""
    prepared = opened(what, overrides)
    if what.is_dir():
        return prepared, statistics.of(prepared)
    run = spec.load(what, overrides)
    return prepared, statistics.of(prepared, skew.pieces(prepared, run.train, cost_of(run, prepared.vocabulary)))


def verified(run_file: Path, overrides: Iterable[str] = ()) -> Iterator[str]:
    """What is said while all that was prepared for a run file is read, in its home and in its backup, and each is mended from the other.
    Raises DataError, StorageError: damaged, and no sound copy is there."""
    data = spec.load(run_file, overrides).data
    prepared = find(data)
    if prepared is None:
        raise DataError(f"{run_file}: its corpus is not prepared, or has changed since; run plait data prepare {run_file}")
    yield from kept.verified(data, prepared.manifest.request)


def print_statistics(told: Statistics) -> None:
    """Tables of what was read and what stayed."""
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{told.kept:,} of {told.read:,} documents kept, {told.tokens.total:,} tokens of {told.before.total:,} characters read\n")
    _print(
        console, ["split", "documents", "tokens"], [[name, f"{count:,}", f"{tokens:,}"] for name, (count, tokens) in told.splits.items()]
    )
    sources = [
        [each.name, f"{each.read:,}", f"{each.kept:,}", f"{each.tokens:,}", f"{each.share_before:.1%}", f"{each.share_after:.1%}"]
        for each in told.sources
    ]
    _print(console, ["source", "read", "kept", "tokens", "share of text read", "share of tokens"], sources)
    _print(console, ["lengths", *(f"p{share * 100:g}" for share in QUANTILES), "mean", "in the longest 1%", "gini"], _lengths(told))
    filling = [["packed" if each.packed else "one a row", f"{each.rows:,}", f"{each.filled:.1%}", f"{each.cut:,}"] for each in told.filling]
    _print(console, ["rows of conversations or pairs", "rows", "tokens in them, not padding", "longer than a row"], filling)
    pieces = [[each.way, f"{each.filled:.1%}", f"{each.micro_batch:.2f}", f"{each.half:.2f}"] for each in told.pieces]
    _print(console, ["rows of a step", "tokens in them, not padding", "costliest micro-batch / mean", "costliest half / mean"], pieces)
    _print(console, ["changed by", "documents"], [[name, f"{count:,}"] for name, count in told.changes.items()])
    _print(console, ["dropped by", "documents", "share"], [[name, f"{n:,}", f"{n / told.read:.1%}"] for name, n in told.reasons.items()])
    _print(console, ["could not be used", "documents"], [[name, f"{count:,}"] for name, count in told.broken.items()])
    languages = [[name, f"{read:,}", f"{kept:,}"] for name, (read, kept) in list(told.languages.items())[:12]]
    _print(console, ["language", "read", "kept"], languages)


def _lengths(told: Statistics) -> list[list[str]]:
    rows: list[tuple[str, Lengths]] = [("characters read", told.before), ("characters kept", told.after), ("tokens kept", told.tokens)]
    return [
        [name, *(f"{value:,.0f}" for value in each.quantiles), f"{each.mean:,.0f}", f"{each.longest_share:.1%}", f"{each.gini:.2f}"]
        for name, each in rows
    ]


def _print(console: object, titles: list[str], rows: list[list[str]]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    if not rows:
        return
    assert isinstance(console, Console)
    table = Table(box=None, pad_edge=False)
    for number, title in enumerate(titles):
        table.add_column(title, justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    console.print(table)
    console.print()
