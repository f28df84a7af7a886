"""A model's folder as Hugging Face lays it out, and what it says of its model.

config.json                         what is computed
model.safetensors                   the values; or model-00001-of-00003.safetensors, ... and model.safetensors.index.json
tokenizer.json, tokenizer_config.json, generation_config.json, ...

Torch is not needed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plait import spec
from plait.data import tokenizer as tokenizers
from plait.errors import CheckpointError, RunFileError
from plait.model.huggingface import Config, Dialect, Shape, dialect
from plait.train import manifest

CONFIG = "config.json"
GENERATION = "generation_config.json"
INDEX = "model.safetensors.index.json"
WHOLE = "model.safetensors"
TOKENIZER = ("tokenizer.json", "tokenizer.model", "spiece.model")
"""The tokenizer itself, whichever comes first."""
BESIDE = (
    GENERATION,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
)
"""What belongs to the tokenizer and to generation, kept as it is."""


def is_one(folder: Path) -> bool:
    """Whether a folder is a model of theirs, and no run of plait's."""
    return (folder / CONFIG).is_file() and not (folder / "about.json").exists()


@dataclass(frozen=True)
class Described:
    """What a folder says. run: with the model's settings, and of no data yet. tokenizer: its file."""

    dialect: Dialect
    shape: Shape
    run: spec.Run
    tokenizer: Path


def describe(folder: Path, context: int | None = None, asked: str = "--context ") -> Described:
    """context: fewer positions than it was made for; asked: how these are asked for, as messages say it.

    Raises CheckpointError: no such folder, a feature that plait lacks, no tokenizer, one with tokens that the model has no row for.
    """
    values, where = read_json(folder / CONFIG), folder / CONFIG
    if "auto_map" in values or "quantization_config" in values:
        what = "code of its own (auto_map)" if "auto_map" in values else "quantised tensors (quantization_config)"
        raise CheckpointError(f"{where}: is a model with {what}, which plait does not take")
    config = Config(values, str(where), context, asked)
    found = dialect(str(values.get("model_type")), str(where), values.get("architectures") or ())
    settings = found.read(config)
    config.finish()
    vocabulary, positions, told = settings.pop("vocabulary"), settings.pop("context"), settings.pop("objective", None)
    tokenizer = _tokenizer(folder)
    try:
        run = spec.parse(run_table(settings, positions, folder, str(tokenizer), told))
    except RunFileError as error:
        raise CheckpointError(f"{where}: {error}") from None
    size = tokenizers.load(tokenizer).vocabulary
    if size > vocabulary:
        raise CheckpointError(f"{tokenizer}: has {size} tokens, and the model's vocab_size = {vocabulary}; it is another model's")
    return Described(found, Shape(run.model, vocabulary, positions, run.data.objective), run, tokenizer)


def run_table(
    settings: Mapping[str, Any], context: int, source: Path, tokenizer: str, objective: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """A run of no data yet; training begins with a run file of one's own. objective: what its head tells, where not what is usual."""
    model = {key: value for key, value in settings.items() if value is not None}
    data: dict[str, Any] = {"corpus": [f"none: imported from {source.name}"], "tokenizer": {"file": tokenizer}, "sequence": context}
    if settings["family"] in ("bert", "t5"):
        data["objective"] = objective or {"kind": "masked" if settings["family"] == "bert" else "span"}
    return {"model": model, "data": data, "train": {"duration": "1 steps"}}


def read_json(path: Path) -> dict[str, Any]:
    """Raises CheckpointError."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent}: has no {path.name}; name a model's folder, as save_pretrained writes it") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: is no JSON object")
    return found


def files(folder: Path) -> list[Path]:
    """Those of tensors. Raises CheckpointError: none."""
    if (folder / INDEX).is_file():
        names = sorted(set(read_json(folder / INDEX).get("weight_map", {}).values()))
        if any(Path(name).name != name for name in names):
            raise CheckpointError(f"{folder / INDEX}: names files outside of its folder")
        return [folder / name for name in names]
    if (folder / WHOLE).is_file():
        return [folder / WHOLE]
    pickles = sorted(path.name for path in folder.glob("*.bin"))
    hint = f"; {pickles[0]} is a pickle, which can run code when it is opened: save it as safetensors" if pickles else ""
    raise CheckpointError(f"{folder}: has no {WHOLE} and no {INDEX}{hint}")


def beside(folder: Path) -> Iterator[Path]:
    """The files there that plait has no use for, and an export shall have again."""
    return (folder / name for name in (CONFIG, *BESIDE) if (folder / name).is_file())


def checksum(folder: Path) -> str:
    """Of all that its model consists of: the config, and each byte of its tensors. Raises CheckpointError."""
    digest = hashlib.sha256(json.dumps(read_json(folder / CONFIG), sort_keys=True).encode())
    with ThreadPoolExecutor(8) as pool:  # hashlib releases the interpreter's lock
        for told in pool.map(manifest.checksum, files(folder)):
            digest.update(told.encode())
    return digest.hexdigest()[:16]


def _tokenizer(folder: Path) -> Path:
    found = next((folder / name for name in TOKENIZER if (folder / name).is_file()), None)
    if found is None:
        raise CheckpointError(
            f"{folder}: has no {' and no '.join(TOKENIZER)}; save one there: AutoTokenizer.from_pretrained(...).save_pretrained(...)"
        )
    return found
