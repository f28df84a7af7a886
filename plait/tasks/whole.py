"""A model's folder that no training wrote: like any other run's, without a base, an optimizer or a journal."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from plait import __version__, spec
from plait.data import chat
from plait.errors import CheckpointError
from plait.tasks.trained import Trained
from plait.train import manifest
from plait.train.checkpoint import Checkpoints
from plait.train.folder import KEPT, Folder, read_about, tokenizer_file


def write(of: Trained, run: spec.Run, out: Path, values: dict[str, Any], rounded: str | None = None) -> Path:
    """Write parameters and buffers, by path, as a run's folder; returns the checkpoint's. of: what they were made of, whose data and
    tokenizer they go with. rounded: the mode, where weights are int8. Raises CheckpointError: no place for it."""
    identity = read_about(of.folder)["identity"]
    facts = {key.removeprefix("data."): identity[key] for key in identity if key not in of.run.identity() and key.startswith("data.")}
    with Folder(out) as target:
        if target.claim(run, facts, rounded) and manifest.saved(target.checkpoints):
            raise CheckpointError(f"{out}: holds a model already; choose another --out")
        shutil.copy(tokenizer_file(of.folder), out)
        if (of.folder / chat.FILE).is_file():
            shutil.copy(of.folder / chat.FILE, out)
        target.keep(path for path in (of.folder / KEPT).glob("*"))
        about = {"version": __version__, "run": run.resolved(), "position": {"step": of.step}}
        _save(target.checkpoints, of.step, {f"model.{path}": values[path] for path in sorted(values)}, about)
    return target.checkpoints / manifest.name(of.step)


def _save(folder: Path, step: int, state: dict[str, Any], about: dict[str, Any]) -> None:
    failures: list[str] = []
    checkpoints = Checkpoints(folder, 1, lambda *saved: None, lambda step, why: failures.append(why))
    checkpoints.save(step, state, about)
    checkpoints.wait()
    if failures:
        raise CheckpointError(failures[0])
