"""The model that a run goes on from: found, compared with what the run asks for, and read into any layout.

    [finetune] from = DIR ── settle ──►  from = DIR/checkpoints/step-00000400, checksum, [model] and tokenizer of DIR
                                                      │
    each rank builds its part ── Base.fill ──►  reads what its part overlaps

A run keeps the checksum of its base, so that it resumes from the same one or not at all. Torch is needed by `fill` alone.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from plait import spec
from plait.data import chat, vocabulary
from plait.errors import CheckpointError, RunFileError
from plait.train import manifest
from plait.train.folder import read_about, read_run, tokenizer_file

MAY_DIFFER = {"dropout", "recompute", "recompute_layers", "auxiliary", "bias_rate"}
"""Settings of [model] that shape no parameter and no output."""


def settle(run: spec.Run, out: Path | None = None) -> spec.Run:
    """The run with everything that its base tells. out: its folder, where it has one, which may know the base already.

    Raises CheckpointError: no base there. RunFileError: settings that are not the base's.
    """
    if run.finetune is None:
        return run
    checkpoint = _pinned(Path(run.finetune.base), _kept(out))
    folder = checkpoint.parent.parent
    base = read_run(folder)
    if base.adapted:
        raise RunFileError(f'finetune.from = "{run.finetune.base}": holds adapters alone; merge them first: plait merge {folder} --out ...')
    _check_patterns(run.finetune, checkpoint)
    table = run.resolved()
    table["model"] = _model(run, base)
    table["data"] |= {"tokenizer": _tokenizer(run, base, folder), "sequence": _sequence(run, base)}
    if run.data.chat is not None and run.data.chat.template is None and (template := chat.found_in(folder)) is not None:
        table["data"]["chat"]["template"] = str(template)
    table["finetune"] |= {"from": str(checkpoint.resolve()), "checksum": checksum(checkpoint)}
    return spec.parse(table).model_copy(update={"alerts": run.alerts})  # whose secrets a table does not tell


def base_of(run: spec.Run) -> Base | None:
    """What a settled run goes on from. Raises CheckpointError: it is there no more, or is another."""
    if run.finetune is None:
        return None
    path = Path(run.finetune.base)
    if checksum(path) != run.finetune.checksum:
        raise CheckpointError(f"{path}: is another checkpoint than this run began with; restore it")
    return Base(path)


def checksum(checkpoint: Path) -> str:
    """Of a checkpoint, the one that its manifest is sealed with. Raises CheckpointError."""
    manifest.read(checkpoint)
    return str(json.loads((checkpoint / manifest.FILE).read_bytes())["sha256"])[:16]


class Base:
    """A checkpoint that another run goes on from."""

    def __init__(self, checkpoint: Path) -> None:
        self._checkpoint = checkpoint
        self._whole = manifest.read(checkpoint)

    def fill(self, state: dict[str, Any], elsewhere: Collection[str]) -> None:
        """Read the tensors of `state`, in place and in whatever dtype they are. Raises CheckpointError: missing ones, ones left over."""
        from plait.train.checkpoint import load

        there = {name: _like(value, self._whole.tensors.get(name)) for name, value in state.items()}
        load(self._checkpoint, there, only="model.", elsewhere=elsewhere)
        for name, value in state.items():
            if there[name] is not value:
                _local(value).copy_(_local(there[name]))


def _kept(out: Path | None) -> str | None:
    """The checksum of the base that the run in this folder began with."""
    if out is None or not (out / "about.json").exists():
        return None
    found = read_about(out)["identity"].get("finetune.checksum")
    return None if found is None else str(found)


def _pinned(path: Path, kept: str | None) -> Path:
    """The checkpoint: the one that is kept, should it be among those there, or the newest."""
    if not path.exists():
        raise CheckpointError(f'finetune.from = "{path}": there is no such folder (looked from {Path.cwd()})')
    if path.parent.name == "checkpoints" and (path / manifest.FILE).exists():
        return path
    if (path / "config.json").exists() and not (path / "about.json").exists():
        raise CheckpointError(f'finetune.from = "{path}": is a Hugging Face folder; import it first: plait import {path} --out runs/NAME')
    read_about(path)
    found = manifest.candidates(path / "checkpoints")
    if not found:
        raise CheckpointError(f'finetune.from = "{path}": has no complete checkpoint yet; let plait train save one')
    same = [checkpoint for checkpoint in found if checksum(checkpoint) == kept]
    if kept is not None and not same:
        raise CheckpointError(f'finetune.from = "{path}": no longer has the checkpoint that this run began with; choose another --out')
    return (same or found)[0]


def _check_patterns(finetune: spec.Finetune, checkpoint: Path) -> None:
    tensors = {name.removeprefix("model."): entry for name, entry in manifest.read(checkpoint).tensors.items() if name.startswith("model.")}
    matrices = [path for path, entry in tensors.items() if len(entry.shape) == 2 and not path.startswith(("embed.", "positions."))]
    if wrong := finetune.misses(matrices, tensors):
        raise RunFileError(wrong)


def _model(run: spec.Run, base: spec.Run) -> dict[str, Any]:
    given = {name: value for name, value in run.resolved()["model"].items() if name in run.model.model_fields_set}
    theirs: dict[str, Any] = base.resolved()["model"]
    for name in given.keys() - MAY_DIFFER:
        if getattr(run.model, name) != getattr(base.model, name):
            there = f"has {name} = {theirs[name]!r}" if name in theirs else f"has no {name}"
            raise RunFileError(f"model.{name} = {given[name]!r}: the model in {_named(run)} {there}; leave it out")
    return theirs | given


def _sequence(run: spec.Run, base: spec.Run) -> int:
    if "sequence" not in run.data.model_fields_set:
        return base.data.sequence
    if not base.model.rotates and run.data.sequence != base.data.sequence:
        raise RunFileError(
            f"data.sequence = {run.data.sequence}: the model in {_named(run)} has learned {base.data.sequence} positions; leave it out"
        )
    return run.data.sequence


def _tokenizer(run: spec.Run, base: spec.Run, folder: Path) -> dict[str, Any]:
    """The base's, which is the only one that its numbers mean something in."""
    file, pattern = tokenizer_file(folder), base.data.tokenizer.pattern
    given = run.data.tokenizer
    if "tokenizer" in run.data.model_fields_set:
        fingerprint = vocabulary.fingerprint(file, pattern)
        if given.file is None or vocabulary.fingerprint(Path(given.file), given.pattern) != fingerprint:
            raise RunFileError(f"data.tokenizer: is not the one that the model in {_named(run)} was trained with; leave it out")
    return {"file": str(file)} | ({} if pattern is None else {"pattern": pattern})


def _named(run: spec.Run) -> str:
    assert run.finetune is not None
    return run.finetune.base


def _like(value: Any, entry: manifest.TensorEntry | None) -> Any:
    """The tensor itself, or an empty one of the dtype that is stored."""
    if entry is None or str(value.dtype) == entry.dtype:
        return value
    import torch

    from plait.replica.placed import Placed

    empty = torch.empty_like(_local(value), dtype=getattr(torch, entry.dtype.removeprefix("torch.")))
    return Placed(empty, value.part) if isinstance(value, Placed) else empty


def _local(value: Any) -> Any:
    from plait.replica.placed import local_values

    return local_values(value).detach()
