"""What a comparison found: trainings, their figures over seeds, and each variant against the reference."""

from __future__ import annotations

import math
import os
import socket
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from plait import events, spec
from plait.ledger import journal
from plait.proof.figures import Figures
from plait.proof.variants import Variant
from plait.tasks.evaluate import Score
from plait.train.folder import read_run


@dataclass(frozen=True)
class Trial:
    """One training. why: what kept it from ending; figures and score are then None."""

    variant: str
    seed: int
    folder: Path
    figures: Figures | None
    score: Score | None
    why: str | None = None


@dataclass(frozen=True)
class Spread:
    """The mean over seeds, and the deviation of one seed from it (None where there is but one)."""

    mean: float
    deviation: float | None = None


@dataclass(frozen=True)
class Result:
    """All trials of a variant. differences: to the reference, of the same seeds; ratios: against it."""

    variant: Variant
    trials: list[Trial]
    numbers: dict[str, Spread]
    differences: dict[str, Spread]
    ratios: dict[str, Spread]

    @property
    def why(self) -> str | None:
        """What kept one of its trials from ending."""
        return next((trial.why for trial in self.trials if trial.why), None)

    @property
    def ended(self) -> list[tuple[Figures, Score]]:
        return [(trial.figures, trial.score) for trial in self.trials if trial.figures is not None and trial.score is not None]


@dataclass(frozen=True)
class Place:
    """Where it was trained. machine: what this host is, where this host was it."""

    hosts: list[str]
    devices: list[str]
    machine: str | None


@dataclass(frozen=True)
class Comparison:
    """The reference stands first. run: the reference's, resolved."""

    results: list[Result]
    run: spec.Run
    parameters: int
    replicas: int
    place: Place
    seeds: int
    existing: bool

    @property
    def reference(self) -> Result:
        return self.results[0]

    @property
    def emulated(self) -> bool:
        return any(figures.link is not None and figures.link.emulated for result in self.results for figures, _ in result.ended)


def summed_up(chosen: Sequence[Variant], trials: Sequence[Trial], existing: bool) -> Comparison:
    by_variant = {each.name: [trial for trial in trials if trial.variant == each.name] for each in chosen}
    references = by_variant[chosen[0].name]
    results = [_result(each, by_variant[each.name], references) for each in chosen]
    first = references[0].folder
    histories = [journal.read(trial.folder / "events.jsonl") for trial in trials]
    started = next((event for event in histories[0] if isinstance(event, events.Started)), None)
    return Comparison(
        results,
        read_run(first),
        started.parameters if started else 0,
        started.replicas if started else 1,
        _place([event for history in histories for event in history]),
        len(references),
        existing,
    )


def numbers_of(figures: Figures, score: Score) -> dict[str, float]:
    """The figures of a trial that are one number each, by the names that JSON has; what is not known is left out."""
    wait = figures.waiting
    waits = {} if wait is None else {"wait_p50": wait.p50, "wait_p95": wait.p95, "wait_longest": wait.longest}
    named = {name: getattr(figures, name) for name in _OF_FIGURES} | waits | {name: getattr(score, name) for name in _OF_SCORE}
    return {name: float(value) for name, value in named.items() if value is not None and math.isfinite(value)}


_OF_FIGURES = (
    "steps",
    "tokens",
    "seconds",
    "step_seconds",
    "tokens_per_s",
    "sent",
    "sent_per_token",
    "communicating",
    "bandwidth",
    "bandwidth_share",
    "overlapped",
    "waited",
    "waited_share",
    "train_loss",
)
_OF_SCORE = ("loss", "perplexity", "accuracy")


def _result(chosen: Variant, trials: list[Trial], references: list[Trial]) -> Result:
    """Differences are taken seed by seed; between runs that exist, whatever their seeds."""
    own = [_numbers(trial) for trial in trials]
    pairs = list(zip(own, [_numbers(trial) for trial in references], strict=True))
    return Result(
        chosen,
        trials,
        _over_seeds(own),
        _over_seeds([_against(mine, theirs, "difference") for mine, theirs in pairs]),
        _over_seeds([_against(mine, theirs, "ratio") for mine, theirs in pairs]),
    )


def _numbers(trial: Trial) -> dict[str, float]:
    return {} if trial.figures is None or trial.score is None else numbers_of(trial.figures, trial.score)


def _against(mine: dict[str, float], theirs: dict[str, float], how: Literal["difference", "ratio"]) -> dict[str, float]:
    both = [name for name in mine if name in theirs]
    if how == "difference":
        return {name: mine[name] - theirs[name] for name in both}
    return {name: mine[name] / theirs[name] for name in both if theirs[name]}


def _over_seeds(rows: list[dict[str, float]]) -> dict[str, Spread]:
    """Of figures that all seeds have."""
    names = [name for name in rows[0] if all(name in row for row in rows)]
    return {name: _spread([row[name] for row in rows]) for name in names}


def _spread(values: list[float]) -> Spread:
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)


def _place(history: list[events.Event]) -> Place:
    joined = [event for event in history if isinstance(event, events.Joined)]
    hosts = list(dict.fromkeys(event.host for event in joined))
    devices = list(dict.fromkeys(event.device for event in history if isinstance(event, events.Started)))
    return Place(hosts, devices, _machine() if socket.gethostname() in hosts else None)


def _machine() -> str:
    """This host's processor and cores."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    cores = len(os.sched_getaffinity(0))
    return f"{model}, {cores} cores".removeprefix(", ")
