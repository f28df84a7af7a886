"""What a family is called at Hugging Face: words for saying which of their tensors a tensor of plait's consists of.

    plait    blocks.0.attention.qkv.weight      q_proj.weight     rows [0, 64)
                                                k_proj.weight     rows [64, 96)        a weight: sources one behind the other
                                                v_proj.weight     rows [96, 128)

Rows are those of the tensor seen as one matrix: a stack of experts is as high as all of them together. Neither torch nor a file is
needed to know them, so that the values can be streamed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from plait import spec
from plait.errors import CheckpointError


class Shape(NamedTuple):
    """All that the tensors' shapes depend on."""

    model: spec.Model
    vocabulary: int
    context: int
    objective: spec.Objective = spec.Objective()


@dataclass(frozen=True)
class Source:
    """A tensor of theirs, of the shape that it is stored in. transposed: stored [in, out], where plait has [out, in]."""

    name: str
    shape: tuple[int, ...]
    transposed: bool = False

    @property
    def rows(self) -> int:
        return self.shape[1] if self.transposed else self.shape[0]


@dataclass(frozen=True)
class Weight:
    """A tensor of plait's, and what it consists of from the first row on."""

    path: str
    shape: tuple[int, ...]
    sources: tuple[Source, ...]

    def spans(self) -> Iterator[tuple[Source, int]]:
        """Each source with its first row."""
        first = 0
        for source in self.sources:
            yield source, first
            first += source.rows
        assert first == (math.prod(self.shape[:-1]) if len(self.shape) > 1 else self.shape[0]), self


def same(path: str, name: str, *shape: int) -> Weight:
    """One tensor, stored alike."""
    return Weight(path, shape, (Source(name, shape),))


def turned(path: str, name: str, outputs: int, inputs: int) -> Weight:
    """One matrix, stored the other way round."""
    return Weight(path, (outputs, inputs), (Source(name, (inputs, outputs), transposed=True),))


def stacked(path: str, names: Mapping[str, int], *inputs: int) -> Weight:
    """Tensors of so many rows each, one behind the other; of matrices with `inputs` columns, or of vectors without."""
    return Weight(path, (sum(names.values()), *inputs), tuple(Source(name, (rows, *inputs)) for name, rows in names.items()))


class Config:
    """A config.json that is read key by key: what is left over in the end is a feature that nobody asked about, and refused."""

    def __init__(self, values: Mapping[str, Any], where: str, context: int | None = None, asked: str = "--context ") -> None:
        """context: fewer positions than it says, if so many are wanted; asked: what one writes before their number to want them."""
        self._values, self.where, self.wanted, self.asked = dict(values), where, context, asked
        self._seen: set[str] = set()

    def take(self, key: str, default: Any = None) -> Any:
        """A value; `default`, if there is one, where it is missing or null. Raises CheckpointError where there is none."""
        self._seen.add(key)
        value = self._values.get(key)
        if value is None and default is None:
            raise CheckpointError(f"{self.where}: has no {key}")
        return default if value is None else value

    def maybe(self, key: str) -> Any:
        """A value, or None."""
        self._seen.add(key)
        return self._values.get(key)

    def ignore(self, *patterns: str) -> None:
        """Keys that change nothing of what is computed."""
        self._seen |= {key for key in self._values if any(fnmatchcase(key, pattern) for pattern in patterns)}

    def only(self, key: str, *allowed: Any) -> None:
        """Raises CheckpointError for a value that is none of these; what is missing or null is what the first says."""
        value = self.take(key, allowed[0])
        if value not in allowed:
            raise self.lacks(key, value, "has " + " and ".join(f"{each!r}" for each in allowed))

    def context(self, key: str) -> int:
        """How many positions: as many as the config says, or as are wanted. Raises CheckpointError where more are."""
        most: int = self.take(key)
        if self.wanted is not None and self.wanted > most:
            raise CheckpointError(f"{self.where}: {self.asked}{self.wanted} is more than {key} = {most}")
        return self.wanted or most

    def lacks(self, key: str, value: Any, has: str) -> CheckpointError:
        return CheckpointError(f"{self.where}: {key} = {value!r} is a feature that plait lacks; it {has}")

    def rates(self, *keys: str) -> float:
        """The one rate of dropout that all of these have."""
        found = {key: float(self.maybe(key) or 0.0) for key in keys}
        if len(set(found.values())) > 1:
            told = ", ".join(f"{key} = {value}" for key, value in found.items())
            raise CheckpointError(f"{self.where}: {told}: plait has one rate for all; make them equal (they matter in training alone)")
        return found[keys[0]]

    def finish(self) -> None:
        """Raises CheckpointError naming keys that mean something and were not asked for."""
        known = self._seen | _MEANINGLESS
        left = {key: value for key, value in self._values.items() if key not in known and value not in (None, False, [], {})}
        if left:
            told = ", ".join(f"{key} = {value!r}" for key, value in sorted(left.items()))
            raise CheckpointError(f"{self.where}: {told}: plait does not know what this asks for, and ignores nothing")


@dataclass(frozen=True)
class Dialect:
    """A model_type. read: settings of [model], "vocabulary", "context" and perhaps "objective", out of a config. write: a config, without
    what all have. weights: what maps. prefix: what names of a model without a head lack. unused: patterns of tensors that no logit hangs
    on. renamed: endings that names had once. copies: which tensor has the values of one that was left out as its copy."""

    kind: str
    architecture: str
    read: Callable[[Config], dict[str, Any]]
    write: Callable[[Shape], dict[str, Any]]
    weights: Callable[[Shape], Iterable[Weight]]
    prefix: str = ""
    unused: tuple[str, ...] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)
    copies: Mapping[str, str] = field(default_factory=dict)


_MEANINGLESS = {
    # who wrote it and how it is run
    "_attn_implementation",
    "_name_or_path",
    "architectures",
    "dtype",
    "gradient_checkpointing",
    "model_type",
    "output_attentions",
    "output_hidden_states",
    "output_past",
    "pretraining_tp",
    "return_dict",
    "torch_dtype",
    "transformers_version",
    "use_cache",
    # numbers of tokens, which the tokenizer's files tell too
    "bos_token_id",
    "decoder_start_token_id",
    "eos_token_id",
    "pad_token_id",
    "sep_token_id",
    "unk_token_id",
    # how values were drawn
    "initializer_factor",
    "initializer_range",
    # how it was used
    "finetuning_task",
    "n_positions_trained",
    "prefix",
    "task_specific_params",
}
