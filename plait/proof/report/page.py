"""The page: sections in the order of a reader's questions.

It is well-formed XML too; light or dark as its reader's screen is, and light on paper.
"""

from __future__ import annotations

from plait.proof import amounts
from plait.proof.comparison import Comparison
from plait.proof.report.curves import curves
from plait.proof.report.markup import document, text
from plait.proof.report.outcome import outcome
from plait.proof.report.settings import again, settings
from plait.proof.report.traffic import staleness, traffic
from plait.proof.verdict import verdict

_FEW = 4
"""Hosts that are named."""


def page(comparison: Comparison, command: str) -> str:
    """The whole of it; sections in the order of a reader's questions."""
    title = _title(comparison)
    sections = [
        _head(comparison, title),
        outcome(comparison),
        curves(comparison),
        traffic(comparison),
        staleness(comparison),
        settings(comparison),
        again(comparison, command),
    ]
    return document(title, [section for section in sections if section])


def _title(comparison: Comparison) -> str:
    emulated = ", over an emulated link" if comparison.emulated else ""
    ways = len(comparison.results)
    return f"{ways} {'runs' if comparison.existing else 'ways to agree' if ways > 1 else 'way to agree'}, one budget{emulated}"


def _head(comparison: Comparison, title: str) -> str:
    run, first = comparison.run, comparison.reference.ended[0][0]
    corpus = ", ".join(source if isinstance(source, str) else source.path for source in run.data.corpus)
    seeds = "" if comparison.seeds == 1 else f", {comparison.seeds} seeds each"
    what = (
        f"{run.model.family} of {comparison.parameters:,} parameters, {first.tokens:,} tokens of {corpus} in {first.steps:,} steps, "
        f"{comparison.replicas} replicas, {run.train.precision}{seeds}"
    )
    verdict_ = " ".join(text(sentence) for sentence in verdict(comparison))
    return (
        f'<header><h1>{text(title)}</h1><p class="what">{text(what)}<br/>{text(_where(comparison))}</p>'
        f'<p class="verdict">{verdict_}</p></header>'
    )


def _where(comparison: Comparison) -> str:
    place = comparison.place
    hosts = place.machine or (", ".join(place.hosts) if len(place.hosts) <= _FEW else f"{len(place.hosts)} hosts")
    where = f"on {', '.join(place.devices) or 'an unknown device'}: {hosts or 'host unknown'}"
    link = next((figures.link for figures, _ in comparison.reference.ended if figures.link), None)
    if link is None:
        return where
    kind = "emulated link" if link.emulated else "link"
    return f"{where}; {kind} between replicas: {amounts.milliseconds(link.latency)}, {amounts.rate(link.bandwidth)} by {link.backend}"
