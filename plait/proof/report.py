"""The report of a comparison: one HTML page that needs nothing else, and every figure of it as JSON.

The page is well-formed XML too. It is light or dark as its reader's screen is, and light on paper.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w

from plait.proof import amounts, plots
from plait.proof.compare import Comparison, Result, Trial
from plait.proof.figures import Curve, Figures
from plait.proof.markup import text
from plait.proof.plots import Bar, Look, Quantiles, Series
from plait.proof.verdict import verdict

VERSION = 1
STYLE = Path(__file__).with_name("report.css")
_COLOURS = {"local_sgd": 1, "diloco": 2, "synchronous": 3, "bounded": 4, "asynchronous": 5, "allreduce": 0, "phases": 6}
_DASHES = {"bf16": "9 3", "fp16": "9 3 2 3", "int8": "5 3", "topk": "2 2.5"}
_FEW = 4
"""Replicas of which each has a line of its own."""
_DASH = "–"


def write(comparison: Comparison, out: Path, command: str) -> None:
    """OUT/compare.html and OUT/compare.json. command: what was typed, for others to repeat."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "compare.json").write_text(json.dumps(as_dict(comparison, command), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    (out / "compare.html").write_text(page(comparison, command), encoding="utf-8")


# --- JSON --------------------------------------------------------------------------------------------------------


def as_dict(comparison: Comparison, command: str) -> dict[str, Any]:
    """Every figure; what is not known or not finite is null. docs/compare.md says what each is."""
    return {
        "version": VERSION,
        "command": command,
        "verdict": verdict(comparison),
        "reference": comparison.reference.variant.name,
        "parameters": comparison.parameters,
        "replicas": comparison.replicas,
        "seeds": comparison.seeds,
        "emulated": comparison.emulated,
        "place": asdict(comparison.place),
        "run": comparison.run.resolved(),
        "variants": [_variant_row(result) for result in comparison.results],
    }


def _variant_row(result: Result) -> dict[str, Any]:
    spreads = {
        "mean": {name: spread.mean for name, spread in result.numbers.items()},
        "deviation": {name: spread.deviation for name, spread in result.numbers.items()},
        "difference": {name: asdict(spread) for name, spread in result.differences.items()},
        "ratio": {name: asdict(spread) for name, spread in result.ratios.items()},
    }
    named = {"name": result.variant.name, "sync": result.variant.sync, "chosen": result.variant.chosen, "why": result.why}
    return {**named, **spreads, "trials": [_trial_row(trial) for trial in result.trials]}


def _trial_row(trial: Trial) -> dict[str, Any]:
    row: dict[str, Any] = {"seed": trial.seed, "folder": str(trial.folder), "why": trial.why}
    if trial.figures is None or trial.score is None:
        return row
    figures = asdict(trial.figures)
    drawn = _drawn(trial.figures.curve)
    figures["curve"] = {
        "tokens": [point[0] for point in drawn],
        "seconds": [point[1] for point in drawn],
        "loss": [point[2] if math.isfinite(point[2]) else None for point in drawn],
    }
    score = {name: value if not isinstance(value, float) or math.isfinite(value) else None for name, value in trial.score.as_dict().items()}
    return {**row, **figures, "validation": score}


# --- the page ----------------------------------------------------------------------------------------------------


def page(comparison: Comparison, command: str) -> str:
    """The whole of it; sections in the order of a reader's questions."""
    title = _title(comparison)
    sections = [
        _head(comparison, title),
        _outcome(comparison),
        _curves(comparison),
        _traffic(comparison),
        _staleness(comparison),
        _settings(comparison),
        _again(comparison, command),
    ]
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en" xmlns="http://www.w3.org/1999/xhtml"><head><meta charset="utf-8"/>',
            '<meta name="viewport" content="width=device-width, initial-scale=1"/><meta name="color-scheme" content="light dark"/>',
            f"<title>{text(title)}</title><style>{STYLE.read_text(encoding='utf-8')}</style></head><body><main>",
            *(section for section in sections if section),
            "</main></body></html>\n",
        ]
    )


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


# --- the table ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Column:
    """name: the figure's. against: what stands in small letters beneath, a ratio to the reference or a difference from it.
    best: the least or the most, or nothing that a run could be best at."""

    title: str
    name: str
    show: Callable[[float], str]
    against: str = ""
    best: Callable[[Iterable[float]], float] | None = min


