"""Evaluation of a trained model on a split of its data."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from plait import spec
from plait.data.batches import EvaluationBatches
from plait.data.prepare import find
from plait.data.scoring import check_installed
from plait.data.tokens import Prepared
from plait.errors import CheckpointError, UserError
from plait.events import perplexity
from plait.replica import device as devices
from plait.tasks.beam import Beams
from plait.tasks.rivals import Compared, compare
from plait.tasks.trained import Trained, load
from plait.train.duties import measure
from plait.train.folder import read_about

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Score:
    """loss: nats a token. unigram_entropy: the loss of the training split's token frequencies on this split, the first thing to beat.
    translations: of an encoder-decoder that translates, by pair of languages."""

    split: str
    step: int
    loss: float
    perplexity: float
    accuracy: float
    tokens: int
    unigram_entropy: float
    translations: list[Compared] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        values = asdict(self)
        return values if self.translations else {name: value for name, value in values.items() if name != "translations"}


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
    if split not in SPLITS:
        raise UserError(f"--split {split}: is none of {', '.join(SPLITS)}")
    trained = load(folder, device)
    translating = trained.run.data.translates and not trained.run.model.causal and not loss_only
    if translating:
        check_installed("plait evaluate, without --loss-only,")
    devices.set_threads(trained.run.cluster.threads, 1)
    prepared = _data_of(Path(folder), trained)
    batches = EvaluationBatches(prepared.split(split, trained.run.data.sequence), limit)
    sums = measure(trained.compute, batches, [[0, batches.size]], _micro_batch(trained))
    loss = sums.loss / sums.targets
    entropy = prepared.unigram_entropy(split)
    translations = compare(trained, prepared, split, beams, limit) if translating else []
    return Score(split, trained.step, loss, perplexity(loss), sums.correct / sums.targets, sums.targets, entropy, translations)


def _micro_batch(trained: Trained) -> int:
    micro_batch = trained.run.train.micro_batch
    return micro_batch if micro_batch != "auto" else 8


def _data_of(folder: Path, trained: Trained) -> Prepared:
    prepared = find(trained.run.data)
    if prepared is None or prepared.fingerprint != read_about(folder)["identity"]["data.fingerprint"]:
        raise CheckpointError(
            f"{folder}: its prepared data is not in {trained.run.data.prepared}; "
            f"run plait data prepare {folder / 'run.toml'} where the corpus is"
        )
    return prepared
