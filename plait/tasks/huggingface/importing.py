"""plait import: a model's folder of Hugging Face's becomes a run's folder, of a run of no steps.

config.json  ─►  run.toml, about.json
tensors      ─►  checkpoints/step-00000000, block by block: no tensor but a transposed one is ever in memory as a whole
tokenizer    ─►  tokenizer.json
the rest     ─►  huggingface/, for the way back
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from plait import spec
from plait.data import tokenizer as tokenizers
from plait.errors import CheckpointError, RunFileError
from plait.model.huggingface import Config, Dialect, Shape, Source, Weight, dialect
from plait.tasks.huggingface import folder as theirs
from plait.tasks.huggingface.folder import Tensors
from plait.train import manifest, tensorfile
from plait.train.folder import Folder
from plait.train.manifest import Chunk, Manifest, Piece, TensorEntry
from plait.train.tensorfile import BLOCK, Kind

PIECE_BYTES = 256 << 20
KEPT = "huggingface"
"""The folder, in a run's, where files of theirs are kept that plait has no use for."""


@dataclass(frozen=True)
class Imported:
    """What has become of a folder."""

    folder: Path
    kind: str
    parameters: int
    bytes: int
    writes: bool

    @property
    def next(self) -> str:
        """What one does with it."""
        go_on = f'write finetune.from = "{self.folder}" in a run file'
        return f'next: plait generate {self.folder} --prompt "...", or {go_on}' if self.writes else f"next: {go_on}"


def import_model(source: str | Path, out: str | Path, *, context: int | None = None) -> Imported:
    """Make a run's folder `out` of a model that transformers saved. context: fewer positions than it was made for.

    Raises CheckpointError: a feature that plait lacks, tensors that are missing or left over, a folder that is no such model.
    """
    source, out = Path(source), Path(out)
    values = theirs.read_json(source / theirs.CONFIG)
    dialect, shape = _described(values, source / theirs.CONFIG, context)
    tokenizer = _tokenizer_of(source, shape)
    weights = list(dialect.weights(shape))
    with Tensors(source, dialect) as tensors:
        if shape.model.tied_head:
            tensors.drop("lm_head.weight")
        tensors.check(weights)
        with Folder(out) as folder:
            run = _claim(folder, source, shape, tokenizer)
            written = _write(folder.checkpoints, weights, tensors, run)
    _keep(source, out, values)
    return Imported(out, dialect.kind, sum(math.prod(weight.shape) for weight in weights), written.bytes, shape.model.family != "bert")


def _described(values: dict[str, Any], where: Path, context: int | None) -> tuple[Dialect, Shape]:
    """The model that a config describes. Raises CheckpointError."""
    if "auto_map" in values or "quantization_config" in values:
        what = "code of its own (auto_map)" if "auto_map" in values else "quantised tensors (quantization_config)"
        raise CheckpointError(f"{where}: is a model with {what}, which plait does not take")
    config = Config(values, str(where), context)
    found = dialect(str(values.get("model_type")), str(where))
    settings = found.read(config)
    config.finish()
    vocabulary, positions = settings.pop("vocabulary"), settings.pop("context")
    try:
        run = spec.parse(_run_table(settings, positions, where.parent, theirs.TOKENIZER[0]))
    except RunFileError as error:
        raise CheckpointError(f"{where}: {error}") from None
    return found, Shape(run.model, vocabulary, positions)


def _run_table(settings: Mapping[str, Any], context: int, source: Path, tokenizer: str) -> dict[str, Any]:
    """A run of no data yet; training begins with a run file of one's own."""
    model = {key: value for key, value in settings.items() if value is not None}
    data: dict[str, Any] = {"corpus": [f"none: imported from {source.name}"], "tokenizer": {"file": tokenizer}, "sequence": context}
    if settings["family"] in ("bert", "t5"):
        data["objective"] = {"kind": "masked" if settings["family"] == "bert" else "span"}
    return {"model": model, "data": data, "train": {"duration": "1 steps"}}


