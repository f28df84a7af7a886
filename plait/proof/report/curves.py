"""Loss over tokens and over seconds."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from plait.proof import amounts
from plait.proof.comparison import Comparison, Result
from plait.proof.figures import Curve
from plait.proof.report import plots
from plait.proof.report.looks import figure, looks
from plait.proof.report.markup import text
from plait.proof.report.plots import Bar, Series


def curves(comparison: Comparison) -> str:
    drawn = {result.variant.name: _mean_curve(result) for result in comparison.results if result.ended}
    y_range = _loss_range(drawn)
    by_tokens = {name: [(point[0], point[2]) for point in points] for name, points in drawn.items()}
    by_seconds = {name: [(point[1], point[2]) for point in points] for name, points in drawn.items()}
    over_tokens = _lines(comparison, by_tokens, "loss-tokens", "tokens", "training loss", y_range, amounts.count)
    over_seconds = _lines(comparison, by_seconds, "loss-seconds", "seconds", "training loss", y_range, amounts.number)
    apart = _apart(comparison, by_tokens)
    mean = "" if comparison.seeds == 1 else f", the mean of {comparison.seeds} seeds"
    return (
        f"<section><h2>Loss</h2><div class='pair'>{figure('Over tokens', over_tokens)}{figure('Over seconds', over_seconds)}</div>"
        f"<div class='pair'>{apart}{_losses(comparison)}</div>"
        f'<p class="note">Nats a token, running means{mean}; the broad pale line is {text(comparison.reference.variant.name)}. '
        "The beginning of the run is above the plots. During rounds of local steps the loss is the mean over replicas, each at its own "
        "parameters; what the agreed model is worth, the validation loss says.</p></section>"
    )


def _mean_curve(result: Result) -> list[tuple[float, float, float]]:
    """(tokens, seconds, loss) as drawn, the mean over seeds."""
    curves = np.array([smoothed(figures.curve) for figures, _ in result.ended])
    return [(float(tokens), float(seconds), float(loss)) for tokens, seconds, loss in curves.mean(axis=0)]


def smoothed(curve: Curve) -> list[tuple[float, float, float]]:
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
    return figure(f"Over tokens, less that of {reference}", drawn)


def _losses(comparison: Comparison) -> str:
    """Validation loss against seconds would hide in a table: bars of what it is above the best."""
    known = [result for result in comparison.results if "loss" in result.numbers]
    best = min(result.numbers["loss"].mean for result in known)
    look = looks(comparison)
    rows = [Bar(name := result.variant.name, look[name], (mean := result.numbers["loss"].mean) - best, f"{mean:.4f}") for result in known]
    if all(row.value < 1e-9 for row in rows):
        return ""
    return figure(f"Validation loss above the best, {best:.4f}", plots.bars(rows, "validation", "validation loss above the best"))
