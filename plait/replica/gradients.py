"""Gradients in flat buckets: allocated once, each parameter's gradient a view.

    parameters, last first   p9   p8 p7   p6   ...
    buckets                 [------------][----------- ...     what is sent, in this order on every replica
                                          ^ ready when backward has finished all of its parameters

Buckets follow the order in which backward finishes parameters, so that the first can travel while later ones are computed. Those whose
gradients are partial sums over axes of the mesh come last: they are summed there first, when the unit has ended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple
from zlib import crc32

import torch
import torch.distributed
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from plait.replica.assemble import Leaf
from plait.replica.mesh import ALONE, Mesh

Launch = Callable[[Tensor, int], None]
"""Takes a bucket and its key, which is the same wherever the same parameters share a bucket."""


class Gradients:
    """The local gradients of one rank, zero at `begin`, summed over its micro-batches.

    `watch(launch)` has each bucket handed to `launch` once it is final, always in the same order; `finish` hands over
    those that backward never reached: parameters without use, or a share of nothing.
    """

    def __init__(self, leaves: Iterable[Leaf], bucket_bytes: int, mesh: Mesh = ALONE) -> None:
        self._leaves = list(leaves)
        self._mesh = mesh
        self._hooks: list[RemovableHandle] = []
        self._final_pass = False
        self._launched = 0
        self._launch: Launch | None = None
        self._owed: dict[str, Tensor] = {}
        self.resize(bucket_bytes)

    def resize(self, bucket_bytes: int) -> None:
        """Buckets of another size, all zero; between two units."""
        for hook in self._hooks:
            hook.remove()
        groups = list(_groups(self._leaves[::-1], bucket_bytes))
        self.paths = [[leaf.path for leaf in group] for group in groups]
        """of the parameters in each bucket, in order"""
        self.keys = [crc32("\n".join(paths).encode()) for paths in self.paths]
        self.buckets = [_allocate(group) for group in groups]
        self._kinds = [_kind(group[0]) for group in groups]
        self._sizes = [len(group) for group in groups]
        self._missing = list(self._sizes)
        self._hooks = [
            leaf.parameter.register_post_accumulate_grad_hook(self._counter(index)) for index, group in enumerate(groups) for leaf in group
        ]

    @property
    def counted(self) -> list[bool]:
        """By bucket: whether its squares are in this rank's norm."""
        return [kind.counted for kind in self._kinds]

    def begin(self) -> None:
        """A new unit: zero everything, but for what is owed."""
        for bucket in self.buckets:
            bucket.zero_()
        for leaf in self._leaves:
            if leaf.path in self._owed and leaf.parameter.grad is not None:
                leaf.parameter.grad += self._owed[leaf.path]
        self._owed = {}
        self._missing = list(self._sizes)
        self._launched = 0
        self._final_pass = False

    def owe(self, gradients: Mapping[str, Tensor]) -> None:
        """By path: added to those of the next unit."""
        self._owed = dict(gradients)

    def watch(self, launch: Launch | None) -> None:
        """From now on; None: nobody is told."""
        self._launch = launch

    def final_pass(self) -> None:
        """The next backward is the unit's last: what it finishes is final."""
        self._final_pass = True

    def finish(self) -> None:
        """Sum over the mesh what is partial there, and hand over all buckets that have not been."""
        for bucket, kind in zip(self.buckets, self._kinds, strict=True):
            for axis in kind.partial:
                torch.distributed.all_reduce(bucket, group=self._mesh.group(axis))
        self._missing = [0] * len(self.buckets)
        self._launch_ready(all_ready=True)

    def squared_norm(self) -> float:
        """This rank's part of the sum of squares of all gradients, in fp64 over the norms of buckets."""
        counted = [bucket for bucket, kind in zip(self.buckets, self._kinds, strict=True) if kind.counted]
        if not counted:
            return 0.0
        norms = torch.stack(torch._foreach_norm(counted)).double()
        return float((norms * norms).sum())

    def scale(self, factor: float) -> None:
        torch._foreach_mul_(self.buckets, factor)

    def _counter(self, index: int) -> Callable[[Tensor], None]:
        def count(_: Tensor) -> None:
            if self._final_pass:
                self._missing[index] -= 1
                if self._missing[index] == 0:
                    self._launch_ready()

        return count

    def _launch_ready(self, all_ready: bool = False) -> None:
        """Launch in bucket order, so that every replica sends the same bucket at the same time."""
        while self._launch and self._launched < len(self.buckets) and self._missing[self._launched] <= 0:
            if self._kinds[self._launched].partial and not all_ready:
                return
            self._launch(self.buckets[self._launched], self.keys[self._launched])
            self._launched += 1


class _Kind(NamedTuple):
    """What parameters of one bucket have in common. Ranks with equal values of one parameter have equal values of all in its bucket, so
    that whatever is made of a bucket as a whole, a compressed form or a choice of its largest values, is equal there too."""

    partial: tuple[str, ...]
    alike: tuple[str, ...]
    counted: bool
    dtype: torch.dtype


def _kind(leaf: Leaf) -> _Kind:
    return _Kind(leaf.partial, leaf.alike, leaf.counted, leaf.parameter.dtype)


def _groups(leaves: list[Leaf], bucket_bytes: int) -> Iterator[list[Leaf]]:
    """Neighbours of one kind, up to `bucket_bytes` together; kinds with partial sums last."""
    kinds = sorted(dict.fromkeys(map(_kind, leaves)), key=lambda kind: bool(kind.partial))
    for kind in kinds:
        yield from _filled([leaf for leaf in leaves if _kind(leaf) == kind], bucket_bytes)


def _filled(leaves: list[Leaf], bucket_bytes: int) -> Iterator[list[Leaf]]:
    group: list[Leaf] = []
    filled = 0
    for leaf in leaves:
        size = leaf.parameter.numel() * leaf.parameter.element_size()
        if group and filled + size > bucket_bytes:
            yield group
            group, filled = [], 0
        group.append(leaf)
        filled += size
    if group:
        yield group


def _allocate(group: list[Leaf]) -> Tensor:
    """A bucket of zeros, and in it the gradient of each leaf."""
    like = group[0].parameter
    bucket = torch.zeros(sum(leaf.parameter.numel() for leaf in group), dtype=like.dtype, device=like.device)
    first = 0
    for leaf in group:
        parameter = leaf.parameter
        parameter.grad = bucket[first : first + parameter.numel()].view_as(parameter)
        if leaf.holder is not None:
            from plait.replica.shard import hold_gradient

            hold_gradient(leaf.holder, parameter.grad)
        first += parameter.numel()
    return bucket
