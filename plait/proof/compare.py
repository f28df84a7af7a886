"""Strategies of synchronisation side by side: the same run under each, for the same tokens; or runs that exist.

    reference    allreduce, nothing compressed, always first
    variant      a strategy and what it compresses: "diloco", "allreduce/int8"; or the folder of a run that exists
    trial        one training of a variant, in OUT/runs/NAME-seedK; one that is done is not run again

Nothing is printed here: `told` hears of each trial, and the report is made of what `compare` returns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from plait import events, spec
from plait.cluster import environment
from plait.cluster.nursery import Nursery
from plait.data.batches import Batches
from plait.data.tokens import Prepared
from plait.errors import CheckpointError, DataError, RunFileError, UserError, WorkerFailed
from plait.ledger import journal
from plait.proof.comparison import Comparison, Trial, summed_up
from plait.proof.figures import Figures, figures_of
from plait.proof.variants import REFERENCE, Variant, chosen_names, variant
from plait.tasks import pretrain
from plait.tasks.evaluate import evaluate
from plait.train import manifest
from plait.train.folder import read_about, read_run

KEPT = ("runs", "compare.json", "compare.html")
"""What stands in OUT."""
_ALIKE = 0.01
"""How far apart budgets of tokens may be and still be the same: the last step is whole, whatever the batch."""


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
        nursery = nursery or stack.enter_context(Nursery(many=True))
        trials = [_train(each, seed, settled, _folder(out, each, seed), nursery, told) for each, seed, settled in planned]
    if failed := [trial for trial in trials if trial.why and trial.variant == REFERENCE]:
        raise WorkerFailed(f"the reference did not end, and there is nothing to compare with: {failed[0].why}")
    return summed_up(chosen, trials, existing=False)


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
    return summed_up(chosen, trials, existing=True)


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


# --- what is run -------------------------------------------------------------------------------------------------


def _run_of(run: spec.Run, chosen: Variant, seed: int) -> spec.Run:
    """Evaluated once, in the end, so that nothing but training is on the clock."""
    table = run.resolved()
    table["sync"] = chosen.sync
    table["train"] = {key: value for key, value in table["train"].items() if key != "evaluate_every"} | {"seed": seed}
    table["watch"] = {"tensorboard": False}
    table["checkpoint"].pop("copy", None)  # they would share it
    return spec.parse(table, f"--sync {chosen.name}").model_copy(update={"alerts": run.alerts})


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
