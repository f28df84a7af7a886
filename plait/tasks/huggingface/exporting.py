"""plait export: the newest checkpoint of a run's folder becomes a model's folder of Hugging Face's.

Values come out of whatever pieces hold them, in whatever layout they were saved: a tensor of theirs is some rows of one of plait's, and
some of these rows at a time are gathered from the boxes that overlap them.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from plait import __version__, spec
from plait.data import tokenizer as tokenizers
from plait.data import vocabulary
from plait.data.tokenizer import Tokenizer
from plait.errors import CheckpointError, UserError
from plait.model.huggingface import Dialect, Shape, Source, dialect_of
from plait.tasks.huggingface import folder as theirs
from plait.tasks.huggingface.importing import KEPT
from plait.train import manifest, tensorfile
from plait.train.folder import read_about, read_run
from plait.train.manifest import Manifest, TensorEntry
from plait.train.tensorfile import BLOCK, DTYPES, Kind, TensorFile

CODES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
SHARD_BYTES = 5_000_000_000
SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "sep_token_id", "decoder_start_token_id")


@dataclass(frozen=True)
class Exported:
    """What has become of a run's folder. step: of the checkpoint that was taken."""

    folder: Path
    kind: str
    step: int
    bytes: int
    files: list[str]


def export_model(folder: str | Path, to: str | Path, *, dtype: str = "float32", shard_bytes: int = SHARD_BYTES) -> Exported:
    """Write the newest checkpoint of a run as transformers' from_pretrained reads it. dtype: "float32", "bfloat16" or "float16".

    Raises UserError: a model that no family there computes, a checkpoint that is damaged, a folder that holds something.
    """
    folder, to = Path(folder), Path(to)
    if dtype not in CODES:
        raise UserError(f"--dtype {dtype}: is none of {', '.join(CODES)}")
    run, about = read_run(folder), read_about(folder)["identity"]
    shape = Shape(run.model, about["data.vocabulary"], run.data.sequence)
    dialect = dialect_of(shape)
    if to.exists() and any(to.iterdir()):
        raise CheckpointError(f"{to}: holds something already; choose another --to")
    checkpoint = _newest(folder)
    with Stored(checkpoint) as stored:
        stored.check(dialect, shape)
        files = _write_verified(to, stored, dialect, shape, CODES[dtype], shard_bytes)
    tokenizer = _copy_beside(folder, to, run)
    _describe(folder, to, dialect, shape, dtype, tokenizer)
    written = sum((to / name).stat().st_size for name in files)
    return Exported(to, dialect.kind, manifest.step_of(checkpoint), written, sorted(path.name for path in to.iterdir()))


class Stored:
    """The parameters of a checkpoint, whose pieces may hold any boxes of them. Use as a context manager."""

    def __init__(self, path: Path) -> None:
        """Raises CheckpointError: a manifest or a piece that cannot be read."""
        self.path = path
        self._whole: Manifest = manifest.read(path)
        self.tensors = {name.removeprefix("model."): entry for name, entry in self._whole.tensors.items() if name.startswith("model.")}
        self.pieces = sorted({chunk.piece for entry in self.tensors.values() for chunk in entry.chunks})
        with ExitStack() as opened:
            self._files = {piece: opened.enter_context(TensorFile(path / piece)) for piece in self.pieces}
            self._open = opened.pop_all()

    def __enter__(self) -> Stored:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def check(self, dialect: Dialect, shape: Shape) -> None:
        """Raises CheckpointError where the parameters are not those that the settings mean."""
        wanted = {weight.path: list(weight.shape) for weight in dialect.weights(shape)}
        found = {path: entry.shape for path, entry in self.tensors.items()}
        if wrong := sorted(path for path in wanted.keys() | found.keys() if wanted.get(path) != found.get(path)):
            told = ", ".join(f"{path} ({found.get(path, 'missing')}, not {wanted.get(path, 'known')})" for path in wrong[:4])
            raise CheckpointError(f"{self.path}: does not hold the model that run.toml describes: {told}")

    def rows(self, path: str, first: int, end: int) -> tuple[np.ndarray, str]:
        """Rows [first, end) of a parameter seen as one matrix (of a vector: its values), and the code of their dtype."""
        entry = self.tensors[path]
        if len(entry.shape) < 3:
            return self._box(entry, [first, *(0 for _ in entry.shape[1:])], [end, *entry.shape[1:]])
        height = math.prod(entry.shape[1:-1])
        matrix, low = divmod(first, height)
        assert len(entry.shape) == 3, path
        assert low + end - first <= height, (path, first, end)
        values, code = self._box(entry, [matrix, low, 0], [matrix + 1, low + end - first, entry.shape[2]])
        return values[0], code

    def _box(self, entry: TensorEntry, low: list[int], high: list[int]) -> tuple[np.ndarray, str]:
        """The box [low, high), out of the chunks that overlap it."""
        box: np.ndarray | None = None
        code = ""
        for chunk in entry.chunks:
            file = self._files[chunk.piece]
            inside = [
                (max(a, offset), min(b, offset + size)) for a, b, offset, size in zip(low, high, chunk.offsets, chunk.sizes, strict=True)
            ]
            if any(a >= b for a, b in inside):
                continue
            local_low, local_high = (
                [edge - offset for edge, offset in zip(edges, chunk.offsets, strict=True)] for edges in zip(*inside, strict=True)
            )
            part, code = file.read(chunk.key, local_low, local_high), file.kinds[chunk.key].code
            if list(part.shape) == [b - a for a, b in zip(low, high, strict=True)]:
                return part, code
            if box is None:
                box = np.empty([b - a for a, b in zip(low, high, strict=True)], DTYPES[code])
            box[tuple(slice(a - start, b - start) for (a, b), start in zip(inside, low, strict=True))] = part
        assert box is not None, "the manifest's chunks cover a tensor"
        return box, code


