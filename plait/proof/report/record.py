"""Every figure of a comparison as JSON."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from plait.proof.comparison import Comparison, Result, Trial
from plait.proof.report.curves import smoothed
from plait.proof.verdict import verdict

VERSION = 1


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
    along = smoothed(trial.figures.curve)
    figures["curve"] = {
        "tokens": [point[0] for point in along],
        "seconds": [point[1] for point in along],
        "loss": [point[2] if math.isfinite(point[2]) else None for point in along],
    }
    score = {name: value if not isinstance(value, float) or math.isfinite(value) else None for name, value in trial.score.as_dict().items()}
    return {**row, **figures, "validation": score}
