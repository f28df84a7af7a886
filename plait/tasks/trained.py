"""A trained model, loaded from a run's folder to be used."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

import torch

from plait import spec
from plait.data import tokenizer as tokenizers
from plait.data.tokenizer import Tokenizer
from plait.errors import CheckpointError
from plait.replica import device as devices
from plait.replica.assemble import assemble
from plait.replica.compute import Compute, model_state
from plait.train import manifest
from plait.train.checkpoint import load as load_checkpoint
from plait.train.folder import read_about, read_run


@dataclass(frozen=True)
class Trained:
    """A model with what belongs to it. `module` maps tokens_BL to logits_BLV."""

    run: spec.Run
    step: int
    compute: Compute
    tokenizer: Tokenizer

    @property
    def module(self) -> torch.nn.Module:
        return self.compute.module


def load(folder: str | Path, device: spec.Device = "auto") -> Trained:
    """The newest sound checkpoint of a run's folder. Raises CheckpointError."""
    folder = Path(folder)
    run = read_run(folder)
    kept = read_about(folder)["identity"]
    tokenizer = tokenizers.load(_tokenizer_file(folder), run.data.tokenizer.pattern)
    if tokenizer.fingerprint != kept["data.tokenizer_fingerprint"]:
        raise CheckpointError(
            f"{_tokenizer_file(folder)}: is not the tokenizer that this model was trained with; restore it from {run.data.prepared}"
        )
    found = manifest.candidates(folder / "checkpoints")
    if not found:
        raise CheckpointError(f"{folder}: has no complete checkpoint yet; let plait train save one")
    chosen = devices.choose(device, 0)
    compute = Compute(run, assemble(run, kept["data.vocabulary"], chosen), chosen)
    path = _load_newest(found, compute)
    compute.module.eval()
    return Trained(run, manifest.step_of(path), compute, tokenizer)


def _load_newest(candidates: list[Path], compute: Compute) -> Path:
    """Load the first that is sound; the trouble of the last is raised."""
    state = model_state(compute.module)
    for path in candidates[:-1]:
        with contextlib.suppress(CheckpointError):
            load_checkpoint(path, state, only="model.")
            return path
    load_checkpoint(candidates[-1], state, only="model.")
    return candidates[-1]


def _tokenizer_file(folder: Path) -> Path:
    found = sorted(folder.glob("tokenizer.*"))
    if not found:
        raise CheckpointError(f"{folder}: the tokenizer is missing; run plait train on it once more")
    return found[0]
