"""The expert axis: ranks hold different experts and different sequences, and tokens travel to the experts that compute them.

    rank 0, experts 0 1                      rank 1, experts 2 3
      its tokens, sorted by expert             its tokens, sorted by expert
      0 0 1 │ 2 3 3                            0 1 1 │ 2 2 3
        │      └──────────── all-to-all ─────────┘      │
      0 0 1 0 1 1  ◄──────────────┴──────────────►  2 3 3 2 2 3
      sorted, computed                          sorted, computed
        └─────────────────── all-to-all ────────────────┘
      0 0 1   2 3 3                            0 1 1   2 2 3        every row back where it came from

No expert has a capacity: how many rows a rank sends to each other one is told first, in an all-to-all of counts. So a mixture costs three
all-to-alls forward and two backward, as many on every rank, however few tokens it has. Each expert meets all tokens of the axis: the
gradients of experts are whole over it; all other parameters' are partial sums.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
import torch.distributed
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from plait.events import Load
from plait.model.moe import Compute, inverse, mixtures, reorder
from plait.model.sharding import Placement
from plait.replica.part import Part


def expert_part(part: Part, placed: Placement, rank: int, ranks: int) -> Part:
    """What a rank of the expert axis holds of a parameter. Raises ValueError where experts cannot be shared out evenly."""
    if ranks == 1 or placed.kind != "expert":
        return part
    experts = part.local_shape[0]
    if experts % ranks:
        raise ValueError(f"{experts} experts cannot be shared out among {ranks} ranks")
    return part.cut(0, [(rank * experts // ranks, (rank + 1) * experts // ranks)])


def insert(module: nn.Module, group: ProcessGroup) -> None:
    """Have each mixture's tokens computed where their experts are: rank r of the group holds the r-th part of them."""
    for mixture in mixtures(module):
        mixture.exchange = Exchange(group)


def share_sequences(module: nn.Module, groups: Iterable[ProcessGroup]) -> None:
    """Have routers count a sequence's choices over the ranks that hold its other positions, told by the groups that cut them."""
    reduce = SumOver(tuple(groups))
    for mixture in mixtures(module):
        mixture.router.reduce_counts = reduce


def begin(module: nn.Module, divisor: int) -> None:
    """A new unit: count load from zero; `divisor` is what losses are divided by."""
    for mixture in mixtures(module):
        mixture.router.begin(1.0 / divisor)


def load(module: nn.Module) -> Load:
    """Tokens that this rank has sent to each expert since `begin`, by layer; none for a layer without a mixture, or not held here."""
    by_layer = {mixture.layer: mixture.router.load.tolist() for mixture in mixtures(module)}
    return [by_layer.get(layer, []) for layer in range(max(by_layer, default=-1) + 1)]


def follow(module: nn.Module, load: Load) -> None:
    """Move each router's bias by the load of a whole, committed global batch."""
    for mixture in mixtures(module):
        mixture.router.follow(load[mixture.layer])


class SumOver:
    """Sums whole numbers over groups, one after the other."""

    def __init__(self, groups: tuple[ProcessGroup, ...]) -> None:
        self._groups = groups

    def __call__(self, counts: Tensor) -> Tensor:
        total = counts.clone()
        for group in self._groups:
            torch.distributed.all_reduce(total, group=group)
        return total


class Exchange:
    """A mixture's `exchange` over a group."""

    def __init__(self, group: ProcessGroup) -> None:
        self._group = group

    def __call__(self, rows_MD: Tensor, counts_n: Tensor, compute: Compute) -> Tensor:
        """out_MD. counts_n: of all experts; compute: those held here."""
        there_RE = counts_n.view(self._group.size(), -1)  # for each rank, the counts of its experts
        here_RE = torch.empty_like(there_RE)
        torch.distributed.all_to_all_single(here_RE, there_RE, group=self._group)
        sent, received = there_RE.sum(1).tolist(), here_RE.sum(1).tolist()
        arrived_XD = _travel(rows_MD, sent, received, self._group)
        order_X = _by_expert(here_RE)
        back_X = inverse(order_X)
        out_XD = compute(reorder(arrived_XD, order_X, back_X), here_RE.sum(0))
        return _travel(reorder(out_XD, back_X, order_X), received, sent, self._group)


def _by_expert(counts_RE: Tensor) -> Tensor:
    """The order that sorts arrived rows, which stand by rank and then by expert, by expert and then by rank."""
    experts_E = torch.arange(counts_RE.shape[1], device=counts_RE.device)
    return experts_E.repeat(len(counts_RE)).repeat_interleave(counts_RE.flatten()).argsort(stable=True)


def _travel(rows: Tensor, sent: list[int], received: list[int], group: ProcessGroup) -> Tensor:
    """The first sent[0] rows go to rank 0, the next sent[1] to rank 1; returns what came from each, in order."""
    return cast(Tensor, _Travel.apply(rows, sent, received, group))


class _Travel(torch.autograd.Function):
    """The gradient travels back the way the rows came."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, sent: list[int], received: list[int], group: ProcessGroup) -> Tensor:
        ctx.way = sent, received, group
        return _all_to_all(rows, sent, received, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        sent, received, group = ctx.way
        return _all_to_all(gradient, received, sent, group), None, None, None


def _all_to_all(rows: Tensor, sent: list[int], received: list[int], group: ProcessGroup) -> Tensor:
    arrived = rows.new_empty(sum(received), *rows.shape[1:])
    torch.distributed.all_to_all_single(arrived, rows.contiguous(), received, sent, group=group)
    return arrived