def _newest(folder: Path) -> Path:
    found = manifest.latest(folder / "checkpoints")
    if found is None:
        raise CheckpointError(f"{folder}: has no complete checkpoint yet; let plait train save one")
    return found


def _write_verified(to: Path, stored: Stored, dialect: Dialect, shape: Shape, code: str, shard_bytes: int) -> list[str]:
    """Checksums are compared while the files are written; where one is wrong there is nothing in the end. Raises CheckpointError."""
    existed = to.exists()
    to.mkdir(parents=True, exist_ok=True)
    try:
        with ThreadPoolExecutor(1) as verifying:
            verified = verifying.submit(manifest.verify, stored.path, stored.pieces)
            files = _write(to, stored, dialect, shape, code, shard_bytes)
            verified.result()
    except BaseException:
        for path in to.glob("model*.safetensors*"):
            path.unlink()
        if not existed:
            to.rmdir()
        raise
    return files


def _write(to: Path, stored: Stored, dialect: Dialect, shape: Shape, code: str, shard_bytes: int) -> list[str]:
    """The files of tensors, and their index where there are several."""
    places = {source.name: (weight.path, source, first) for weight in dialect.weights(shape) for source, first in weight.spans()}
    shards = theirs.sharded({name: Kind(code, source.shape) for name, (_, source, _) in places.items()}, shard_bytes)
    for file, kinds in shards.items():
        tensorfile.write(to / file, kinds, lambda name: _blocks(stored, *places[name], code), {"format": "pt"})
    if len(shards) > 1:
        _write_json(to / theirs.INDEX, theirs.index(shards))
    return list(shards)


def _blocks(stored: Stored, path: str, source: Source, first: int, code: str) -> Iterator[np.ndarray]:
    if source.transposed:
        whole, kind = stored.rows(path, first, first + source.rows)
        columns = max(1, BLOCK // (whole.itemsize * len(whole)))
        for start in range(0, whole.shape[1], columns):
            yield tensorfile.cast(np.ascontiguousarray(whole[:, start : start + columns].T), kind, code)
        return
    rows = max(1, BLOCK // (4 * math.prod(source.shape[1:])))
    for start in range(first, first + source.rows, rows):
        values, kind = stored.rows(path, start, min(start + rows, first + source.rows))
        yield tensorfile.cast(values, kind, code)


def _copy_beside(folder: Path, to: Path, run: spec.Run) -> Tokenizer:
    """The tokenizer, and what was kept of an import."""
    found = next(iter(sorted(folder.glob("tokenizer.*"))), None)
    if found is None:
        raise CheckpointError(f"{folder}: the tokenizer is missing; run plait train on it once more")
    shutil.copy(found, to / found.name)
    for name in theirs.BESIDE:
        if (folder / KEPT / name).is_file():
            shutil.copy(folder / KEPT / name, to / name)
    return tokenizers.load(found, run.data.tokenizer.pattern)


def _describe(folder: Path, to: Path, dialect: Dialect, shape: Shape, dtype: str, tokenizer: Tokenizer) -> None:
    """config.json, and what an import did not bring along."""
    kept = folder / KEPT / theirs.CONFIG
    special = {key: value for key, value in (theirs.read_json(kept) if kept.is_file() else {}).items() if key in SPECIAL}
    end_of_text, begin = tokenizer.end_of_text, tokenizer.token(vocabulary.PADDING)
    special = special or {"bos_token_id": end_of_text, "eos_token_id": end_of_text}
    if shape.model.family == "t5":
        begin = end_of_text if begin is None else begin
        special = {"decoder_start_token_id": begin, "pad_token_id": begin, **special}
    told = {"architectures": [dialect.architecture], "model_type": dialect.kind, "dtype": dtype, "torch_dtype": dtype, "use_cache": True}
    _write_json(to / theirs.CONFIG, {**dialect.write(shape), **special, **told})
    if not (to / theirs.GENERATION).exists():
        _write_json(to / theirs.GENERATION, {**special, "plait_version": __version__})
    if not (to / "tokenizer_config.json").exists():
        end = tokenizer.decode([tokenizer.end_of_text])
        of_tokenizer = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": end, "eos_token": end}
        masks = [name for name in vocabulary.MASKS if tokenizer.token(name) is not None]
        of_tokenizer |= {"mask_token": masks[0]} if masks else {}
        _write_json(
            to / "tokenizer_config.json", {**of_tokenizer, "model_max_length": shape.context, "clean_up_tokenization_spaces": False}
        )


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
