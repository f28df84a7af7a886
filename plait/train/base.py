"""The model that a run goes on from: found, compared with what the run asks for, and read into any layout.

    [finetune] from = DIR ── settle ──►  from = DIR/checkpoints/step-00000400, checksum, [model] and tokenizer of DIR
                      HF  ── settle ──►  from = HF, checksum, what config.json and the tokenizer's files say
                                                      │
    each rank builds its part ── fill ──►  reads what its part overlaps

A run keeps the checksum of its base, so that it resumes from the same one or not at all. Torch is needed by `fill` alone.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from plait import spec
from plait.data import chat, fetched, kept, vocabulary
from plait.data import tokenizer as tokenizers
from plait.errors import CheckpointError, RunFileError
from plait.train import manifest
from plait.train.folder import KEPT, check_floats, read_about, read_run, tokenizer_file
from plait.train.huggingface import folder as theirs
from plait.train.huggingface import tensors as theirs_of

MAY_DIFFER = {"dropout", "recompute", "recompute_layers", "auxiliary", "bias_rate", "pooling"}
"""Settings of [model] that shape no parameter and no output."""
POSITIONS = "model.positions.weight"
"""One row a position, of which a run with shorter sequences takes the first."""


def settle(run: spec.Run, out: Path | None = None) -> spec.Run:
    """The run with everything that its base tells. out: its folder, where it has one, which may know the base already.

    Raises CheckpointError: no base there. RunFileError: settings that are not the base's.
    """
    if run.finetune is None:
        return run
    found = _found(run, _kept(out))
    known = _known(run.data.objective, found.run.data.objective)
    _check_patterns(run.finetune, run.data.objective.model_copy(update=known), found)
    table = run.resolved()
    table["model"] = _model(run, found.run)
    table["data"] |= {"tokenizer": _tokenizer(run, found), "sequence": _sequence(run, found.run)}
    table["data"]["objective"] |= known
    if found.vocabulary > tokenizers.load(found.tokenizer, found.run.data.tokenizer.pattern).vocabulary:
        table["model"]["vocabulary"] = found.vocabulary
    if run.data.chat is not None and run.data.chat.template is None and (template := chat.found_in(found.folder)) is not None:
        table["data"]["chat"]["template"] = str(template)
    table["finetune"] |= {"from": str(found.path.resolve()), "checksum": found.checksum}
    return spec.parse(table).model_copy(update={"alerts": run.alerts})  # whose secrets a table does not tell


def base_of(run: spec.Run) -> Base | ForeignBase | None:
    """What a settled run goes on from. Raises CheckpointError: it is there no more, or is another."""
    if run.finetune is None:
        return None
    path = Path(run.finetune.base)
    foreign = theirs.is_one(path)
    if (theirs.checksum(path) if foreign else checksum(path)) != run.finetune.checksum:
        raise CheckpointError(f"{path}: is another {'model' if foreign else 'checkpoint'} than this run began with; restore it")
    return _base(path, run)


def told_of_head(run: spec.Run) -> str | None:
    """What of a settled run's parameters its base has not, and what of the base's is left behind, where they have different heads."""
    base = None if run.finetune is None else _base(Path(run.finetune.base), run)
    head = run.data.objective.head
    if base is None or head is None or not base.heads:
        return None
    left = [path for path in base.paths if base.lacks(path)]
    return f"the head is new: {', '.join(_of_task(head))}; left behind: {', '.join(sorted(left)) or 'nothing'}"


def beside(run: spec.Run) -> Iterable[Path]:
    """Files of the base's that plait has no use for, and that an export shall have again: of a model that came from Hugging Face."""
    if run.finetune is None:
        return ()
    path = Path(run.finetune.base)
    return theirs.beside(path if theirs.is_one(path) else path.parent.parent / KEPT)


def checksum(checkpoint: Path) -> str:
    """Of a checkpoint, the one that its manifest is sealed with. Raises CheckpointError."""
    manifest.read(checkpoint)
    return str(json.loads((checkpoint / manifest.FILE).read_bytes())["sha256"])[:16]


