"""plait export: the newest checkpoint of a run's folder becomes a model's folder of Hugging Face's, or one of adapters.

Values come out of wherever they stand (stored.py): a tensor of theirs is some rows of one of plait's, and some of these rows at a time are
gathered, with what adapters add to them.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from plait import __version__, spec
from plait.data import bpe, chat, vocabulary
from plait.data import tokenizer as tokenizers
from plait.data.samples import Frame
from plait.data.tokenizer import Tokenizer
from plait.errors import CheckpointError, UserError
from plait.model.huggingface import Dialect, Shape, Source, dialect_of
from plait.tasks.huggingface import adapters
from plait.tasks.huggingface.stored import Foreign, Merged, Stored, Values, check
from plait.train import manifest, tensorfile
from plait.train.base import ForeignBase, base_of
from plait.train.folder import KEPT, check_floats, read_about, read_run
from plait.train.huggingface import folder as theirs
from plait.train.tensorfile import BLOCK, Kind

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


def export_model(
    folder: str | Path, to: str | Path, *, dtype: str = "float32", shard_bytes: int = SHARD_BYTES, adapter: bool = False
) -> Exported:
    """Write the newest checkpoint of a run as transformers' from_pretrained reads it. dtype: "float32", "bfloat16" or "float16".

    adapter: of a run that trained adapters, these alone, as PEFT reads them; else they are added to the weights of the base.
    Raises UserError: a model that no family there computes, a checkpoint that is damaged, a folder that holds something.
    """
    folder, to = Path(folder), Path(to)
    if dtype not in CODES:
        raise UserError(f"--dtype {dtype}: is none of {', '.join(CODES)}")
    run, about = read_run(folder), read_about(folder)["identity"]
    check_floats(folder, "are not exported")
    if adapter and not run.adapted:
        raise UserError(f"--adapter: {folder} has no adapters; leave it out")
    shape = Shape(run.model, about["data.vocabulary"], run.data.sequence, run.data.objective)
    dialect = dialect_of(shape)
    if to.exists() and any(to.iterdir()):
        raise CheckpointError(f"{to}: holds something already; choose another --to")
    checkpoint = _newest(folder)
    with _values_of(run, checkpoint, shape, whole=not adapter) as values, _all_or_nothing(to, values):
        if adapter:
            base = base_of(run)
            name = str(base.folder) if isinstance(base, ForeignBase) else None
            assert run.finetune is not None
            written = adapters.write(to, values, run.finetune, dialect, shape, CODES[dtype], name)
        else:
            check(values, checkpoint, dialect, shape)
            written = _write(to, values, dialect, shape, CODES[dtype], shard_bytes)
    tokenizer = _copy_beside(folder, to, run)
    if not adapter:
        _describe(folder, to, dialect, shape, dtype, tokenizer)
    return Exported(to, dialect.kind, manifest.step_of(checkpoint), written, sorted(path.name for path in to.iterdir()))


@contextmanager
def _values_of(run: spec.Run, checkpoint: Path, shape: Shape, whole: bool) -> Iterator[Values]:
    """What a checkpoint holds; whole: with all that its base does, where it has adapters alone."""
    with ExitStack() as opened:
        trained = opened.enter_context(Stored(checkpoint))
        base = base_of(run) if run.adapted and whole else None
        if base is None:
            yield trained
            return
        assert run.finetune is not None
        assert run.finetune.lora is not None
        there: Foreign | Stored = Foreign(base.opened()) if isinstance(base, ForeignBase) else Stored(base.checkpoint)
        opened.enter_context(there)
        fewer = {} if shape.model.any_length else {"positions.weight": shape.context}
        yield Merged(there, trained, run.finetune.lora, fewer)


@contextmanager
def _all_or_nothing(to: Path, values: Values) -> Iterator[None]:
    """Checksums are compared while files are written; where one is wrong there is nothing in the end. Raises CheckpointError."""
    existed = to.exists()
    to.mkdir(parents=True, exist_ok=True)
    try:
        with ThreadPoolExecutor(1) as verifying:
            verified = verifying.submit(values.verify)
            yield
            verified.result()
    except BaseException:
        for path in to.iterdir():
            path.unlink()
        if not existed:
            to.rmdir()
        raise


def _newest(folder: Path) -> Path:
    found = manifest.latest(folder / "checkpoints")
    if found is None:
        raise CheckpointError(f"{folder}: has no complete checkpoint yet; let plait train save one")
    return found


def _write(to: Path, stored: Values, dialect: Dialect, shape: Shape, code: str, shard_bytes: int) -> int:
    """The files of tensors, and their index where there are several; returns the bytes of the former."""
    places = {source.name: (weight.path, source, first) for weight in dialect.weights(shape) for source, first in weight.spans()}
    shards = _sharded({name: Kind(code, source.shape) for name, (_, source, _) in places.items()}, shard_bytes)
    written = 0
    for file, kinds in shards.items():
        written += tensorfile.write(to / file, kinds, lambda name: _blocks(stored, *places[name], code), {"format": "pt"})
    if len(shards) > 1:
        _write_json(to / theirs.INDEX, _index(shards))
    return written


def _sharded(kinds: Mapping[str, Kind], most: int) -> dict[str, dict[str, Kind]]:
    """Files of at most so many bytes (one with a single larger tensor aside), by name."""
    shards: list[dict[str, Kind]] = [{}]
    size = 0
    for name, kind in kinds.items():
        if shards[-1] and size + kind.bytes > most:
            shards.append({})
            size = 0
        shards[-1][name] = kind
        size += kind.bytes
    if len(shards) == 1:
        return {theirs.WHOLE: shards[0]}
    return {f"model-{number:05d}-of-{len(shards):05d}.safetensors": shard for number, shard in enumerate(shards, 1)}


def _index(shards: Mapping[str, Mapping[str, Kind]]) -> dict[str, Any]:
    """What the file of that name says."""
    total = sum(kind.bytes for shard in shards.values() for kind in shard.values())
    return {"metadata": {"total_size": total}, "weight_map": {name: file for file, shard in shards.items() for name in shard}}


def _blocks(stored: Values, path: str, source: Source, first: int, code: str) -> Iterator[np.ndarray]:
    if source.transposed:
        whole, kind = stored.rows(path, first, first + source.rows)
        columns = max(1, BLOCK // (whole.itemsize * len(whole)))
        for start in range(0, whole.shape[1], columns):
            yield tensorfile.cast(tensorfile.transposed(whole[:, start : start + columns]), kind, code)
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
    for path in theirs.beside(folder / KEPT):
        if path.name != theirs.CONFIG:
            shutil.copy(path, to / path.name)
    if (template := folder / chat.FILE).is_file():  # the one that it was trained with
        shutil.copy(template, to / chat.FILE)
    tokenizer = tokenizers.load(found, run.data.tokenizer.pattern)
    if run.data.objective.labelled and found.suffix == ".json":
        begin, end = (tokenizer.decode([token]) for token in Frame.of(tokenizer, run.data.sequence)[1:])
        (to / found.name).write_text(bpe.framed(found.read_text(encoding="utf-8"), begin, end), encoding="utf-8")
    return tokenizer


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
        of_tokenizer |= {"pad_token": end} if shape.objective.labelled else {}
        _write_json(
            to / "tokenizer_config.json", {**of_tokenizer, "model_max_length": shape.context, "clean_up_tokenization_spaces": False}
        )


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
