"""What plait's own optimizers have in common: a step goes group by group, and some of each is torch's Adam."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim.adam import adam


class Stepping(torch.optim.Optimizer):
    """Says `step_group` for each group and those of its parameters that have a gradient."""

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self.step_group(group, [parameter for parameter in group["params"] if parameter.grad is not None])
        return loss

    def step_group(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        raise NotImplementedError

    def step_adam(
        self, group: dict[str, Any], parameters: list[Tensor], first: list[Tensor], second: list[Tensor], decoupled: bool = True
    ) -> None:
        """By their first and second moments, in place. decoupled: AdamW's decay."""
        adam(
            parameters,
            [parameter.grad for parameter in parameters if parameter.grad is not None],
            first,
            second,
            [],
            [self.state[parameter]["step"] for parameter in parameters],
            foreach=False,
            fused=group["fused"],
            decoupled_weight_decay=decoupled,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