class Base:
    """A checkpoint that another run goes on from. heads: patterns of what belongs to its head, where the run has another."""

    def __init__(self, checkpoint: Path, heads: Sequence[str] = ()) -> None:
        self.checkpoint, self.heads = checkpoint, heads
        self._whole = manifest.read(checkpoint)

    @property
    def paths(self) -> list[str]:
        return [name.removeprefix("model.") for name in self._whole.tensors if name.startswith("model.")]

    def lacks(self, path: str) -> bool:
        """Whether a parameter begins afresh."""
        return _fits(path, self.heads)

    def fill(self, state: dict[str, Any], elsewhere: Collection[str]) -> None:
        """Read the tensors of `state`, in place and in whatever dtype they are. Raises CheckpointError: missing ones, ones left over."""
        from plait.train.checkpoint import load

        there = {name: _like(name, value, self._whole.tensors.get(name)) for name, value in state.items()}
        load(self.checkpoint, there, only="model.", elsewhere={*elsewhere, *filter(self.lacks, self.paths)})
        for name, value in state.items():
            if there[name] is not value:
                _local(value).copy_(_taken(value, there[name]))


class ForeignBase:
    """A Hugging Face folder that a run goes on from. heads: as a checkpoint's."""

    def __init__(self, folder: Path, described: theirs.Described, heads: Sequence[str] = ()) -> None:
        self.folder, self._described, self.heads = folder, described, heads

    @property
    def paths(self) -> list[str]:
        return [weight.path for weight in self._described.dialect.weights(self._described.shape)]

    def lacks(self, path: str) -> bool:
        """Whether a parameter begins afresh."""
        return _fits(path, self.heads)

    def opened(self) -> theirs_of.Tensors:
        """Its tensors, to be read by hand."""
        return theirs_of.Tensors(self.folder, self._described.dialect, self._described.shape)

    def fill(self, state: dict[str, Any], elsewhere: Collection[str]) -> None:
        """As a checkpoint's."""
        with self.opened() as tensors:
            tensors.fill(state, {*elsewhere, *filter(self.lacks, self.paths)})


@dataclass(frozen=True)
class _Found:
    """What is known of a base before anything is read of it. path: the checkpoint, or the folder itself where it is Hugging Face's. run:
    its settings. parameters: shapes by path."""

    path: Path
    folder: Path
    run: spec.Run
    tokenizer: Path
    vocabulary: int
    checksum: str
    parameters: Mapping[str, Sequence[int]]


def _found(run: spec.Run, kept: str | None) -> _Found:
    """kept: the checksum of the base that the run began with, if it has begun."""
    assert run.finetune is not None
    path = Path(run.finetune.base)
    return _foreign(path, run, kept) if theirs.is_one(path) else _own(path, run.finetune, kept)


def _own(base: Path, finetune: spec.Finetune, kept: str | None) -> _Found:
    checkpoint = _pinned(base, kept)
    folder = checkpoint.parent.parent
    run = read_run(folder)
    check_floats(folder, "are not trained further")
    if run.adapted:
        raise RunFileError(f'finetune.from = "{finetune.base}": holds adapters alone; merge them first: plait merge {folder} --out ...')
    tensors = manifest.read(checkpoint).tensors
    shapes = {name.removeprefix("model."): entry.shape for name, entry in tensors.items() if name.startswith("model.")}
    rows = read_about(folder)["identity"]["data.vocabulary"]
    return _Found(checkpoint, folder, run, tokenizer_file(folder), rows, checksum(checkpoint), shapes)


def _foreign(folder: Path, run: spec.Run, kept: str | None) -> _Found:
    described, told = _described(folder, run), theirs.checksum(folder)
    with theirs_of.Tensors(folder, described.dialect, described.shape) as tensors:
        shapes = {path: weight.shape for path, weight in tensors.weights.items()}
    if kept not in (None, told):
        raise CheckpointError(f'finetune.from = "{folder}": is no longer the model that this run began with; choose another --out')
    return _Found(folder, folder, described.run, described.tokenizer, described.shape.vocabulary, told, shapes)


def _described(folder: Path, run: spec.Run) -> theirs.Described:
    """For as many positions as the run asks for."""
    asked = run.data.sequence if "sequence" in run.data.model_fields_set else None
    found = theirs.describe(folder, None, "data.sequence = ")
    return found if asked is None or not found.run.model.any_length else theirs.describe(folder, asked, "data.sequence = ")


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
    read_about(path)
    found = manifest.candidates(path / "checkpoints")
    if not found:
        raise CheckpointError(f'finetune.from = "{path}": has no complete checkpoint yet; let plait train save one')
    same = [checkpoint for checkpoint in found if checksum(checkpoint) == kept]
    if kept is not None and not same:
        raise CheckpointError(f'finetune.from = "{path}": no longer has the checkpoint that this run began with; choose another --out')
    return (same or found)[0]


