"""Strategies of synchronisation side by side: the same run under each, for the same tokens; or runs that exist.

    reference    allreduce, nothing compressed, always first
    variant      a strategy and what it compresses: "diloco", "allreduce/int8"; or the folder of a run that exists
    trial        one training of a variant, in OUT/runs/NAME-seedK; one that is done is not run again

Nothing is printed here: `told` hears of each trial, and the report is made of what `compare` returns.
"""

from __future__ import annotations

import math
import os
import socket
import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from plait import events, spec
from plait.cluster import environment
from plait.cluster.nursery import Nursery
from plait.data.batches import Batches
from plait.data.tokens import Prepared
from plait.errors import CheckpointError, DataError, RunFileError, UserError, WorkerFailed
from plait.ledger import journal
from plait.proof.figures import Figures, figures_of
from plait.tasks import pretrain
from plait.tasks.evaluate import Score, evaluate
from plait.train import manifest
from plait.train.folder import read_about, read_run

REFERENCE = "allreduce"
STRATEGIES = ("allreduce", "local_sgd", "diloco", "synchronous", "bounded", "asynchronous")
CODECS = ("none", "bf16", "fp16", "int8", "topk")
KEPT = ("runs", "compare.json", "compare.html")
"""What stands in OUT."""
ROUND = {"local_sgd": 16, "diloco": 50}
"""Steps between two averages where the run file has none; an eighth of the run if that is less."""
_SERVED = ("synchronous", "bounded", "asynchronous")
_ALIKE = 0.01
"""How far apart budgets of tokens may be and still be the same: the last step is whole, whatever the batch."""


