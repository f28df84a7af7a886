"""The tensor axis: each matrix cut over ranks, as the model's sharding table says. Distributed matrix multiplication:

    column   y_t = x W_t^T            x whole on every rank, y spread           W = [W_0; W_1]
    row      y   = sum_t x_t W_t^T    x spread, y a sum over ranks              W = [W_0, W_1]

             residual      column        attention / MLP        row           residual
             [B, L/T, D] ─ gather ─ qkv ─ heads of this rank ─ out ─ scatter ─ [B, L/T, D]

With sequence parallelism what stands between a row and the next column (norms, residuals, dropout) computes a part of the positions
on each rank: a gather and a reduce-scatter move what an all-reduce alone would. A model that cannot compute a part of the positions
keeps x whole there, with the all-reduce. The vocabulary is cut likewise: embedding rows, and the head's logits, which are never
gathered: `cross_entropy` meets them in two numbers a token.

Sources: Shoeybi et al. 2019 (Megatron-LM); Korthikanti et al. 2022 (sequence parallelism).
"""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import torch
import torch.distributed
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.nn import functional

from plait.errors import RunFileError
from plait.model.loss import NO_TARGET
from plait.model.sharding import Placement
from plait.replica import collectives
from plait.replica.part import Part, chunk_span, stacked_spans


def tensor_part(part: Part, placed: Placement, rank: int, ranks: int) -> Part:
    """What a rank of the tensor axis holds of a parameter. Raises ValueError where it cannot be cut evenly."""
    if ranks == 1 or placed.dim is None or placed.kind == "expert" or placed.dim >= len(part.shape):
        return part
    size = part.shape[placed.dim]
    if placed.kind == "vocabulary":
        return part.cut(placed.dim, [chunk_span(size, rank, ranks)])
    return part.cut(placed.dim, stacked_spans(placed.parts, size, rank, ranks))


def insert(module: nn.Module, placed: dict[str, Placement], parts: dict[str, Part], group: ProcessGroup, sequence_parallel: bool) -> bool:
    """Give the layers whose parameters are cut the forward pass that goes with it. Returns whether logits are spread over the group.

    Raises RunFileError for a cut parameter of a layer that has no such pass.
    """
    spread = False
    for path, layer in module.named_modules():
        kinds = {name: placed[f"{path}.{name}".lstrip(".")] for name, _ in layer.named_parameters(recurse=False, remove_duplicate=False)}
        if all(kind.dim is None or kind.kind == "expert" for kind in kinds.values()):
            continue
        if "weight" not in kinds or not isinstance(layer, nn.Linear | nn.Embedding):
            raise RunFileError(
                f'layout.tensor: the sharding table cuts {path}, which is no nn.Linear and no nn.Embedding; make it "replicated"'
            )
        pass_ = _Pass(group, sequence_parallel, parts[f"{path}.weight"])
        layer.__dict__["forward"] = partial(pass_.of(layer, kinds["weight"]), layer)
        spread |= isinstance(layer, nn.Linear) and kinds["weight"].kind == "vocabulary"
    return spread


class _Pass:
    """Forward passes of layers that are cut; parameters are asked of the layer at each call."""

    def __init__(self, group: ProcessGroup, sequence_parallel: bool, part: Part) -> None:
        self._group, self._part = group, part
        self._enter = collectives.gather if sequence_parallel else collectives.copy
        self._leave = collectives.reduce_scatter if sequence_parallel else collectives.all_reduce

    def of(self, layer: nn.Module, placed: Placement) -> Any:
        if isinstance(layer, nn.Embedding):
            return self.embedding
        return self.row if placed.kind == "row" else self.column

    def column(self, layer: nn.Linear, x: Tensor) -> Tensor:
        return functional.linear(self._enter(x, self._group), layer.weight, layer.bias)

    def row(self, layer: nn.Linear, x: Tensor) -> Tensor:
        # Partial sums meet in fp32 under autocast: rounding each to bf16 first would show in the curve.
        y: Tensor = self._leave(functional.linear(x, layer.weight).to(layer.weight.dtype), self._group)
        return y if layer.bias is None else y + layer.bias

    def embedding(self, layer: nn.Embedding, tokens: Tensor) -> Tensor:
        [(first, end)] = self._part.spans[0] or ((0, 0),)
        here = (tokens >= first) & (tokens < end)
        x = functional.embedding((tokens - first).clamp(0, max(0, end - first - 1)), layer.weight) if end > first else None
        shape = (*tokens.shape, layer.weight.shape[1])
        x = layer.weight.new_zeros(shape) if x is None else x * here.unsqueeze(-1).to(x.dtype)
        y: Tensor = self._leave(x, self._group)
        return y