def _columns() -> list[Column]:
    return [
        Column("time", "seconds", amounts.seconds, "ratio"),
        Column("tokens/s", "tokens_per_s", amounts.number, "", max),
        Column("sent", "sent", amounts.size, "ratio"),
        Column("waiting", "waited_share", amounts.percent),
        Column("training loss", "train_loss", amounts.loss, "difference"),
        Column("validation loss", "loss", amounts.loss, "difference"),
        Column("perplexity", "perplexity", amounts.perplexity, "difference"),
        Column("accuracy", "accuracy", amounts.accuracy, "points", max),
    ]


def _outcome(comparison: Comparison) -> str:
    columns, results = _columns(), comparison.results
    heads = "".join(f'<th scope="col">{text(column.title)}</th>' for column in columns)
    best = {column.name: _best(column, results) for column in columns}
    rows = "".join(_outcome_row(result, columns, best, comparison) for result in results)
    spread = " ± is the deviation over seeds." if comparison.seeds > 1 else " One seed: how much chance alone would change is not known."
    return (
        f'<section><h2>Outcome</h2><div class="scroll"><table><thead><tr><th scope="col">{_what(comparison)}</th>{heads}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
        f'<p class="note"><b class="best">Best</b> of each column; beneath, against {text(comparison.reference.variant.name)}.{spread} '
        "Time is the clock's, for the whole budget. Sent: bytes, all replicas. Waiting: the share of replicas' time spent on communication "
        "that computing did not hide. Training loss: the mean of the last 5% of steps. Validation loss and the accuracy of the next token: "
        "the final model, on the same sequences for all.</p></section>"
    )


def _what(comparison: Comparison) -> str:
    return "run" if comparison.existing else "sync"


def _best(column: Column, results: Sequence[Result]) -> float | None:
    """By what is shown: figures that look alike are all best. None where all do, and nothing is."""
    known = [result.numbers[column.name].mean for result in results if column.name in result.numbers]
    shown = {column.show(value) for value in known}
    return None if column.best is None or len(shown) < 2 else column.best(known)


def _outcome_row(result: Result, columns: Sequence[Column], best: dict[str, float | None], comparison: Comparison) -> str:
    name = f'<th scope="row">{_key(result, comparison)}{text(result.variant.name)}</th>'
    if result.why is not None:
        return f'<tr>{name}<td class="failed" colspan="{len(columns)}">did not end: {text(result.why)}</td></tr>'
    is_reference = result is comparison.reference
    return f"<tr>{name}{''.join(_cell(result, column, best[column.name], is_reference) for column in columns)}</tr>"


def _cell(result: Result, column: Column, best: float | None, is_reference: bool) -> str:
    spread = result.numbers.get(column.name)
    if spread is None:
        return f"<td>{_DASH}</td>"
    shown = text(column.show(spread.mean))
    shown = f'<b class="best">{shown}</b>' if best is not None and column.show(best) == column.show(spread.mean) else shown
    beneath = "" if is_reference else _against(result, column)
    beneath = beneath or (f"± {column.show(spread.deviation)}" if spread.deviation is not None and not column.against else "")
    if is_reference:
        beneath = f"± {column.show(spread.deviation)}" if spread.deviation is not None else "reference" if column.against else ""
    return f"<td>{shown}<small>{text(beneath)}</small></td>"


def _against(result: Result, column: Column) -> str:
    if column.against == "ratio" and column.name in result.ratios:
        return amounts.ratio(result.ratios[column.name])
    if column.against in ("difference", "points") and column.name in result.differences:
        scale, decimals = (100, 2) if column.against == "points" else (1, 4)
        return amounts.difference(result.differences[column.name], scale, 2 if column.name == "perplexity" else decimals)
    return ""


# --- plots -------------------------------------------------------------------------------------------------------