@dataclass(frozen=True)
class Variant:
    """One way to agree. sync: its [sync]; chosen: settings of it that neither the run file nor its name gave."""

    name: str
    sync: dict[str, Any]
    chosen: dict[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The name as a folder may have it."""
        return self.name.replace("/", "-")


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


Told = Callable[[Trial], None]


def compare(
    run: spec.Run,
    sync: Sequence[str],
    out: Path,
    *,
    compress: Sequence[str] = (),
    seeds: int = 1,
    told: Told = lambda _: None,
    nursery: Nursery | None = None,
) -> Comparison:
    """Train a run under each strategy, `seeds` times, and compare.

    sync: names of STRATEGIES, each also with a codec: "diloco/int8". compress: a codec for allreduce, or again a name with one.
    Raises UserError before anything starts. A variant that fails is told, and the others go on.
    """
    _check_place(run, out)
    names = chosen_names(sync, compress)
    prepared = _prepare(run)
    steps = Batches(prepared.split("train", run.data.sequence), run.train, prepared.fingerprint).steps
    chosen = [variant(run, name, steps) for name in names]
    planned = [(each, seed, _run_of(run, each, seed)) for each in chosen for seed in range(run.train.seed, run.train.seed + seeds)]
    for each, seed, settled in planned:
        _check_folder(_folder(out, each, seed), settled)
    with ExitStack() as stack:
        nursery = nursery or stack.enter_context(Nursery())
        trials = [_train(each, seed, settled, _folder(out, each, seed), nursery, told) for each, seed, settled in planned]
    if failed := [trial for trial in trials if trial.why and trial.variant == REFERENCE]:
        raise WorkerFailed(f"the reference did not end, and there is nothing to compare with: {failed[0].why}")
    return _comparison(chosen, trials, existing=False)


def compare_runs(folders: Sequence[Path], told: Told = lambda _: None) -> Comparison:
    """Compare runs that exist. The first that all-reduces uncompressed is the reference, or else the first.

    Raises UserError: no run in a folder, one that has not ended, or runs that are not comparable, each named.
    """
    if len(folders) < 2:
        raise UserError("--runs compares two folders or more; name them all")
    if again := next((folder for folder in folders if [other.resolve() for other in folders].count(folder.resolve()) > 1), None):
        raise UserError(f"--runs names {again} twice")
    runs = {folder: read_run(folder) for folder in folders}
    figures = {folder: _finished(folder) for folder in folders}
    _check_comparable(figures)
    first = next((folder for folder in folders if _is_reference(runs[folder])), folders[0])
    ordered = [first, *(folder for folder in folders if folder != first)]
    names = _distinct_names(ordered)
    limit = runs[first].train.evaluate_sequences
    trials = []
    for folder in ordered:
        score = evaluate(folder, limit=limit, device=runs[folder].cluster.device)
        trials.append(Trial(names[folder], runs[folder].train.seed, folder, figures[folder], score))
        told(trials[-1])
    chosen = [Variant(names[folder], runs[folder].resolved()["sync"]) for folder in ordered]
    return _comparison(chosen, trials, existing=True)


def check_out(out: Path) -> None:
    """Raises UserError for a folder that holds something else than a comparison."""
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: is a file; name a folder")
    if strangers := sorted(item.name for item in out.iterdir() if item.name not in KEPT) if out.is_dir() else []:
        raise UserError(f"--out {out}: holds {', '.join(strangers[:3])}, which is no comparison; choose another folder")


def check_ended(comparison: Comparison) -> None:
    """Raises WorkerFailed naming variants that did not end."""
    if failed := [f"{result.variant.name}: {result.why}" for result in comparison.results if result.why]:
        raise WorkerFailed("did not end, and is reported so:\n" + "\n".join(f"  {each}" for each in failed))


def chosen_names(sync: Sequence[str], compress: Sequence[str] = ()) -> list[str]:
    """Names of variants, the reference first, each once. Raises UserError for an unknown one, listing those that are known."""
    asked = [_name(text, "--sync") for text in sync]
    asked += [_name(text, "--compress", "" if "/" in text else f"{REFERENCE}/") for text in compress]
    return list(dict.fromkeys([REFERENCE, *asked]))


def variant(run: spec.Run, name: str, steps: int) -> Variant:
    """A strategy's [sync]: what the run file says that belongs to it, and for the rest a default. steps: of the whole run.

    Nothing is compressed but where the name says so.
    """
    mode, _, codec = name.partition("/")
    if mode == "phases" and run.sync.strategy != "phases":
        raise RunFileError('--sync phases: the run file has no phases; write sync.strategy = "phases" and sync.phases')
    kept = _belonging(run, mode, codec)
    chosen = {key: value for key, value in _defaults(run, mode, steps).items() if key not in kept}
    compress = {"compress": codec} if codec else {}
    strategy: dict[str, Any] = {"strategy": "server", "update": mode} if mode in _SERVED else {"strategy": mode}
    return Variant(name, {**strategy, **kept, **chosen, **compress}, chosen)


# --- what is run -------------------------------------------------------------------------------------------------


def _name(text: str, option: str, before: str = "") -> str:
    mode, slash, codec = (before + text.strip()).partition("/")
    mode = "synchronous" if mode == "server" else mode
    if mode not in (*STRATEGIES, "phases"):
        raise UserError(f"{option} {text}: {mode or 'nothing'} is no strategy; known are {', '.join(STRATEGIES)}, and phases")
    if (slash and codec not in CODECS) or (slash and mode == "phases"):
        known = "phases have a codec each, in the run file" if mode == "phases" else f"known are {', '.join(CODECS)}"
        raise UserError(f"{option} {text}: {codec or 'nothing'} is no codec here; {known}")
    return mode if codec in ("", "none") else f"{mode}/{codec}"


def _belonging(run: spec.Run, mode: str, codec: str) -> dict[str, Any]:
    """Settings of the run file's [sync] that mean something under another strategy."""
    given = run.resolved()["sync"]
    strategy = "server" if mode in _SERVED else mode
    belongs = {"bucket_mib", "link"} | {key for key, strategies in spec.Sync.OF_STRATEGY.items() if strategy in strategies}
    belongs |= {"servers"} if mode in _SERVED else {"phases"} if mode == "phases" else set()
    belongs |= {"top_k"} if codec == "topk" else set()
    belongs -= {"update", *({"staleness"} if mode != "bounded" else ()), *({"damping"} if mode == "synchronous" else ())}
    return {key: value for key, value in given.items() if key in belongs}


def _defaults(run: spec.Run, mode: str, steps: int) -> dict[str, Any]:
    if mode in ROUND:
        return {"every": f"{max(1, min(ROUND[mode], steps // 8))} steps"}
    return {"staleness": max(4, run.layout.replicas - 1)} if mode == "bounded" else {}


def _run_of(run: spec.Run, chosen: Variant, seed: int) -> spec.Run:
    """Evaluated once, in the end, so that nothing but training is on the clock."""
    table = run.resolved()
    table["sync"] = chosen.sync
    table["train"] = {key: value for key, value in table["train"].items() if key != "evaluate_every"} | {"seed": seed}
    table["watch"] = {"tensorboard": False}
    return spec.parse(table, f"--sync {chosen.name}")


def _check_place(run: spec.Run, out: Path) -> None:
    check_out(out)
    if environment.read() is not None:
        raise UserError("plait compare starts all processes by itself, one run after the other; call it without a launcher")
    if run.layout.replicas < 2:
        raise RunFileError("layout.replicas = 1 has nobody to agree with; compare with layout.replicas = 2 or more")


def _prepare(run: spec.Run) -> Prepared:
    """Raises DataError where there is nothing to measure the trained models on."""
    prepared = pretrain.prepare(run)
    try:
        prepared.split("validation", run.data.sequence)
    except DataError as error:
        raise DataError(f"{error}; runs are compared on the validation split, which data.split.validation sets aside") from None
    return prepared


def _folder(out: Path, chosen: Variant, seed: int) -> Path:
    return out / "runs" / f"{chosen.label}-seed{seed}"


def _check_folder(folder: Path, run: spec.Run) -> None:
    """Raises CheckpointError where a folder holds a run of other settings: found before the first run, and not after hours.

    Whether the data is the same is for training to say.
    """
    if not (folder / "about.json").exists():
        return
    kept, wanted = read_about(folder)["identity"], run.identity()
    differing = sorted(key for key in {*kept, *wanted} - _OF_DATA if kept.get(key) != wanted.get(key))
    if differing:
        raise CheckpointError(f"{folder}: holds another run ({', '.join(differing[:3])} differ); use its settings, or another --out")


_OF_DATA = {"data.fingerprint", "data.vocabulary", "data.tokenizer_fingerprint"}


def _train(chosen: Variant, seed: int, run: spec.Run, folder: Path, nursery: Nursery, told: Told) -> Trial:
    try:
        pretrain.train(run, folder, nursery=nursery, quiet=True)
    except WorkerFailed as error:
        trial = Trial(chosen.name, seed, folder, None, None, str(error).strip().splitlines()[-1])
    else:
        score = evaluate(folder, limit=run.train.evaluate_sequences, device=run.cluster.device)
        trial = Trial(chosen.name, seed, folder, figures_of(journal.read(folder / "events.jsonl")), score)
    told(trial)
    return trial


# --- runs that exist ---------------------------------------------------------------------------------------------


def _finished(folder: Path) -> Figures:
    history = journal.read(folder / "events.jsonl")
    planned = next((event.steps for event in reversed(history) if isinstance(event, events.Started)), None)
    done = len(events.committed(history))
    if not done:
        raise CheckpointError(f"{folder}: its journal has no steps; let plait train run")
    if not any(isinstance(event, events.Finished) for event in history):
        raise CheckpointError(f"{folder}: has not ended: {done} of {planned or '?'} steps; let plait train go on with it")
    if manifest.latest(folder / "checkpoints") is None:
        raise CheckpointError(f"{folder}: has no complete checkpoint, which is what is measured")
    return figures_of(history)


def _check_comparable(figures: dict[Path, Figures]) -> None:
    """Raises UserError naming what differs, with each run's value."""
    abouts = {folder: read_about(folder)["identity"] for folder in figures}
    _check_alike("corpora (data.fingerprint)", {folder: about["data.fingerprint"] for folder, about in abouts.items()})
    _check_alike(
        "tokenizers (data.tokenizer_fingerprint)", {folder: about["data.tokenizer_fingerprint"] for folder, about in abouts.items()}
    )
    budgets = {folder: of_run.tokens for folder, of_run in figures.items()}
    if max(budgets.values()) > (1 + _ALIKE) * min(budgets.values()):
        raise UserError(_not_comparable("budgets of tokens", {folder: f"{tokens:,}" for folder, tokens in budgets.items()}))


def _check_alike(what: str, values: dict[Path, str]) -> None:
    if len(set(values.values())) > 1:
        raise UserError(_not_comparable(what, {folder: value[:16] for folder, value in values.items()}))


def _not_comparable(what: str, values: dict[Path, str]) -> str:
    return f"these runs are not comparable: their {what} differ\n" + "\n".join(f"  {folder}: {value}" for folder, value in values.items())


def _is_reference(run: spec.Run) -> bool:
    return run.sync.mode == REFERENCE and run.sync.compress == "none"


def _distinct_names(folders: Sequence[Path]) -> dict[Path, str]:
    """The last part of each path; of those that have it in common, as many parts as tell them apart."""
    parts = {folder: folder.resolve().parts for folder in folders}
    names = {}
    for folder, mine in parts.items():
        others = [theirs for other, theirs in parts.items() if other != folder]
        taken = next(count for count in range(1, len(mine) + 1) if all(mine[-count:] != theirs[-count:] for theirs in others))
        names[folder] = "/".join(mine[-taken:])
    return names


# --- figures over seeds ------------------------------------------------------------------------------------------


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


def _comparison(chosen: Sequence[Variant], trials: Sequence[Trial], existing: bool) -> Comparison:
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
