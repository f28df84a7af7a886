"""Adapters merged into the model that they were trained for."""

from __future__ import annotations

from pathlib import Path

from plait.errors import UserError
from plait.model import lora
from plait.replica.assemble import kept_paths
from plait.tasks import whole
from plait.tasks.trained import load


def merge(folder: str | Path, out: str | Path) -> Path:
    """Write the newest checkpoint of a run that trained adapters as a whole model; returns the checkpoint's folder.

    It can be used, exported, and trained further by [finetune]; it has no optimizer state. Raises UserError: nothing to merge,
    CheckpointError: no place for it.
    """
    trained = load(folder, "cpu")
    if not trained.run.adapted:
        raise UserError(f"{folder}: has no adapters; it is a whole model already")
    lora.merge(trained.module)
    values = trained.module.state_dict()
    kept = {path: values[path] for path in kept_paths(trained.module)}
    return whole.write(trained, trained.run.model_copy(update={"finetune": None}), Path(out), kept)
