"""Initial values, drawn by fixed row blocks keyed (seed, parameter path, block).

Any layout starts equal: whoever needs rows [first, end) of a parameter draws the blocks that they touch, and no others.
Values are drawn in fp32 and cast, so that runs of other precisions start from the same ones.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

BLOCK_ROWS = 256


@dataclass(frozen=True)
class Constant:
    """Every value the same: norms start at one, biases at zero."""

    value: float


@dataclass(frozen=True)
class Normal:
    """Independent normal values around zero."""

    std: float


@dataclass(frozen=True)
class Stacked:
    """Normal values of matrices that are stacked in one, in these proportions, each with its own spread."""

    parts: tuple[int, ...]
    stds: tuple[float, ...]

    def scales(self, rows: int, first: int, end: int) -> Tensor:
        """Of rows [first, end) of so many, as a column."""
        unit = rows // sum(self.parts)
        stds = torch.cat([torch.full((part * unit,), std) for part, std in zip(self.parts, self.stds, strict=True)])
        return stds[first:end, None]


InitialTable = Mapping[str, Constant | Normal | Stacked]  # pattern of a parameter's path -> its values


@torch.no_grad()
def initialise(module: nn.Module, table: InitialTable, seed: int) -> None:
    """Fill every parameter in place as the first pattern that fits its path says."""
    for path, parameter in module.named_parameters():
        parameter.copy_(initial_rows(table, seed, path, parameter.shape, 0, parameter.shape[0]))


def initial_rows(table: InitialTable, seed: int, path: str, shape: torch.Size, first: int, end: int) -> Tensor:
    """Rows [first, end) of the parameter `path` of the whole `shape`, fp32, on the CPU."""
    rule = next(rule for pattern, rule in table.items() if fnmatchcase(path, pattern))
    if isinstance(rule, Constant):
        return torch.full((end - first, *shape[1:]), rule.value)
    values = draw(seed, path, shape, first, end)
    return values.mul_(rule.std if isinstance(rule, Normal) else rule.scales(shape[0], first, end))


def draw(seed: int, path: str, shape: torch.Size, first: int, end: int) -> Tensor:
    """Standard normal rows [first, end) of a parameter of `shape`, fp32, on the CPU. A stack of matrices is drawn as one high matrix."""
    if len(shape) > 2:
        height = math.prod(shape[1:-1])
        flat = torch.Size((shape[0] * height, shape[-1]))
        return draw(seed, path, flat, first * height, end * height).view(end - first, *shape[1:])
    rows = torch.empty(end - first, *shape[1:])
    for block in range(first // BLOCK_ROWS, -(-end // BLOCK_ROWS)):
        start = block * BLOCK_ROWS
        values = torch.randn(BLOCK_ROWS, *shape[1:], generator=_generator(seed, path, block))
        low, high = max(first, start), min(end, start + BLOCK_ROWS)
        rows[low - first : high - first] = values[low - start : high - start]
    return rows


def _generator(seed: int, path: str, block: int) -> torch.Generator:
    key = hashlib.blake2b(f"{seed} {path} {block}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(key, "little", signed=True))