def looks(comparison: Comparison) -> dict[str, Look]:
    """Of each variant: the strategy's colour and the codec's dash; of runs that exist, one after the other."""
    if comparison.existing:
        dashes = ["", *_DASHES.values()]
        names = [result.variant.name for result in comparison.results]
        return {name: Look(number % 7, dashes[number // 7 % len(dashes)]) for number, name in enumerate(names)}
    parts = [(result.variant.name, *result.variant.name.partition("/")) for result in comparison.results]
    return {name: Look(_COLOURS[mode], _DASHES.get(codec, "")) for name, mode, _, codec in parts}


def _key(result: Result, comparison: Comparison) -> str:
    look = looks(comparison)[result.variant.name]
    return f'<svg class="key" viewBox="0 0 22 8" aria-hidden="true"><line {look.stroke} x1="0" x2="22" y1="4" y2="4"/></svg>'


def _curves(comparison: Comparison) -> str:
    drawn = {result.variant.name: _mean_curve(result) for result in comparison.results if result.ended}
    y_range = _loss_range(drawn)
    by_tokens = {name: [(point[0], point[2]) for point in points] for name, points in drawn.items()}
    by_seconds = {name: [(point[1], point[2]) for point in points] for name, points in drawn.items()}
    over_tokens = _lines(comparison, by_tokens, "loss-tokens", "tokens", "training loss", y_range, amounts.count)
    over_seconds = _lines(comparison, by_seconds, "loss-seconds", "seconds", "training loss", y_range, amounts.number)
    apart = _apart(comparison, by_tokens)
    mean = "" if comparison.seeds == 1 else f", the mean of {comparison.seeds} seeds"
    return (
        f"<section><h2>Loss</h2><div class='pair'>{_figure('Over tokens', over_tokens)}{_figure('Over seconds', over_seconds)}</div>"
        f"<div class='pair'>{apart}{_losses(comparison)}</div>"
        f'<p class="note">Nats a token, running means{mean}; the broad pale line is {text(comparison.reference.variant.name)}. '
        "The beginning of the run is above the plots. During rounds of local steps the loss is the mean over replicas, each at its own "
        "parameters; what the agreed model is worth, the validation loss says.</p></section>"
    )


def _figure(caption: str, svg: str) -> str:
    return f"<figure><figcaption>{text(caption)}</figcaption>{svg}</figure>"


def _mean_curve(result: Result) -> list[tuple[float, float, float]]:
    """(tokens, seconds, loss) as drawn, the mean over seeds."""
    curves = np.array([_drawn(figures.curve) for figures, _ in result.ended])
    return [(float(tokens), float(seconds), float(loss)) for tokens, seconds, loss in curves.mean(axis=0)]


def _drawn(curve: Curve) -> list[tuple[float, float, float]]:
    """Smoothed over a fortieth of the run, and no more points than can be seen."""
    loss = plots.smoothed(curve.loss, max(1, len(curve.loss) // 40))
    indices = plots.thinned([(float(index), 0.0) for index in range(len(loss))])
    return [(curve.tokens[int(index)], curve.seconds[int(index)], loss[int(index)]) for index, _ in indices]


def _loss_range(drawn: dict[str, list[tuple[float, float, float]]]) -> tuple[float, float]:
    """From the lowest to what the highest curve has after a tenth of the run: what came before would flatten all the rest."""
    low = min((point[2] for points in drawn.values() for point in points if math.isfinite(point[2])), default=0.0)
    late = [point[2] for points in drawn.values() for point in points[len(points) // 10 :] if math.isfinite(point[2])]
    high = max(late, default=low)
    room = max(high - low, 1e-3 * abs(low), 1e-9)
    return low - 0.06 * room, high + 0.04 * room


def _lines(
    comparison: Comparison,
    points: dict[str, list[tuple[float, float]]],
    name: str,
    x_label: str,
    y_label: str,
    y_range: tuple[float, float],
    show: Callable[[float], str],
) -> str:
    reference, look = comparison.reference.variant.name, looks(comparison)
    series = [Series(each, look[each], along, wide=each == reference) for each, along in points.items()]
    return plots.lines(series, name, x_label, y_label, y_range, show, lambda value: amounts.tick(value, y_range))


def _apart(comparison: Comparison, by_tokens: dict[str, list[tuple[float, float]]]) -> str:
    """How far each curve is from the reference's at the same token; curves that overlap are told apart here."""
    reference = comparison.reference.variant.name
    x, y = np.array(by_tokens[reference]).T
    apart = {
        name: [(at, loss - float(np.interp(at, x, y))) for at, loss in points] for name, points in by_tokens.items() if name != reference
    }
    late = [value for points in apart.values() for _, value in points[len(points) // 10 :] if math.isfinite(value)]
    low, high = min(late, default=0.0), max(late, default=0.0)
    if high - low < 1e-9:
        return ""
    y_range = (min(low, 0) - 0.06 * (high - low), max(high, 0) + 0.06 * (high - low))
    drawn = _lines(
        comparison, {reference: [(at, 0.0) for at, _ in by_tokens[reference]], **apart}, "apart", "tokens", "loss", y_range, amounts.count
    )
    return _figure(f"Over tokens, less that of {reference}", drawn)


def _losses(comparison: Comparison) -> str:
    """Validation loss against seconds would hide in a table: bars of what it is above the best."""
    known = [result for result in comparison.results if "loss" in result.numbers]
    best = min(result.numbers["loss"].mean for result in known)
    look = looks(comparison)
    rows = [Bar(name := result.variant.name, look[name], (mean := result.numbers["loss"].mean) - best, f"{mean:.4f}") for result in known]
    if all(row.value < 1e-9 for row in rows):
        return ""
    return _figure(f"Validation loss above the best, {best:.4f}", plots.bars(rows, "validation", "validation loss above the best"))


def _traffic(comparison: Comparison) -> str:
    known = [result for result in comparison.results if result.ended]
    look = looks(comparison)
    sent = [
        Bar(result.variant.name, look[result.variant.name], result.numbers["sent"].mean, _sent_label(result, comparison))
        for result in known
        if "sent" in result.numbers
    ]
    bytes_ = _figure("Bytes sent, all replicas", plots.bars(sent, "sent", "bytes sent")) if sent else ""
    waits = [row for result in known for row in _waiting_rows(result, look[result.variant.name])]
    drawn = (
        plots.quantiles(waits, "waiting", "waiting for one agreement: disc p50, bar p95, ring longest", amounts.power_of_ten)
        if waits
        else ""
    )
    waiting = _figure("Sync latency", drawn) if drawn else ""
    return (
        f"<section><h2>Communication</h2><div class='pair'>{bytes_}{waiting}</div>{_traffic_table(known, comparison)}"
        '<p class="note">Sync latency is what an agreement took that computing did not hide: a step, or of local steps a round; of a '
        "parameter server, all pushes of a step. Bandwidth: bytes sent by the seconds in which some were under way, "
        "the mean over replicas, "
        "and beside it the share of what the link was measured to carry before the first step. Hidden: the share of communication that "
        "computing hid. Slowest: how often each replica was the one that the others waited for.</p></section>"
    )


def _sent_label(result: Result, comparison: Comparison) -> str:
    sent = amounts.size(result.numbers["sent"].mean)
    return sent if result is comparison.reference or "sent" not in result.ratios else f"{sent}, {amounts.ratio(result.ratios['sent'])}"


def _waiting_rows(result: Result, look: Look) -> list[Quantiles]:
    """A row for each replica where there are few, else one for all; of several seeds the first."""
    figures = result.ended[0][0]
    by_replica = figures.waiting_by_replica
    if len(by_replica) > _FEW or not by_replica:
        rows = [("", figures.waiting)] if figures.waiting else []
    else:
        rows = [(f" {replica}", waiting) for replica, waiting in by_replica.items()]
    named = [(f"{result.variant.name}{replica}", wait) for replica, wait in rows if wait.longest > 0]
    return [Quantiles(name, look, wait.p50, wait.p95, wait.longest) for name, wait in named]


def _traffic_table(results: Sequence[Result], comparison: Comparison) -> str:
    heads = ["bytes/token", "communicating", "hidden", "bandwidth", "of the link", "p50", "p95", "longest", "slowest"]
    rows = "".join(
        f'<tr><th scope="row">{_key(result, comparison)}{text(result.variant.name)}</th>'
        f"{''.join(f'<td>{text(cell)}</td>' for cell in _traffic_cells(result))}</tr>"
        for result in results
    )
    head = "".join(f'<th scope="col">{text(title)}</th>' for title in heads)
    heads_ = f'<thead><tr><th scope="col">{_what(comparison)}</th>{head}</tr></thead>'
    return f'<div class="scroll"><table>{heads_}<tbody>{rows}</tbody></table></div>'


def _traffic_cells(result: Result) -> list[str]:
    shown: list[tuple[str, Callable[[float], str]]] = [
        ("sent_per_token", amounts.number),
        ("communicating", amounts.seconds),
        ("overlapped", amounts.percent),
        ("bandwidth", amounts.rate),
        ("bandwidth_share", amounts.percent),
        ("wait_p50", amounts.milliseconds),
        ("wait_p95", amounts.milliseconds),
        ("wait_longest", amounts.milliseconds),
    ]
    cells = [show(result.numbers[name].mean) if name in result.numbers else _DASH for name, show in shown]
    return [*cells, _slowest(result.ended[0][0])]


def _slowest(figures: Figures) -> str:
    whole = sum(figures.slowest.values())
    if not whole:
        return _DASH
    most = sorted(figures.slowest.items(), key=lambda item: -item[1])[:_FEW]
    return ", ".join(f"{replica}: {amounts.percent(count / whole)}" for replica, count in most)


def _staleness(comparison: Comparison) -> str:
    """Pushes by how late they were, all seeds together, of what applies them as they come."""
    look, drawn = looks(comparison), []
    for number, result in enumerate(comparison.results):
        counts: dict[int, int] = {}
        for figures, _ in result.ended:
            for late, count in figures.staleness.items():
                counts[late] = counts.get(late, 0) + count
        if counts:
            mean = sum(late * count for late, count in counts.items()) / sum(counts.values())
            name = result.variant.name
            drawn.append(_figure(f"{name}: mean {mean:.2f}, most {max(counts)}", _histogram(counts, look[name], number)))
    if not drawn:
        return ""
    note = "Pushes by how many updates older than the newest the parameters were from which they were computed."
    return f"<section><h2>Staleness</h2><div class='several'>{''.join(drawn)}</div><p class='note'>{note}</p></section>"


def _histogram(counts: dict[int, int], look: Look, number: int) -> str:
    return plots.histogram(counts, look, f"staleness-{number}", "updates late")


# --- settings, and how to repeat it --------------------------------------------------------------------------------


def _settings(comparison: Comparison) -> str:
    rows = "".join(
        f'<tr><th scope="row">{_key(result, comparison)}{text(result.variant.name)}</th><td class="left">{_settings_of(result)}</td></tr>'
        for result in comparison.results
    )
    run = comparison.run.resolved()
    run.pop("sync", None)
    chosen = any(result.variant.chosen for result in comparison.results)
    note = '<p class="note">Settings marked * are plait compare\'s: the run file does not say.</p>' if chosen else ""
    return (
        '<section><h2>Settings</h2><div class="scroll"><table class="settings"><thead><tr><th scope="col">run</th>'
        f'<th class="left" scope="col">[sync]</th></tr></thead><tbody>{rows}</tbody></table></div>{note}{_interruptions(comparison)}'
        f"<details><summary>The rest of the run file{'' if not comparison.existing else ', of the first'}</summary>"
        f"<pre>{text(tomli_w.dumps(run))}</pre></details></section>"
    )


def _settings_of(result: Result) -> str:
    shown = []
    for key, value in result.variant.sync.items():
        said = tomli_w.dumps({key: value}).strip() if not isinstance(value, dict | list) else f"{key} = {json.dumps(value)}"
        shown.append(f"<code>{text(said)}</code>{'*' if key in result.variant.chosen else ''}")
    return "<span>" + "</span> <span>".join(shown) + "</span>"


def _interruptions(comparison: Comparison) -> str:
    """What disturbed a run is not its strategy's doing, and readers should know."""
    told = [
        f"{result.variant.name} (seed {trial.seed}): {figures.lost} processes lost, {figures.rolled_back} times rolled back, "
        f"{figures.skipped} steps skipped"
        for result in comparison.results
        for trial in result.trials
        if (figures := trial.figures) is not None and (figures.lost or figures.rolled_back or figures.skipped)
    ]
    return f'<p class="note">Not undisturbed: {text("; ".join(told))}.</p>' if told else ""


def _again(comparison: Comparison, command: str) -> str:
    folders = sorted({str(trial.folder) for result in comparison.results for trial in result.trials})
    first = folders[0]
    return (
        f"<section><h2>Again</h2><pre>{text(command)}</pre>"
        f'<p class="note">Each run is in a folder of its own, with its run file and its journal: <code>{text(first)}</code>'
        f"{text(f' and {len(folders) - 1} more beside it') if len(folders) > 1 and not comparison.existing else ''}. "
        "The figures of this page are in compare.json.</p></section>"
    )
