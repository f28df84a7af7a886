"""The page of a prepared corpus: what was read, what stayed, why the rest went; lengths, languages and sources before and after."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from plait.data.statistics import Lengths, Statistics
from plait.data.tokens import Prepared
from plait.proof.report import plots
from plait.proof.report.looks import figure
from plait.proof.report.markup import document, text
from plait.proof.report.plots import Bar, Look, Series

_BEFORE, _AFTER = Look(0, "5 3"), Look(1)
_MOST = 12
"""Reasons that a plot shows, and half as many languages and sources."""


def write_page(prepared: Prepared, told: Statistics, path: Path) -> None:
    path.write_text(page(prepared, told), encoding="utf-8")


def page(prepared: Prepared, told: Statistics) -> str:
    title = f"{told.kept:,} of {told.read:,} documents, {told.tokens.total:,} tokens"
    kept = told.kept / told.read if told.read else 0.0
    text_kept = told.after.total / told.before.total if told.before.total else 0.0
    sections = [
        f'<header><h1>{text(title)}</h1><p class="what">{text(prepared.folder)}</p>'
        f'<p class="verdict">{kept:.1%} of the documents and {text_kept:.1%} of the text stay.</p></header>',
        _splits(told),
        _lengths(told),
        _shares(told),
        _steps(prepared),
    ]
    return document(title, [section for section in sections if section])


def _splits(told: Statistics) -> str:
    rows = [[split, f"{documents:,}", f"{tokens:,}"] for split, (documents, tokens) in told.splits.items()]
    return f"<section><h2>Splits</h2>{_table(['split', 'documents', 'tokens'], rows)}</section>"


def _lengths(told: Statistics) -> str:
    rows = [
        [name, *(f"{value:,.0f}" for value in (each.mean, *each.quantiles)), f"{each.longest_share:.1%}", f"{each.gini:.2f}"]
        for name, each in (("characters read", told.before), ("characters kept", told.after), ("tokens kept", told.tokens))
    ]
    heads = ["", "mean", "p5", "p25", "median", "p75", "p95", "longest", "in the longest 1%", "Gini"]
    series = [Series("read", _BEFORE, _curve(told.before)), Series("kept", _AFTER, _curve(told.after))]
    top = max((share for each in series for _, share in each.points), default=1.0)
    drawn = plots.lines(
        series, "lengths", "characters of a document", "share of documents", (0.0, 1.15 * top), _power, lambda share: f"{share:.0%}"
    )
    note = "Gini: 0 where all documents are equally long, near 1 where a few hold everything."
    return (
        f"<section><h2>Lengths and reasons</h2><div class='pair'>{figure('Documents by length', drawn)}{_dropped(told)}</div>"
        f'{_table(heads, rows)}<p class="note">{text(note)}</p></section>'
    )


def _curve(lengths: Lengths) -> list[tuple[float, float]]:
    return [(float(power), count / max(1, lengths.documents)) for power, count in enumerate(lengths.bins)]


def _power(exponent: float) -> str:
    return f"{2**exponent:,.0f}"


def _shares(told: Statistics) -> str:
    sources = [
        row
        for each in told.sources[: _MOST // 2]
        for row in (
            Bar(f"{each.name} read", _BEFORE, each.share_before, f"{each.share_before:.1%}"),
            Bar("tokens", _AFTER, each.share_after, f"{each.share_after:.1%}"),
        )
    ]
    languages = [
        row
        for name, (read, kept) in list(told.languages.items())[: _MOST // 2]
        for row in (Bar(f"{name} read", _BEFORE, read, f"{read:,}"), Bar("kept", _AFTER, kept, f"{kept:,}"))
    ]
    drawn = figure("Share of text read, and of tokens, by source", plots.bars(sources, "sources", "shares of sources"))
    if languages:
        drawn += figure("Documents by language", plots.bars(languages, "languages", "documents by language"))
    return f'<section><h2>Sources and languages</h2><div class="pair">{drawn}</div></section>'


def _dropped(told: Statistics) -> str:
    rows = [Bar(name, _AFTER, count, f"{count:,}, {count / told.read:.1%}") for name, count in list(told.reasons.items())[:_MOST]]
    rows += [Bar(name, _BEFORE, count, f"{count:,}, not used") for name, count in told.broken.items()]
    return figure("Documents dropped, by reason", plots.bars(rows, "reasons", "documents dropped")) if rows else ""


def _steps(prepared: Prepared) -> str:
    lineage = prepared.manifest.lineage
    assert lineage is not None
    rows = [
        [step.name, step.kind, f"{step.documents:,}", ", ".join(f"{key} = {value}" for key, value in step.settings.items()), step.by]
        for step in lineage.steps
    ]
    return f"<section><h2>Steps</h2>{_table(['step', 'it', 'documents', 'settings', 'by'], rows)}</section>"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{text(title)}</th>' for title in heads)
    body = "".join(f'<tr><th scope="row">{text(row[0])}</th>{"".join(f"<td>{text(cell)}</td>" for cell in row[1:])}</tr>' for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
