"""Values of a model's parameters, some rows at a time, wherever they stand: in a checkpoint's pieces, in a Hugging Face folder, or in
a base and the adapters that were trained for it.

Rows are those of a parameter seen as one matrix: a stack of experts is as high as all of them together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol, Self

import numpy as np

from plait import spec
from plait.errors import CheckpointError
from plait.model.huggingface import Dialect, Shape
from plait.train import manifest, tensorfile
from plait.train.huggingface.tensors import Tensors
from plait.train.manifest import Manifest, TensorEntry
from plait.train.tensorfile import DTYPES, TensorFile


class Values(Protocol):
    """Parameters by path."""

    @property
    def shapes(self) -> Mapping[str, Sequence[int]]:
        """By path."""
        ...

    def rows(self, path: str, first: int, end: int) -> tuple[np.ndarray, str]:
        """Rows [first, end) of one, and the code of their dtype."""
        ...

    def verify(self) -> None:
        """Compare what is read with its checksums. Raises CheckpointError."""
        ...


def check(values: Values, where: Path, dialect: Dialect, shape: Shape) -> None:
    """Raises CheckpointError where the parameters are not those that the settings mean."""
    wanted = {weight.path: list(weight.shape) for weight in dialect.weights(shape)}
    found = {path: list(there) for path, there in values.shapes.items()}
    if wrong := sorted(path for path in wanted.keys() | found.keys() if wanted.get(path) != found.get(path)):
        told = ", ".join(f"{path} ({found.get(path, 'missing')}, not {wanted.get(path, 'known')})" for path in wrong[:4])
        raise CheckpointError(f"{where}: does not hold the model that run.toml describes: {told}")


class Stored:
    """The parameters of a checkpoint, whose pieces may hold any boxes of them. Use as a context manager."""

    def __init__(self, path: Path) -> None:
        """Raises CheckpointError: a manifest or a piece that cannot be read."""
        self.path = path
        self._whole: Manifest = manifest.read(path)
        self._tensors = {name.removeprefix("model."): entry for name, entry in self._whole.tensors.items() if name.startswith("model.")}
        self._pieces = sorted({chunk.piece for entry in self._tensors.values() for chunk in entry.chunks})
        with ExitStack() as opened:
            self._files = {piece: opened.enter_context(TensorFile(path / piece)) for piece in self._pieces}
            self._open = opened.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    @property
    def shapes(self) -> Mapping[str, Sequence[int]]:
        return {path: entry.shape for path, entry in self._tensors.items()}

    def verify(self) -> None:
        manifest.verify(self.path, self._pieces)

    def rows(self, path: str, first: int, end: int) -> tuple[np.ndarray, str]:
        entry = self._tensors[path]
        values, code = self._box(entry, *_box(entry.shape, first, end))
        return values.reshape(-1, values.shape[-1]) if values.ndim > 2 else values, code

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


class Foreign:
    """The parameters of a Hugging Face folder; its checksum was compared when it was found. Use as a context manager."""

    def __init__(self, tensors: Tensors) -> None:
        self._tensors = tensors

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._tensors.__exit__(*error)

    @property
    def shapes(self) -> Mapping[str, Sequence[int]]:
        return {path: weight.shape for path, weight in self._tensors.weights.items()}

    def verify(self) -> None:
        pass

    def rows(self, path: str, first: int, end: int) -> tuple[np.ndarray, str]:
        values = self._tensors.box(path, *_box(self._tensors.weights[path].shape, first, end))
        return values.reshape(-1, values.shape[-1]) if values.ndim > 2 else values, "F32"


class Merged:
    """A base's parameters with what adapters add to them, and those in whose place others were trained."""

    def __init__(self, base: Values, trained: Values, lora: spec.Lora, fewer: Mapping[str, int]) -> None:
        """fewer: rows of parameters of which the base has more."""
        self._base, self._trained, self._scale, self._fewer = base, trained, lora.alpha / lora.rank, fewer

    @property
    def shapes(self) -> Mapping[str, Sequence[int]]:
        there = self._base.shapes
        return {path: (self._fewer.get(path, shape[0]), *shape[1:]) for path, shape in there.items()}

    def verify(self) -> None:
        self._base.verify()
        self._trained.verify()

    def rows(self, path: str, first: int, end: int) -> tuple[np.ndarray, str]:
        trained, layer = self._trained.shapes, path.removesuffix(".weight")
        if path in trained:
            return self._trained.rows(path, first, end)
        values, code = self._base.rows(path, first, end)
        if f"{layer}.lora.a.weight" not in trained:
            return values, code
        a, kind = self._trained.rows(f"{layer}.lora.a.weight", 0, trained[f"{layer}.lora.a.weight"][0])
        b, _ = self._trained.rows(f"{layer}.lora.b.weight", first, end)
        wide = "F64" if kind == "F64" else "F32"
        a, b, values = (tensorfile.cast(each, which, wide) for each, which in ((a, kind), (b, kind), (values, code)))
        return values + (b @ a) * np.asarray(self._scale, values.dtype), wide


def _box(shape: Sequence[int], first: int, end: int) -> tuple[list[int], list[int]]:
    """Rows [first, end) as a box; of a stack they are of one matrix."""
    if len(shape) < 3:
        return [first, *(0 for _ in shape[1:])], [end, *shape[1:]]
    assert len(shape) == 3, shape
    matrix, low = divmod(first, math.prod(shape[1:-1]))
    assert low + end - first <= shape[1], (shape, first, end)
    return [matrix, low, 0], [matrix + 1, low + end - first, shape[2]]
