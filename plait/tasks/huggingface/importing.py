"""plait import: a model's folder of Hugging Face's becomes a run's folder, of a run of no steps.

config.json  ─►  run.toml, about.json
tensors      ─►  checkpoints/step-00000000, block by block: no tensor but a transposed one is ever in memory as a whole
tokenizer    ─►  tokenizer.json
the rest     ─►  huggingface/, for the way back
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from plait import spec
from plait.data import tokenizer as tokenizers
from plait.errors import CheckpointError
from plait.model.huggingface import Weight
from plait.tasks.using import command
from plait.train import manifest, tensorfile
from plait.train.folder import Folder
from plait.train.huggingface import folder as theirs
from plait.train.huggingface.folder import Described
from plait.train.huggingface.tensors import Tensors
from plait.train.manifest import Chunk, Manifest, Piece, TensorEntry
from plait.train.tensorfile import Kind

PIECE_BYTES = 256 << 20


@dataclass(frozen=True)
class Imported:
    """What has become of a folder. run: of no steps."""

    folder: Path
    kind: str
    parameters: int
    bytes: int
    run: spec.Run

    @property
    def next(self) -> str:
        """What one does with it. An encoder-decoder of theirs may translate: nobody knows its past, but for what is put before a source."""
        go_on = f'write finetune.from = "{self.folder}" in a run file'
        at_once = [command(self.run, self.folder)]
        if self.run.model.family == "t5":
            at_once.append(f'plait translate {self.folder} --prefix "..." "..."')
        return f"next: {', or '.join([*filter(None, at_once), go_on])}"


def import_model(source: str | Path, out: str | Path, *, context: int | None = None) -> Imported:
    """Make a run's folder `out` of a model that transformers saved. context: fewer positions than it was made for.

    Raises CheckpointError: a feature that plait lacks, tensors that are missing or left over, a folder that is no such model.
    """
    source, out = Path(source), Path(out)
    described = theirs.describe(source, context)
    with Tensors(source, described.dialect, described.shape) as tensors, Folder(out) as folder:
        run = _claim(folder, source, described)
        written = _write(folder.checkpoints, tensors, run)
        folder.keep(theirs.beside(source))
    parameters = sum(math.prod(weight.shape) for weight in tensors.weights.values())
    return Imported(out, described.dialect.kind, parameters, written.bytes, run)


def _claim(folder: Folder, source: Path, described: Described) -> spec.Run:
    if manifest.saved(folder.checkpoints):
        raise CheckpointError(f"{folder.path}: holds a model already; choose another --out")
    kept, shape = "tokenizer" + described.tokenizer.suffix, described.shape
    table = theirs.run_table(
        shape.model.model_dump(exclude_none=True),
        shape.context,
        source.resolve(),
        str((folder.path / kept).resolve()),
        shape.objective.model_dump(exclude_none=True),
    )
    run = spec.parse(table)
    told = {"fingerprint": f"imported {source.resolve().name}", "vocabulary": shape.vocabulary}
    folder.claim(run, {**told, "tokenizer_fingerprint": tokenizers.load(described.tokenizer).fingerprint})
    shutil.copy(described.tokenizer, folder.path / kept)
    return run


def _write(checkpoints: Path, tensors: Tensors, run: spec.Run) -> Manifest:
    """A checkpoint of step 0, of parameters alone."""
    partial = manifest.partial_folder(checkpoints, 0)
    try:
        entries: dict[str, TensorEntry] = {}
        pieces: dict[str, Piece] = {}
        for number, piece in enumerate(_pieces(tensors.weights.values())):
            file = f"piece-0000-{number:03d}.safetensors"
            kinds = {f"model.{weight.path}": Kind("F32", weight.shape) for weight in piece}
            written = tensorfile.write_hashed(partial / file, kinds, lambda name: tensors.blocks(name.removeprefix("model.")))
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


def _pieces(weights: Iterable[Weight]) -> Iterator[list[Weight]]:
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
