"""A trained model, loaded from a run's folder to be used."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from plait import spec
from plait.data import chat
from plait.data import tokenizer as tokenizers
from plait.data.chat import Template
from plait.data.tokenizer import Tokenizer
from plait.errors import CheckpointError
from plait.model import int8
from plait.replica import device as devices
from plait.replica.assemble import Assembly, assemble
from plait.replica.compute import Compute, model_state
from plait.tasks.sampling import Sampling
from plait.train import manifest
from plait.train.base import base_of
from plait.train.checkpoint import load as load_checkpoint
from plait.train.folder import INT8, KEPT, read_about, read_run, tokenizer_file
from plait.train.huggingface.folder import GENERATION, read_json


@dataclass(frozen=True)
class Trained:
    """A model with what belongs to it. `module` maps tokens_BL to logits_BLV. step: that of the checkpoint it was loaded from."""

    folder: Path
    run: spec.Run
    step: int
    assembly: Assembly
    compute: Compute
    tokenizer: Tokenizer

    @property
    def module(self) -> torch.nn.Module:
        return self.compute.module

    @cached_property
    def template(self) -> Template:
        """How conversations become text: as the model was trained with, or a plain way. Raises DataError."""
        file = chat.found_in(self.folder)
        return Template(chat.DEFAULT if file is None else chat.source_of(file), self.tokenizer)

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """Tokens that end a text besides end_of_text: those that a model from Hugging Face came with."""
        kept = self.folder / KEPT / GENERATION
        told = read_json(kept).get("eos_token_id") if kept.is_file() else None
        return tuple(told) if isinstance(told, list) else () if told is None else (told,)

    def answering(self, settings: Sampling) -> Sampling:
        """Of an answer in a conversation, which ends as the template says, and where any text of the model's does. Raises DataError."""
        ends, stop = self.template.ends()
        return replace(settings, ends=(*settings.ends, *ends, *self.ends), stop=(*settings.stop, *stop))

    def renewed(self) -> Trained:
        """The same, of the newest checkpoint: of a run that still goes on there may be a newer one. It computes with the same memory."""
        newest = manifest.latest(self.folder / "checkpoints")
        if newest is None or manifest.step_of(newest) <= self.step:
            return self
        with contextlib.suppress(CheckpointError):  # gone again, as old ones go: what is there will do
            load_checkpoint(newest, model_state(self.assembly), only="model.")
            return replace(self, step=manifest.step_of(newest))
        return self


def load(folder: str | Path, device: spec.Device = "auto") -> Trained:
    """The newest sound checkpoint of a run's folder. Raises CheckpointError."""
    folder = Path(folder)
    run = read_run(folder)
    kept = read_about(folder)["identity"]
    tokenizer = tokenizers.load(tokenizer_file(folder), run.data.tokenizer.pattern)
    if tokenizer.fingerprint != kept["data.tokenizer_fingerprint"]:
        raise CheckpointError(
            f"{tokenizer_file(folder)}: is not the tokenizer that this model was trained with; restore it from {run.data.prepared}"
        )
    found = manifest.candidates(folder / "checkpoints")
    if not found:
        raise CheckpointError(f"{folder}: has no complete checkpoint yet; let plait train save one")
    chosen = devices.choose(device, 0)
    assembly = assemble(run, kept["data.vocabulary"], chosen, base=base_of(run) if run.adapted else None)
    if INT8 in kept:
        assembly = _rounded(assembly, kept[INT8])
    compute = Compute(run, assembly, chosen)
    path = _load_newest(found, model_state(assembly))
    compute.module.eval()
    return Trained(folder, run, manifest.step_of(path), assembly, compute, tokenizer)


def _rounded(assembly: Assembly, mode: int8.Mode) -> Assembly:
    """With room for int8 in the place of what is stored so."""
    int8.round_weights(assembly.module, mode)
    floats = dict(assembly.module.named_parameters())
    return replace(assembly, leaves=[leaf for leaf in assembly.leaves if leaf.path in floats])


def _load_newest(candidates: list[Path], state: dict[str, Any]) -> Path:
    """Load the first that is sound; the trouble of the last is raised."""
    for path in candidates[:-1]:
        with contextlib.suppress(CheckpointError):
            load_checkpoint(path, state, only="model.")
            return path
    load_checkpoint(candidates[-1], state, only="model.")
    return candidates[-1]
