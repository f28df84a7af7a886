"""Evaluation of a trained model on a split of its data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from plait import spec
from plait.data.batches import EvaluationBatches
from plait.data.prepare import find
from plait.data.scoring import check_installed
from plait.data.tokens import Prepared
from plait.errors import CheckpointError, UserError
from plait.events import perplexity
from plait.ledger.measures import f1_of_labels, macro_f1
from plait.replica import device as devices
from plait.tasks.baselines import Baseline, baselines
from plait.tasks.beam import Beams
from plait.tasks.confusion import draw, save
from plait.tasks.rivals import Compared, compare
from plait.tasks.trained import Trained, load
from plait.train.duties import measure
from plait.train.folder import read_about, read_run

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Score:
    """loss: nats a token. unigram_entropy: the loss of the training split's token frequencies on this split, the first thing to beat; where
    labels are told, of theirs, and where numbers are, of their mean. tokens: targets. accuracy: None of numbers. translations: of an
    encoder-decoder that translates, by pair of languages.

    Of labels: their names, how many of each (row) were told to be each (column), the mean of their F1, the F1 of each. Of numbers: the root
    of the mean squared error, in their own unit.
    """

    split: str
    step: int
    loss: float
    perplexity: float
    accuracy: float | None
    tokens: int
    unigram_entropy: float | None
    translations: list[Compared] = field(default_factory=list)
    labels: list[str] | None = None
    confusion: list[list[int]] | None = None
    f1: float | None = None
    f1_of_labels: list[float] | None = None
    error: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Without what is not told."""
        return {name: value for name, value in asdict(self).items() if value is not None and (name != "translations" or value)}


def evaluate(
    folder: str | Path,
    split: str = "validation",
    *,
    limit: int | None = None,
    device: spec.Device = "auto",
    beams: Beams | None = None,
    loss_only: bool = False,
) -> Score:
    """Measure the newest checkpoint of a run's folder on a split of the data that it was prepared with.

    limit: sequences, and sentences that are translated; all when left out. beams: how these are looked for; none with loss_only. Raises
    UserError: an unknown split, data that is gone or not the run's.
    """
    check_split(split)
    trained = load(folder, device)
    translating = trained.run.data.translates and not trained.run.model.causal and not loss_only
    if translating:
        check_installed("plait evaluate, without --loss-only,")
    devices.set_threads(trained.run.cluster.threads, 1)
    prepared = data_of(Path(folder), trained.run)
    batches = EvaluationBatches(prepared.split(split, trained.run.data.sequence), limit)
    sums = measure(trained.compute, batches, [[0, batches.size]], micro_batch_of(trained))
    loss, accuracy = sums.loss / sums.targets, None if sums.correct is None else sums.correct / sums.targets
    objective = trained.run.data.objective
    entropy = (
        _of_frequencies(prepared, split, objective, trained.run.data.sequence) if objective.labelled else prepared.unigram_entropy(split)
    )
    translations = compare(trained, prepared, split, beams, limit) if translating else []
    score = Score(split, trained.step, loss, perplexity(loss), accuracy, sums.targets, entropy, translations)
    if objective.scale is not None:
        return replace(score, error=math.sqrt(loss) * objective.scale[1])
    if sums.confusion is None:
        return score
    table = sums.confusion.tolist()
    return replace(score, labels=objective.labels, confusion=table, f1=macro_f1(table), f1_of_labels=f1_of_labels(table))


def baselines_of(folder: str | Path, splits: Sequence[str]) -> list[Baseline]:
    """Simpler ways to tell the labels of each split. Raises UserError: none are told, or scikit-learn is not installed."""
    run = read_run(Path(folder))
    prepared = data_of(Path(folder), run)
    return [each for split in splits for each in baselines(prepared, split, run.data.sequence)]


def draw_confusion(score: Score, path: Path) -> None:
    """The confusion matrix as a picture. Raises UserError: no labels were told, or it cannot be written."""
    if score.labels is None or score.confusion is None:
        raise UserError("--confusion is of labels, and this run tells none")
    save(path, draw(score.labels, score.confusion, f"{score.split} after step {score.step}: accuracy {score.accuracy:.1%}"))


def _of_frequencies(prepared: Prepared, split: str, objective: spec.Objective, sequence: int) -> float | None:
    """The loss of who knows nothing of a row but the training split's label frequencies, as they are weighed, or its mean."""
    if objective.kind == "answer":
        return None
    told = prepared.split(split, sequence).told
    assert told is not None
    if objective.kind == "regress":
        return float(np.mean(np.concatenate(told.of) ** 2))
    seen = np.array([max(1, label.counts.get("train", 0)) for label in prepared.manifest.labels], dtype=float)
    here = np.array([label.counts.get(split, 0) for label in prepared.manifest.labels], dtype=float)
    weights = objective.weights if isinstance(objective.weights, dict) else {}
    weigh = np.array([weights.get(label.name, 1.0) for label in prepared.manifest.labels])
    return float(-(here * weigh * np.log(seen * weigh / (seen * weigh).sum())).sum() / here.sum())


def check_split(split: str) -> None:
    """Raises UserError: an unknown one."""
    if split not in SPLITS:
        raise UserError(f"--split {split}: is none of {', '.join(SPLITS)}")


def micro_batch_of(trained: Trained) -> int:
    """Sequences that are computed at once."""
    micro_batch = trained.run.train.micro_batch
    return micro_batch if micro_batch != "auto" else 8


def data_of(folder: Path, run: spec.Run) -> Prepared:
    """What a run was prepared with. Raises CheckpointError: it is gone, or is not the run's."""
    prepared = find(run.data)
    if prepared is None or prepared.fingerprint != read_about(folder)["identity"]["data.fingerprint"]:
        raise CheckpointError(
            f"{folder}: its prepared data is not in {run.data.prepared}; run plait data prepare {folder / 'run.toml'} where the corpus is"
        )
    return prepared
