"""Losses: sums over target tokens. Dividing by the global batch's targets, once, is the caller's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from plait.model.own import check_call, load_object

NO_TARGET = -100
Loss = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(logits_BLV: Tensor, targets_BL: Tensor, smoothing: float = 0.0) -> Tensor:
    """The sum of -log p(target), in nats, over targets that are not -100; a scalar, fp32 (fp64 for fp64 logits).

    smoothing: the share of each target that all entries of the vocabulary have alike (Szegedy et al. 2016).

    Chunks of rows are raised to fp32 and their gradients are made at once, in the logits' dtype, so that neither fp32 logits nor
    probabilities of the whole vocabulary are ever kept. The gradient is handed out once: a second backward raises.
    """
    return cast(Tensor, _CrossEntropy.apply(logits_BLV.flatten(0, -2), targets_BL.flatten(), smoothing))


def load_loss(name: str) -> Loss:
    """The loss "cross_entropy", or your own "package.module:function" of (logits_BLV, targets_BL). Raises RunFileError."""
    if name == "cross_entropy":
        return cross_entropy
    function: Loss = load_object(name, "train.loss")
    check_call(function, name, "train.loss", None, None)
    return function


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, targets_N: Tensor, smoothing: float) -> Tensor:
        gradient_NV = torch.empty_like(logits_NV) if ctx.needs_input_grad[0] else None
        total = logits_NV.new_zeros((), dtype=_wide(logits_NV.dtype))
        for first in range(0, len(logits_NV), step := _rows(logits_NV)):
            rows = slice(first, first + step)
            total += _chunk(logits_NV[rows], targets_N[rows], None if gradient_NV is None else gradient_NV[rows], smoothing)
        ctx.gradient_NV = gradient_NV
        return total

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor, None, None]:
        gradient_NV, ctx.gradient_NV = ctx.gradient_NV, None
        if gradient_NV is None:
            raise RuntimeError("cross_entropy hands its gradient out once; call it again for a second backward")
        return gradient_NV.mul_(scale), None, None


def _chunk(logits_nV: Tensor, targets_n: Tensor, gradient_nV: Tensor | None, smoothing: float) -> Tensor:
    """The loss of some rows; their gradient, softmax minus what is aimed at, is written into `gradient_nV`."""
    counted_n1 = (targets_n != NO_TARGET)[:, None]
    index_n1 = targets_n.clamp_min(0)[:, None]
    log_p_nV = torch.log_softmax(logits_nV, -1, dtype=_wide(logits_nV.dtype))
    if gradient_nV is not None:
        each_n1 = counted_n1.to(log_p_nV.dtype)
        one_hot_nV = (each_n1 * (-smoothing / log_p_nV.shape[1])).expand_as(log_p_nV).contiguous()
        one_hot_nV.scatter_add_(1, index_n1, each_n1 * (smoothing - 1.0))
        same = gradient_nV.dtype == log_p_nV.dtype
        p_minus_one_hot_nV = gradient_nV if same else torch.empty_like(log_p_nV)
        torch.ops.aten._log_softmax_backward_data.out(one_hot_nV, log_p_nV, -1, log_p_nV.dtype, out=p_minus_one_hot_nV)
        if not same:
            gradient_nV.copy_(p_minus_one_hot_nV)
    told_n1 = log_p_nV.gather(1, index_n1)
    if smoothing:
        told_n1 = told_n1 * (1.0 - smoothing) + log_p_nV.mean(1, keepdim=True) * smoothing
    return -torch.where(counted_n1, told_n1, 0.0).sum()


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _rows(logits_NV: Tensor) -> int:
    """Rows of a chunk: what stays in a CPU's cache, or enough to fill a GPU."""
    elements = 2**18 if logits_NV.device.type == "cpu" else 2**26
    return max(1, elements // logits_NV.shape[-1])
