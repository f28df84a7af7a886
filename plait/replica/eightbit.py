"""Adam and AdamW whose state of matrices is eight bits a value (Dettmers et al. 2021, "8-bit Optimizers via Block-wise Quantization").

    row of a matrix    | block | block | block |        values of a block share a scale, the largest magnitude among them
    value              scale x one of 256 numbers        which lie the closer together the smaller they are: dynamic tree quantisation

A step makes floats of one matrix's state, moves it as torch's own Adam does, and rounds it again. Three things differ from the paper:
blocks lie within a row and begin at multiples of `block` in the whole matrix, so that no layout that is let through cuts one, and the
state of a rank is what one process would have there; the numbers of the second moment leave zero out, since a root of what was rounded
to zero would divide by nothing (Li et al. 2023, "Memory Efficient Optimizers with 4-bit States"); and embeddings need no exception, as
tokens share no block. Norms and biases, which are few, are kept as they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from plait.errors import RunFileError
from plait.replica.part import Part
from plait.replica.stepping import Stepping

SCALE = "_scale"
"""Ends the names of scales in the state."""
_EXPONENTS = 7
_MOMENTS = {"exp_avg": True, "exp_avg_sq": False}
"""Whether each has a sign."""


class Adam8bit(Stepping):
    """State of a matrix: step; exp_avg and exp_avg_sq, uint8 of its shape; exp_avg_scale and exp_avg_sq_scale, a float a block. It is
    created with the optimizer. decoupled: AdamW's decay. `fused` is torch's."""

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        block: int,
        decoupled: bool,
        fused: bool = False,
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0, "fused": fused})
        self._block, self._decoupled = block, decoupled
        for group in self.param_groups:
            for parameter in group["params"]:
                self._create_state(parameter, parameter.device if fused else torch.device("cpu"))

    def step_group(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        whole = [parameter for parameter in parameters if parameter.ndim < 2]
        for parameter in parameters:
            if parameter.ndim > 1:
                self._step_matrix(group, parameter)
        if whole:
            first, second = ([self.state[parameter][name] for parameter in whole] for name in _MOMENTS)
            self.step_adam(group, whole, first, second, self._decoupled)

    def _create_state(self, parameter: Tensor, where: torch.device) -> None:
        state = self.state[parameter]
        state["step"] = torch.zeros((), dtype=torch.float32, device=where)
        for name in _MOMENTS:
            if parameter.ndim < 2:
                state[name] = torch.zeros_like(parameter)
            else:
                state[name] = torch.zeros_like(parameter, dtype=torch.uint8)
                state[name + SCALE] = parameter.new_zeros(*parameter.shape[:-1], -(-parameter.shape[-1] // self._block))

    def _step_matrix(self, group: dict[str, Any], parameter: Tensor) -> None:
        state = self.state[parameter]
        moments = {name: expand(state[name], state[name + SCALE], signed, self._block) for name, signed in _MOMENTS.items()}
        first, second = moments.values()
        self.step_adam(group, [parameter], [first], [second], self._decoupled)
        for name, signed in _MOMENTS.items():
            round_into(state[name], state[name + SCALE], moments[name], signed, self._block)


def round_into(codes: Tensor, scales: Tensor, values: Tensor, signed: bool, block: int) -> None:
    """The nearest of the numbers for each value, and the scale of each block, in place."""
    blocks = _blocks(values, block)
    torch.amax(blocks.abs(), -1, out=scales)
    scaled = blocks / torch.where(scales > 0, scales, 1.0).unsqueeze(-1)
    nearest = torch.bucketize(scaled, _numbers(signed, values.dtype, values.device)[1], out_int32=True)
    codes.copy_(nearest.flatten(-2)[..., : values.shape[-1]])


def expand(codes: Tensor, scales: Tensor, signed: bool, block: int) -> Tensor:
    """The values that `round_into` has rounded."""
    numbers = _numbers(signed, scales.dtype, scales.device)[0]
    values = numbers.index_select(0, codes.flatten().to(torch.int32)).view(codes.shape)
    return values.mul_(scales.repeat_interleave(block, -1)[..., : codes.shape[-1]])


def scale_part(part: Part, block: int) -> Part:
    """Which scales of the whole belong to a part of a matrix."""
    spans = tuple((first // block, -(-end // block)) for first, end in part.spans[-1])
    shape = torch.Size((*part.shape[:-1], -(-part.shape[-1] // block)))
    return replace(part, shape=shape, spans=(*part.spans[:-1], spans))


def check_cuts(parts: Mapping[str, Part], block: int) -> None:
    """Raises RunFileError where a layout cuts blocks."""
    for path, part in parts.items():
        size = part.shape[-1] if len(part.shape) > 1 else 0
        edges = [edge for span in part.spans[-1] for edge in span if edge % block and edge != size] if size else []
        if edges:
            raise RunFileError(
                f"train.optimizer.block = {block}: the layout cuts the rows of {path} at column {edges[0]}, amid a block; "
                f"block = {math.gcd(block, *edges)} works, or a smaller layout.tensor"
            )


def _blocks(values: Tensor, block: int) -> Tensor:
    """[..., blocks, block], zeros behind the end."""
    blocks: Tensor = functional.pad(values, (0, -values.shape[-1] % block)).unflatten(-1, (-1, block))
    return blocks


@cache
def _numbers(signed: bool, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """The numbers in [-1, 1] or (0, 1], ascending, and what lies halfway between neighbours.

    Each of seven powers of ten from 1e-6 to 1 has twice as many numbers as the one below, the middles of even pieces of its [0.1, 1].
    """
    numbers = [1.0] + ([0.0] if signed else [])
    for exponent in range(_EXPONENTS):
        pieces = 2**exponent if signed else 2 ** (exponent + 1)
        edges = torch.linspace(0.1, 1, pieces + 1, dtype=torch.float64)
        middles = ((edges[:-1] + edges[1:]) / 2 * 10.0 ** (exponent - _EXPONENTS + 1)).tolist()
        numbers += middles + ([-middle for middle in middles] if signed else [])
    table = torch.tensor(sorted(numbers), dtype=torch.float64)
    return table.to(device, dtype), ((table[1:] + table[:-1]) / 2).to(device, dtype)
