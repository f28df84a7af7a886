"""Adapters merged into the model that they were trained for: a folder like any other run's, without a base."""

from __future__ import annotations

import shutil
from pathlib import Path

from plait import __version__
from plait.data import chat
from plait.errors import CheckpointError, UserError
from plait.model import lora
from plait.replica.assemble import kept_paths
from plait.tasks.trained import load
from plait.train import manifest
from plait.train.checkpoint import Checkpoints
from plait.train.folder import KEPT, Folder, read_about, tokenizer_file


def merge(folder: str | Path, out: str | Path) -> Path:
    """Write the newest checkpoint of a run that trained adapters as a whole model; returns the checkpoint's folder.

    It can be used, exported, and trained further by [finetune]; it has no optimizer state. Raises UserError: nothing to merge,
    CheckpointError: no place for it.
    """
    folder, out = Path(folder), Path(out)
    trained = load(folder, "cpu")
    if not trained.run.adapted:
        raise UserError(f"{folder}: has no adapters; it is a whole model already")
    lora.merge(trained.module)
    run = trained.run.model_copy(update={"finetune": None})
    identity = read_about(folder)["identity"]
    facts = {key.removeprefix("data."): identity[key] for key in identity if key not in trained.run.identity()}
    with Folder(out) as target:
        if target.claim(run, facts) and manifest.saved(target.checkpoints):
            raise CheckpointError(f"{out}: holds a model already; choose another --out")
        shutil.copy(tokenizer_file(folder), out)
        if (folder / chat.FILE).is_file():
            shutil.copy(folder / chat.FILE, out)
        target.keep(path for path in (folder / KEPT).glob("*"))
        values = trained.module.state_dict()
        state = {f"model.{path}": values[path] for path in sorted(kept_paths(trained.module))}
        _save(target.checkpoints, trained.step, state, {"version": __version__, "run": run.resolved(), "position": {"step": trained.step}})
    return target.checkpoints / manifest.name(trained.step)


def _save(folder: Path, step: int, state: dict, about: dict) -> None:
    failures: list[str] = []
    checkpoints = Checkpoints(folder, 1, lambda *saved: None, lambda step, why: failures.append(why))
    checkpoints.save(step, state, about)
    checkpoints.wait()
    if failures:
        raise CheckpointError(failures[0])
