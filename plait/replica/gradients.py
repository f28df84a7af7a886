"""Gradients in flat buckets: allocated once, each parameter's gradient a view.

    parameters, last first   p9   p8 p7   p6   ...
    buckets                 [------------][----------- ...     what is sent, in this order on every replica
                                          ^ ready when backward has finished all of its parameters

Buckets follow the order in which backward finishes parameters, so that the first can travel while later ones are computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor
from torch.nn import Parameter

Launch = Callable[[Tensor], None]


class Gradients:
    """The local gradients of one rank, zero at `begin`, summed over its micro-batches.

    `watch(launch)` has each bucket handed to `launch` once it is final, always in the same order; `finish` hands over
    those that backward never reached: parameters without use, or a share of nothing.
    """

    def __init__(self, parameters: Iterable[Parameter], bucket_bytes: int) -> None:
        groups = list(_groups(reversed(list(parameters)), bucket_bytes))
        self.buckets = [_allocate(group) for group in groups]
        self._sizes = [len(group) for group in groups]
        self._missing = list(self._sizes)
        self._final_pass = False
        self._launched = 0
        self._launch: Launch | None = None
        for index, group in enumerate(groups):
            for parameter in group:
                parameter.register_post_accumulate_grad_hook(self._counter(index))

    def begin(self) -> None:
        """A new unit: zero everything."""
        for bucket in self.buckets:
            bucket.zero_()
        self._missing = list(self._sizes)
        self._launched = 0
        self._final_pass = False
        self._launch = None

    def watch(self, launch: Launch) -> None:
        self._launch = launch

    def final_pass(self) -> None:
        """The next backward is the unit's last: what it finishes is final."""
        self._final_pass = True

    def finish(self) -> None:
        """Hand over all buckets that have not been."""
        self._missing = [0] * len(self.buckets)
        self._launch_ready()

    def squared_norm(self) -> float:
        """The sum of squares of all gradients, in fp64 over the norms of buckets."""
        norms = torch.stack(torch._foreach_norm(self.buckets)).double()
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

    def _launch_ready(self) -> None:
        """Launch in bucket order, so that every replica sends the same bucket at the same time."""
        while self._launch and self._launched < len(self.buckets) and self._missing[self._launched] <= 0:
            self._launch(self.buckets[self._launched])
            self._launched += 1


def _groups(parameters: Iterable[Parameter], bucket_bytes: int) -> Iterator[list[Parameter]]:
    """Neighbours of one dtype and device, up to `bucket_bytes` together."""
    group: list[Parameter] = []
    filled = 0
    for parameter in parameters:
        size = parameter.numel() * parameter.element_size()
        if group and (filled + size > bucket_bytes or group[0].dtype != parameter.dtype):
            yield group
            group, filled = [], 0
        group.append(parameter)
        filled += size
    if group:
        yield group


def _allocate(group: list[Parameter]) -> Tensor:
    bucket = torch.zeros(sum(parameter.numel() for parameter in group), dtype=group[0].dtype, device=group[0].device)
    first = 0
    for parameter in group:
        parameter.grad = bucket[first : first + parameter.numel()].view_as(parameter)
        first += parameter.numel()
    return bucket