def _tokenizer_of(source: Path, shape: Shape) -> Path:
    """Raises CheckpointError, DataError: none, or one with tokens that the model has no row for."""
    found = next((source / name for name in theirs.TOKENIZER if (source / name).is_file()), None)
    if found is None:
        raise CheckpointError(
            f"{source}: has no {' and no '.join(theirs.TOKENIZER)}; save one there: AutoTokenizer.from_pretrained(...).save_pretrained(...)"
        )
    size = tokenizers.load(found).vocabulary
    if size > shape.vocabulary:
        raise CheckpointError(f"{found}: has {size} tokens, and the model's vocab_size = {shape.vocabulary}; it is another model's")
    return found


def _claim(folder: Folder, source: Path, shape: Shape, tokenizer: Path) -> spec.Run:
    if manifest.saved(folder.checkpoints):
        raise CheckpointError(f"{folder.path}: holds a model already; choose another --out")
    kept = "tokenizer" + tokenizer.suffix
    table = _run_table(shape.model.model_dump(exclude_none=True), shape.context, source.resolve(), str((folder.path / kept).resolve()))
    run = spec.parse(table)
    told = {"fingerprint": f"imported {source.resolve().name}", "vocabulary": shape.vocabulary}
    folder.claim(run, {**told, "tokenizer_fingerprint": tokenizers.load(tokenizer).fingerprint})
    shutil.copy(tokenizer, folder.path / kept)
    return run


def _write(checkpoints: Path, weights: list[Weight], tensors: Tensors, run: spec.Run) -> Manifest:
    """A checkpoint of step 0, of parameters alone."""
    partial = manifest.partial_folder(checkpoints, 0)
    try:
        entries: dict[str, TensorEntry] = {}
        pieces: dict[str, Piece] = {}
        for number, piece in enumerate(_pieces(weights)):
            file = f"piece-0000-{number:03d}.safetensors"
            by_name = {f"model.{weight.path}": weight for weight in piece}
            kinds = {name: Kind("F32", weight.shape) for name, weight in by_name.items()}
            written = tensorfile.write_hashed(partial / file, kinds, lambda name, by_name=by_name: _blocks(by_name[name], tensors))  # type: ignore[misc]
            pieces[file] = Piece(written.bytes, written.sha256)
            for name, kind in kinds.items():
                shape = list(kind.shape)
                entries[name] = TensorEntry("float32", shape, [Chunk([0] * len(shape), shape, file, name)])
        whole = Manifest(0, {"run": run.resolved(), "position": {"step": 0}}, {}, dict(sorted(entries.items())), pieces)
        manifest.write(partial, whole)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return whole


def _pieces(weights: list[Weight]) -> Iterator[list[Weight]]:
    piece: list[Weight] = []
    size = 0
    for weight in weights:
        bytes_ = 4 * math.prod(weight.shape)
        if piece and size + bytes_ > PIECE_BYTES:
            yield piece
            piece, size = [], 0
        piece.append(weight)
        size += bytes_
    yield piece


def _blocks(weight: Weight, tensors: Tensors) -> Iterator[np.ndarray]:
    for source, _ in weight.spans():
        for block, code in _turned(source, tensors) if source.transposed else _straight(source, tensors):
            yield tensorfile.cast(block, code, "F32")


def _straight(source: Source, tensors: Tensors) -> Iterator[tuple[np.ndarray, str]]:
    """Some rows after the other."""
    file, name = tensors.file(source.name)
    kind, rest = file.kinds[name], source.shape[1:]
    rows = max(1, BLOCK // (4 * math.prod(rest)))
    for first in range(0, source.shape[0], rows):
        end = min(first + rows, source.shape[0])
        yield file.read(name, (first, *(0 for _ in rest)), (end, *rest)), kind.code


def _turned(source: Source, tensors: Tensors) -> Iterator[tuple[np.ndarray, str]]:
    """The whole is read, and some of its columns after the other become rows."""
    file, name = tensors.file(source.name)
    whole = file.read(name, (0, 0), source.shape)
    columns = max(1, BLOCK // (4 * source.shape[0]))
    for first in range(0, source.shape[1], columns):
        yield np.ascontiguousarray(whole[:, first : first + columns].T), file.kinds[name].code


def _keep(source: Path, out: Path, config: dict[str, Any]) -> None:
    """What plait has no use for, and an export shall have again."""
    kept = out / KEPT
    kept.mkdir(exist_ok=True)
    for name in (theirs.CONFIG, *theirs.BESIDE):
        if (source / name).is_file():
            shutil.copy(source / name, kept / name)
