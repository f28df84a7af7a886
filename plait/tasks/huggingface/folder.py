"""A model's folder as Hugging Face lays it out.

config.json                         what is computed
model.safetensors                   the values; or model-00001-of-00003.safetensors, ... and model.safetensors.index.json
tokenizer.json, tokenizer_config.json, generation_config.json, ...
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from plait.errors import CheckpointError
from plait.model.huggingface import Dialect, Weight
from plait.train.tensorfile import FLOATS, Kind, TensorFile

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
_SHOWN = 8


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


class Tensors:
    """The tensors of a folder, under the names of a model with a head. Use as a context manager."""

    def __init__(self, folder: Path, dialect: Dialect) -> None:
        """Raises CheckpointError: no safetensors files, or one that is listed and missing."""
        self._folder, self._open = folder, ExitStack()
        self._places: dict[str, tuple[TensorFile, str]] = {}
        with ExitStack() as opened:
            for path in _files(folder):
                file = opened.enter_context(TensorFile(path))
                self._places |= {name: (file, name) for name in file.kinds}
            self._open = opened.pop_all()
        self._name_alike(dialect)

    def __enter__(self) -> Tensors:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def kind(self, name: str) -> Kind:
        file, stored = self._places[name]
        return file.kinds[stored]

    def file(self, name: str) -> tuple[TensorFile, str]:
        """Where a tensor is, and under which name."""
        return self._places[name]

    def check(self, weights: Iterable[Weight]) -> None:
        """Raises CheckpointError listing tensors that are missing or left over, and those of other shapes."""
        wanted = {source.name: source.shape for weight in weights for source in weight.sources}
        wrong = _listed("missing", wanted.keys() - self._places.keys()) + _listed(
            "there, but in no model", self._places.keys() - wanted.keys()
        )
        for name, shape in wanted.items():
            if name in self._places and (kind := self.kind(name)).shape != shape:
                wrong.append(f"{name}: {list(kind.shape)} there, {list(shape)} by {CONFIG}")
            elif name in self._places and kind.code not in FLOATS:
                wrong.append(f"{name}: is stored as {kind.code}, quantised perhaps, which plait does not read")
        if wrong:
            raise CheckpointError(f"{self._folder}: its tensors are not those of {CONFIG}:\n  " + "\n  ".join(wrong[: 2 * _SHOWN]))

    def _name_alike(self, dialect: Dialect) -> None:
        """A model that was saved without its head lacks the prefix; what no logit hangs on is left out."""
        if dialect.prefix and not any(name.startswith(dialect.prefix) for name in self._places):
            self._places = {name if name == "lm_head.weight" else dialect.prefix + name: place for name, place in self._places.items()}
        for name, original in dialect.copies.items():
            if name not in self._places and original in self._places:
                self._places[name] = self._places[original]
        for old, new in dialect.renamed.items():
            places = self._places.items()
            self._places = {name.removesuffix(old) + new if name.endswith(old) else name: place for name, place in places}
        unused = [name for name in self._places if any(fnmatchcase(name, pattern) for pattern in dialect.unused)]
        for name in unused:
            del self._places[name]

    def drop(self, name: str) -> None:
        """Leave a tensor out that is another one's copy."""
        self._places.pop(name, None)


def sharded(kinds: Mapping[str, Kind], most: int) -> dict[str, dict[str, Kind]]:
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
        return {WHOLE: shards[0]}
    return {f"model-{number:05d}-of-{len(shards):05d}.safetensors": shard for number, shard in enumerate(shards, 1)}


def index(shards: Mapping[str, Mapping[str, Kind]]) -> dict[str, Any]:
    """What INDEX says."""
    total = sum(kind.bytes for shard in shards.values() for kind in shard.values())
    return {"metadata": {"total_size": total}, "weight_map": {name: file for file, shard in shards.items() for name in shard}}


def _files(folder: Path) -> list[Path]:
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


def _listed(what: str, names: Iterable[str]) -> list[str]:
    found = sorted(names)
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return [f"{what}: {', '.join(found[:_SHOWN])}{more}"] if found else []
