"""Collectives that backward passes through: each pair is the other's gradient.

    forward          backward                 x on T ranks
    copy             all-reduce               the same x read by every rank, whose gradients add up
    all-reduce       copy                     partial sums made whole
    gather           reduce-scatter           parts of the positions [B, L / T, D] made whole
    reduce-scatter   gather                   partial sums made whole, each rank keeping its part of the positions
    total            total                    partial sums made whole, of which each rank makes something of its own

(Narayanan et al. 2021, Korthikanti et al. 2022: f and its conjugate, g and its conjugate.)
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.distributed
from torch import Tensor
from torch.distributed import ProcessGroup

from plait.replica.transport import POOL, gather_rows, sum_rows


def copy(x: Tensor, group: ProcessGroup) -> Tensor:
    """x itself; its gradient is summed over the group."""
    return cast(Tensor, _Copy.apply(x, group))


def all_reduce(x: Tensor, group: ProcessGroup) -> Tensor:
    """The sum over the group."""
    return cast(Tensor, _AllReduce.apply(x, group))


def gather(x_BSD: Tensor, group: ProcessGroup) -> Tensor:
    """[B, S, D] of each rank, in the group's order, as [B, T x S, D]."""
    return cast(Tensor, _Gather.apply(x_BSD, group))


def reduce_scatter(x_BLD: Tensor, group: ProcessGroup) -> Tensor:
    """The sum over the group, of which each rank gets its part of the positions: [B, L / T, D]."""
    return cast(Tensor, _ReduceScatter.apply(x_BLD, group))


def total(x: Tensor, group: ProcessGroup) -> Tensor:
    """The sum over the group; its gradient is summed too."""
    return copy(all_reduce(x, group), group)


def hide_from_compilers() -> None:
    """Have compilers not look inside; to be called before they are used, since telling them so imports them, which takes a second."""
    for function in (copy, all_reduce, gather, reduce_scatter):
        globals()[function.__name__] = torch.compiler.disable(function)


class _Copy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _summed(gradient, ctx.group), None


class _AllReduce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: ProcessGroup) -> Tensor:
        return _summed(x, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        return _gathered(x, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _scattered(gradient, ctx.group), None


class _ReduceScatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        return _scattered(x, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _gathered(gradient, ctx.group), None


def _summed(x: Tensor, group: ProcessGroup) -> Tensor:
    total = POOL.take(x.shape, x.dtype, x.device).copy_(x)
    torch.distributed.all_reduce(total, group=group)
    return total


def _gathered(x_BSD: Tensor, group: ProcessGroup) -> Tensor:
    B, S, *rest = x_BSD.shape
    parts_TBSD = POOL.take((group.size(), B, S, *rest), x_BSD.dtype, x_BSD.device)
    parts_TBSD[group.rank()] = x_BSD
    gather_rows(parts_TBSD.view(group.size(), -1), group)
    return parts_TBSD.transpose(0, 1).reshape(B, -1, *rest)


def _scattered(x_BLD: Tensor, group: ProcessGroup) -> Tensor:
    B, L, *rest = x_BLD.shape
    ranks = group.size()
    parts_TBSD = POOL.take((ranks, B, L // ranks, *rest), x_BLD.dtype, x_BLD.device)
    parts_TBSD.copy_(x_BLD.reshape(B, ranks, -1, *rest).transpose(0, 1))
    part = POOL.take((B, L // ranks, *rest), x_BLD.dtype, x_BLD.device)
    sum_rows(parts_TBSD.view(ranks, -1), part.view(-1), group, POOL)
    return part
