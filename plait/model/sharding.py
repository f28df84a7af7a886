"""The sharding table: how each parameter of a model may be cut, as data.

A model declares `sharding`, a mapping from patterns of parameter paths to one of

    column        cut by rows of the weight (dim 0): the layer's outputs are spread; its bias is cut alike
    column(6,2,2) several column weights stacked in one, in these proportions; each part is cut by itself
    row           cut by columns of the weight (dim 1): the layer's inputs are spread, its outputs are partial sums
    vocabulary    cut by entries of the vocabulary (dim 0)
    expert        a stack of experts, cut by experts (dim 0), along an axis of their own
    replicated    kept whole

Linear weights are [out, in]. The first pattern that fits counts. A parameter that is cut must belong to an nn.Linear or nn.Embedding that
the model calls (an expert's: to a module that knows its experts), since whoever cuts it also changes what the call does. Who cuts,
and along which mesh axis, is not known here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal, cast

Kind = Literal["column", "row", "vocabulary", "expert", "replicated"]
ShardingTable = Mapping[str, str]
_DIMS: dict[str, int | None] = {"column": 0, "row": 1, "vocabulary": 0, "expert": 0, "replicated": None}


@dataclass(frozen=True)
class Placement:
    """How one parameter may be cut; `parts` are the proportions of what is stacked along `dim`."""

    kind: Kind
    parts: tuple[int, ...] = (1,)

    @property
    def dim(self) -> int | None:
        """The tensor dim that is cut, or None where the parameter is kept whole."""
        return _DIMS[self.kind]


def placement(table: ShardingTable, path: str) -> Placement:
    """The placement of the parameter `path`. Raises ValueError: no pattern fits, or the placement has no such word."""
    for pattern, words in table.items():
        if fnmatchcase(path, pattern):
            return _read(pattern, words)
    raise ValueError(f'the sharding table has no pattern for the parameter {path}; add one, for example "{path}": "replicated"')


def check(table: ShardingTable, paths: Iterable[str]) -> None:
    """Raises ValueError where a parameter has no placement or a placement cannot be read."""
    for path in paths:
        placement(table, path)


def _read(pattern: str, words: str) -> Placement:
    match = re.fullmatch(r"(column)\(([1-9]\d*(?:,[1-9]\d*)*)\)|(column|row|vocabulary|expert|replicated)", words)
    if match is None:
        raise ValueError(
            f'the sharding table has "{pattern}": "{words}"; use "column", "column(2,1,1)", "row", "vocabulary", "expert" or "replicated"'
        )
    parts = tuple(int(part) for part in match[2].split(",")) if match[2] else (1,)
    return Placement(cast(Kind, match[1] or match[3]), parts)