def cross_entropy(
    logits_BLV: Tensor, targets_BL: Tensor, first: int, group: ProcessGroup, vocabulary: int, smoothing: float = 0.0
) -> Tensor:
    """The sum of -log p(target) as model.loss has it, of logits that are spread: this rank's begin at entry `first` of `vocabulary`.

    Every rank of the group returns the whole sum. Raises RuntimeError at a second backward.
    """
    spread = smoothing / vocabulary
    return cast(Tensor, _CrossEntropy.apply(logits_BLV.flatten(0, -2), targets_BL.flatten(), first, group, smoothing, spread))


def gather_logits(logits_BLV: Tensor, group: ProcessGroup, vocabulary: int) -> Tensor:
    """Whole logits, for a loss that knows no spread ones."""
    return cast(Tensor, _GatherLogits.apply(logits_BLV, group, vocabulary))


def guesses(logits_BLV: Tensor, first: int, group: ProcessGroup) -> Tensor:
    """The likeliest entry at each position, int64; of equals the first."""
    if logits_BLV.shape[-1]:
        best_BL, index_BL = logits_BLV.max(-1)
    else:
        best_BL = logits_BLV.new_full(logits_BLV.shape[:-1], -torch.inf)
        index_BL = torch.zeros_like(best_BL, dtype=torch.int64)
    highest_BL = best_BL.clone()
    torch.distributed.all_reduce(highest_BL, torch.distributed.ReduceOp.MAX, group=group)
    guess_BL = torch.where(best_BL == highest_BL, index_BL + first, torch.iinfo(torch.int64).max)
    torch.distributed.all_reduce(guess_BL, torch.distributed.ReduceOp.MIN, group=group)
    return guess_BL


class _CrossEntropy(torch.autograd.Function):
    """log p = logit - highest - log(sum of exp(logit - highest)); the gradient, p minus what is aimed at, is made at once, in place of p.

    smoothing: what a target does not get; each: what every entry gets of it.
    """

    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, targets_N: Tensor, first: int, group: ProcessGroup, smoothing: float, each: float) -> Tensor:
        wide = torch.promote_types(logits_NV.dtype, torch.float32)
        highest_N = _highest(logits_NV, wide)
        torch.distributed.all_reduce(highest_N, torch.distributed.ReduceOp.MAX, group=group)
        p_NV = logits_NV.to(wide).sub_(highest_N[:, None]) if logits_NV.dtype != wide else logits_NV - highest_N[:, None]
        index_N = targets_N - first
        here_N = (index_N >= 0) & (index_N < logits_NV.shape[1])
        rows_n = here_N.nonzero().squeeze(-1)
        sums_2N = p_NV.new_zeros(2, len(targets_N))
        if each:
            torch.sum(p_NV, -1, out=sums_2N[0])
            sums_2N[0] *= each
        sums_2N[0, rows_n] += p_NV[rows_n, index_N[rows_n]] * (1.0 - smoothing)
        torch.sum(p_NV.exp_(), -1, out=sums_2N[1])
        torch.distributed.all_reduce(sums_2N, group=group)
        counted_N = targets_N != NO_TARGET
        ctx.gradient_NV = None
        if ctx.needs_input_grad[0]:
            p_NV.mul_((counted_N / sums_2N[1])[:, None])
            if each:
                p_NV -= counted_N.to(wide)[:, None] * each
            p_NV[rows_n, index_N[rows_n]] -= counted_N[rows_n].to(wide) * (1.0 - smoothing)
            ctx.gradient_NV = p_NV.to(logits_NV.dtype)
        return torch.where(counted_N, sums_2N[1].log() - sums_2N[0], 0.0).sum()

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        gradient_NV, ctx.gradient_NV = ctx.gradient_NV, None
        if gradient_NV is None:
            raise RuntimeError("cross_entropy hands its gradient out once; call it again for a second backward")
        return gradient_NV.mul_(scale), None, None, None, None, None


class _GatherLogits(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_BLV: Tensor, group: ProcessGroup, vocabulary: int) -> Tensor:
        ctx.span = chunk_span(vocabulary, group.rank(), group.size())
        whole = logits_BLV.new_zeros(*logits_BLV.shape[:-1], vocabulary)
        whole[..., ctx.span[0] : ctx.span[1]] = logits_BLV
        torch.distributed.all_reduce(whole, group=group)
        return whole

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient[..., ctx.span[0] : ctx.span[1]], None, None


def _highest(logits_NV: Tensor, dtype: torch.dtype) -> Tensor:
    if logits_NV.shape[1] == 0:
        return logits_NV.new_full((len(logits_NV),), torch.finfo(dtype).min, dtype=dtype)
    return logits_NV.amax(-1).to(dtype)