def _base(path: Path, run: spec.Run) -> Base | ForeignBase:
    if theirs.is_one(path):
        described = _described(path, run)
        return ForeignBase(path, described, _heads(run.data.objective, described.run.data.objective))
    return Base(path, _heads(run.data.objective, read_run(path.parent.parent).data.objective))


def _heads(mine: spec.Objective, theirs: spec.Objective) -> Sequence[str]:
    """Patterns of what a base of another task has for that task alone."""
    if mine.head is None and theirs.head is None:
        return ()
    return () if (mine.kind, mine.labels) == (theirs.kind, theirs.labels) else spec.OF_HEADS


def _known(mine: spec.Objective, theirs: spec.Objective) -> dict[str, Any]:
    """What a base of the same task tells of labels and numbers, where the run does not."""
    told = {"labels": theirs.labels, "scale": theirs.scale} if mine.kind == theirs.kind else {}
    return {name: value for name, value in told.items() if value is not None and getattr(mine, name) is None}


def _of_task(head: spec.Head) -> list[str]:
    """Parameters of a task's head."""
    layers = ["pooler", "task_head"] if head.pooled else ["task_head"]
    return [f"{layer}.{part}" for layer in layers for part in ("bias", "weight")]


def _fits(path: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(path, pattern) for pattern in patterns)


def _check_patterns(finetune: spec.Finetune, objective: spec.Objective, found: _Found) -> None:
    """Of the parameters that the run will have, should its head be another than the base's."""
    shapes = found.parameters
    matrices = [path for path, shape in shapes.items() if len(shape) == 2 and not path.startswith(("embed.", "positions."))]
    paths, heads = list(shapes), _heads(objective, found.run.data.objective)
    if objective.head is not None and heads:
        paths = [path for path in paths if not _fits(path, heads)] + _of_task(objective.head)
    if wrong := finetune.misses([path for path in matrices if path in paths], paths):
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
    if not base.model.any_length and run.data.sequence > base.data.sequence:
        there = f"the model in {_named(run)} has learned {base.data.sequence} positions"
        raise RunFileError(f"data.sequence = {run.data.sequence}: {there}; write as many or less, or leave it out")
    return run.data.sequence


def _tokenizer(run: spec.Run, found: _Found) -> dict[str, Any]:
    """The base's, which is the only one that its numbers mean something in."""
    file, pattern = found.tokenizer, found.run.data.tokenizer.pattern
    given = run.data.tokenizer
    if "tokenizer" in run.data.model_fields_set:
        fingerprint = vocabulary.fingerprint(file, pattern)
        here = given if given.file is None else fetched.tokenizer(given, kept.place(run.data))
        if here.file is None or vocabulary.fingerprint(Path(here.file), here.pattern) != fingerprint:
            raise RunFileError(f"data.tokenizer: is not the one that the model in {_named(run)} was trained with; leave it out")
    return {"file": str(file)} | ({} if pattern is None else {"pattern": pattern})


def _named(run: spec.Run) -> str:
    assert run.finetune is not None
    return run.finetune.base


def _like(name: str, value: Any, entry: manifest.TensorEntry | None) -> Any:
    """The tensor itself, or an empty one of the dtype that is stored, of positions with all that are stored."""
    more = name == POSITIONS and entry is not None and entry.shape[0] > value.shape[0]
    if entry is None or (str(value.dtype) == entry.dtype and not more):
        return value
    import torch

    from plait.replica.placed import Placed

    dtype = getattr(torch, entry.dtype.removeprefix("torch."))
    if more:
        return torch.empty(entry.shape, dtype=dtype)
    empty = torch.empty_like(_local(value), dtype=dtype)
    return Placed(empty, value.part) if isinstance(value, Placed) else empty


def _taken(value: Any, read: Any) -> Any:
    """What a tensor holds of what was read for it: of more positions than it has the first."""
    if read.shape == value.shape:
        return _local(read)
    from plait.replica.placed import Placed

    first = read[: value.shape[0]]
    return value.part.take(first) if isinstance(value, Placed) else first


def _local(value: Any) -> Any:
    from plait.replica.placed import local_values

    return local_values(value).detach()
