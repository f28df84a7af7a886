"""The tensors of a Hugging Face folder, under plait's names and in plait's shapes: any box of any of them, read from where it stands.

blocks.0.attention.qkv.weight, rows [48, 80), columns [0, 16)  ─►  q_proj.weight  rows [48, 64)  columns [0, 16)
                                                                  k_proj.weight  rows  [0, 16)  columns [0, 16)
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from plait.errors import CheckpointError
from plait.model.huggingface import Dialect, Shape, Source
from plait.train import tensorfile
from plait.train.huggingface import folder as theirs
from plait.train.tensorfile import BLOCK, FLOATS, Kind, TensorFile

if TYPE_CHECKING:
    from plait.replica.part import Box

_SHOWN = 8


class Tensors:
    """The tensors of a folder, under the names of a model with a head. Use as a context manager."""

    def __init__(self, folder: Path, dialect: Dialect, shape: Shape) -> None:
        """Raises CheckpointError: no safetensors files, one that is listed and missing; tensors that are missing, left over, of other
        shapes or dtypes (listed)."""
        self._folder, self._open = folder, ExitStack()
        self._places: dict[str, tuple[TensorFile, str]] = {}
        self.weights = {weight.path: weight for weight in dialect.weights(shape)}
        with ExitStack() as opened:
            for path in theirs.files(folder):
                file = opened.enter_context(TensorFile(path))
                self._places |= {name: (file, name) for name in file.kinds}
            self._name_alike(dialect)
            if shape.model.tied_head:
                self._places.pop("lm_head.weight", None)
            self._check()
            self._open = opened.pop_all()

    def __enter__(self) -> Tensors:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def box(self, path: str, low: Sequence[int], high: Sequence[int]) -> np.ndarray:
        """The box [low, high) of one of plait's tensors, fp32."""
        weight = self.weights[path]
        made = np.empty([end - first for first, end in zip(low, high, strict=True)], np.float32)
        rows = made.reshape(math.prod(made.shape[:-1]), made.shape[-1]) if made.ndim > 1 else made
        columns = (low[-1], high[-1]) if made.ndim > 1 else None
        for place, first, end in _runs(weight.shape, low, high):
            for source, start in weight.spans():
                top, bottom = max(first, start), min(end, start + source.rows)
                if top < bottom:
                    rows[place + top - first : place + bottom - first] = self._rows(source, top - start, bottom - start, columns)
        return made

    def blocks(self, path: str) -> Iterator[np.ndarray]:
        """All values of one of plait's tensors, in order, some rows at a time; fp32."""
        for source, _ in self.weights[path].spans():
            if source.transposed:
                yield from self._turned(source)
                continue
            rows = max(1, BLOCK // (4 * math.prod(source.shape[1:])))
            for first in range(0, source.rows, rows):
                yield self._read(source, (first,), (min(first + rows, source.rows),))

    def fill(self, state: dict[str, Any], elsewhere: Collection[str]) -> None:
        """Give the tensors of a state, "model.<path>", their values, in place: of each this rank's part alone is read, block by block.

        elsewhere: paths that other ranks hold. Raises CheckpointError: a state of another model.
        """
        import torch

        from plait.replica.part import Part
        from plait.replica.placed import Placed

        by_path = {name.removeprefix("model."): value for name, value in state.items()}
        if strange := sorted(by_path.keys() ^ (self.weights.keys() - set(elsewhere))):
            raise CheckpointError(f"{self._folder}: is a model with other parameters: {', '.join(strange[:_SHOWN])}")
        for path, value in by_path.items():
            local, part = (value.local, value.part) if isinstance(value, Placed) else (value.detach(), Part.whole(value.shape))
            for box in part.boxes():
                into = local[tuple(slice(first, first + size) for first, size in zip(box.local, box.sizes, strict=True))]
                rest = [first + size for first, size in zip(box.offsets, box.sizes, strict=True)][1:]
                for first, end in _blocks_of(box):
                    values = self.box(path, (box.offsets[0] + first, *box.offsets[1:]), (box.offsets[0] + end, *rest))
                    into[first:end].copy_(torch.from_numpy(values))

    def _turned(self, source: Source) -> Iterator[np.ndarray]:
        """The whole is read, and some of its columns after the other become rows."""
        whole = self._read(source, (0,), source.shape[:1])
        columns = max(1, BLOCK // (4 * source.shape[0]))
        for first in range(0, source.shape[1], columns):
            yield tensorfile.transposed(whole[:, first : first + columns])

    def _rows(self, source: Source, first: int, end: int, columns: tuple[int, int] | None) -> np.ndarray:
        """Rows, as plait has them, and of a matrix these columns."""
        if columns is None:
            return self._read(source, (first,), (end,))
        if source.transposed:
            return tensorfile.transposed(self._read(source, (columns[0], first), (columns[1], end)))
        return self._read(source, (first, columns[0]), (end, columns[1]))

    def _read(self, source: Source, low: Sequence[int], high: Sequence[int]) -> np.ndarray:
        """The box [low, high) of a tensor of theirs; dims that are not named are whole."""
        file, name = self._places[source.name]
        rest = source.shape[len(low) :]
        values = file.read(name, (*low, *(0 for _ in rest)), (*high, *rest))
        return tensorfile.cast(values, file.kinds[name].code, "F32")

    def _check(self) -> None:
        wanted = {source.name: source.shape for weight in self.weights.values() for source in weight.sources}
        wrong = _listed("missing", wanted.keys() - self._places.keys())
        wrong += _listed("there, but in no model", self._places.keys() - wanted.keys())
        for name, shape in wanted.items():
            if name in self._places and (kind := self._kind(name)).shape != shape:
                wrong.append(f"{name}: {list(kind.shape)} there, {list(shape)} by {theirs.CONFIG}")
            elif name in self._places and kind.code not in FLOATS:
                wrong.append(f"{name}: is stored as {kind.code}, quantised perhaps, which plait does not read")
        if wrong:
            raise CheckpointError(f"{self._folder}: its tensors are not those of {theirs.CONFIG}:\n  " + "\n  ".join(wrong[: 2 * _SHOWN]))

    def _kind(self, name: str) -> Kind:
        file, stored = self._places[name]
        return file.kinds[stored]

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


def _blocks_of(box: Box) -> Iterator[tuple[int, int]]:
    """[first, end) of its first dim, some at a time."""
    step = max(1, BLOCK // (4 * math.prod(box.sizes[1:])))
    return ((first, min(first + step, box.sizes[0])) for first in range(0, box.sizes[0], step))


def _runs(shape: Sequence[int], low: Sequence[int], high: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Rows of a box that stand one behind the other: their place in the box, and [first, end) of the whole seen as one matrix."""
    if len(shape) < 3:
        yield 0, low[0], high[0]
        return
    for place, matrix in enumerate(range(low[0], high[0])):
        yield place * (high[1] - low[1]), matrix * shape[1] + low[1], matrix * shape[1] + high[1]


def _listed(what: str, names: Iterable[str]) -> list[str]:
    found = sorted(names)
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return [f"{what}: {', '.join(found[:_SHOWN])}{more}"] if found else []
