"""Weights that become zero while training goes on, and stay so: [prune].

    step   gradients of pruned weights become zero, before their norm is taken ─► clip, optimizer ─► pruned weights become zero
                                                                                                      │ at steps of the schedule
                                                                                                      └─► more of them: the smallest

What is pruned is decided of whole matrices: how many become zero is a share of the whole, wherever its parts are, so that the curve is
one process's under every layout. Ranks that hold parts of a matrix count together (plait.model.sparse); replicas, which are alike, each
find the same. A threshold for each matrix, not for each row, is what Zhu and Gupta (2017) prune by; rows would need no counting where they
are whole, but the columns of `row` matrices are cut by the tensor axis anyway. Fours in a row never cross ranks.

Masks are kept in checkpoints with the optimizer's state, "optimizer.<path>.pruned", a byte a weight.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed
from torch import Tensor

from plait import spec
from plait.errors import RunFileError
from plait.model import sparse
from plait.replica.assemble import Assembly, Leaf
from plait.replica.mesh import Mesh
from plait.replica.placed import placed

_NAME = "pruned"


class Pruning:
    """One rank's masks. keeps: what is zero at the beginning stays zero."""

    def __init__(self, settings: spec.Prune, assembly: Assembly, device: torch.device, keeps: bool) -> None:
        self._settings, self._mesh, self._device, self._keeps = settings, assembly.mesh, device, keeps
        self._leaves = [leaf for leaf in assembly.trained if settings.fits(leaf.path, len(leaf.part.shape))]
        if settings.pattern == "2:4":
            _check_fours(self._leaves)
        self._kept = {leaf.path: torch.zeros_like(leaf.parameter, dtype=torch.uint8) for leaf in self._leaves}  # bytes can be sent
        self._masks = [self._kept[leaf.path].view(torch.bool) for leaf in self._leaves]
        self.begin()

    @torch.no_grad()
    def begin(self) -> None:
        """Parameters have their first values."""
        for leaf, mask in zip(self._leaves, self._masks, strict=True):
            mask.copy_(leaf.parameter == 0) if self._keeps else mask.zero_()

    @torch.no_grad()
    def silence(self) -> None:
        """Gradients are sums over all by now."""
        for leaf, mask in zip(self._leaves, self._masks, strict=True):
            assert leaf.parameter.grad is not None
            leaf.parameter.grad.masked_fill_(mask, 0.0)

    @torch.no_grad()
    def follow(self, sparsity: float | None) -> None:
        """The optimizer has taken its step. sparsity: to be reached now; None between the steps of the schedule."""
        for leaf, mask in zip(self._leaves, self._masks, strict=True):
            leaf.parameter.masked_fill_(mask, 0.0)
        if sparsity is not None:
            for leaves in self._counted_together():
                for leaf, more in zip(leaves, self._more(leaves, sparsity), strict=True):
                    self._kept[leaf.path].view(torch.bool).logical_or_(more)
                    leaf.parameter.masked_fill_(more, 0.0)

    def state(self) -> dict[str, Any]:
        """By the names of checkpoints; the live tensors, Placed where they are parts."""
        return {f"optimizer.{leaf.path}.{_NAME}": placed(self._kept[leaf.path], leaf.part) for leaf in self._leaves}

    def _counted_together(self) -> Iterable[list[Leaf]]:
        """Matrices that the same axes cut: one collective counts all of them."""
        kinds: dict[Any, list[Leaf]] = {}
        for leaf in self._leaves:
            kinds.setdefault((_cutting(leaf, self._mesh), leaf.parameter.dtype), []).append(leaf)
        return kinds.values()

    def _more(self, leaves: list[Leaf], sparsity: float) -> list[Tensor]:
        if self._settings.pattern == "2:4":
            return [sparse.two_of_four(leaf.parameter) for leaf in leaves]
        axes = _cutting(leaves[0], self._mesh)

        def total(counts: Tensor) -> Tensor:
            counts = counts.to(self._device)
            for axis in axes:
                torch.distributed.all_reduce(counts, group=self._mesh.group(axis))
            return counts

        return sparse.smallest([leaf.parameter for leaf in leaves], [int(sparsity * leaf.part.shape.numel()) for leaf in leaves], total)


def sparsity(settings: spec.Prune, step: int, begin: int, end: int, every: int) -> float | None:
    """The share that is to be zero after `step`, in steps of the schedule; None where nothing changes. Zhu, Gupta 2017, equation 1."""
    begin, end = max(begin, 1), max(end, begin, 1)
    if settings.pattern == "2:4":
        return settings.final if step == begin else None
    if step == end:
        return settings.final
    if not begin <= step < end or (step - begin) % every:
        return None
    return settings.final * (1 - (1 - (step - begin) / (end - begin)) ** 3)


def _cutting(leaf: Leaf, mesh: Mesh) -> tuple[str, ...]:
    """Axes along which ranks hold different parts of a parameter; stages of a pipeline hold different parameters."""
    return tuple(axis for axis in ("shard", "context", "tensor", "expert") if mesh.size(axis) > 1 and axis not in leaf.alike)


def _check_fours(leaves: Iterable[Leaf]) -> None:
    for leaf in leaves:
        size = leaf.part.shape[-1]
        if size % 4:
            raise RunFileError(f'prune.pattern = "2:4": {leaf.path} has rows of {size}, no whole number of fours; name it in prune.spared')
        if edges := [edge for span in leaf.part.spans[-1] for edge in span if edge % 4]:
            raise RunFileError(
                f'prune.pattern = "2:4": the layout cuts {leaf.path} at column {edges[0]}, amid four; use a smaller layout.tensor'
            )
