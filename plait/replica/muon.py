"""Muon: momentum, orthogonalised, for the matrices of the blocks; AdamW for everything else. One optimizer object.

A gradient of a matrix is dominated by a few directions. Muon replaces the momentum U S V^T by about U V^T, so that each direction
moves as far as any other:

    momentum = beta * momentum + (1 - beta) * gradient
    update   = orthogonalise(momentum, looking one step ahead where nesterov)
    matrix   = (1 - lr * decay) * matrix - lr * 0.2 * sqrt(max(rows, columns)) * update

The factor 0.2 sqrt(max(rows, columns)) gives the update the root mean square of a typical AdamW update, so that one learning rate,
one schedule and one weight decay serve both halves.

Sources: Keller Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"
(https://kellerjordan.github.io/posts/muon/); the factor: Liu et al. 2025, "Muon is Scalable for LLM Training", section 2.2.
torch.optim.Muon iterates in bfloat16 whatever the matrix is. Here it iterates in the matrix's own dtype: in fp64 a curve must not depend
on the layout, and rounding to eight bits would turn the last bit of a gradient into a visible difference.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim.adamw import adamw

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # Keller Jordan's quintic: steepest at zero, then within about 0.7 to 1.2
ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """Groups with `orthogonal=True` hold matrices and are trained by Muon; the other groups by AdamW.

    State of a matrix: momentum_buffer; of any other parameter: step, exp_avg, exp_avg_sq, as in torch.optim.AdamW. It is created
    with the optimizer. `fused` is AdamW's.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        *,
        lr: float,
        momentum: float = 0.95,
        nesterov: bool = True,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.1,
        fused: bool = False,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "nesterov": nesterov, "betas": betas, "eps": eps}
        super().__init__(groups, defaults | {"weight_decay": weight_decay, "fused": fused, "orthogonal": False})
        for group in self.param_groups:
            for parameter in group["params"]:
                self._create_state(group, parameter)

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
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if group["orthogonal"]:
                for matrix in parameters:
                    self._step_matrix(group, matrix)
            else:
                self._step_adamw(group, parameters)
        return loss

    def _create_state(self, group: dict[str, Any], parameter: Tensor) -> None:
        state = self.state[parameter]
        if group["orthogonal"]:
            if parameter.ndim != 2:
                raise ValueError(f"Muon orthogonalises matrices; this parameter has the shape {list(parameter.shape)}")
            state["momentum_buffer"] = torch.zeros_like(parameter)
            return
        state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device if group["fused"] else "cpu")
        state["exp_avg"] = torch.zeros_like(parameter)
        state["exp_avg_sq"] = torch.zeros_like(parameter)

    def _step_matrix(self, group: dict[str, Any], matrix: Tensor) -> None:
        assert matrix.grad is not None
        momentum = self.state[matrix]["momentum_buffer"]
        momentum.lerp_(matrix.grad, 1 - group["momentum"])
        ahead = matrix.grad.lerp(momentum, group["momentum"]) if group["nesterov"] else momentum
        scale = 0.2 * math.sqrt(max(matrix.shape))
        matrix.mul_(1 - group["lr"] * group["weight_decay"])
        matrix.add_(orthogonalise(ahead), alpha=-group["lr"] * scale)

    def _step_adamw(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        states = [self.state[parameter] for parameter in parameters]
        adamw(
            parameters,
            [parameter.grad for parameter in parameters if parameter.grad is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=group["fused"],
            foreach=False,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def orthogonalise(matrix: Tensor, iterations: int = ITERATIONS) -> Tensor:
    """About U V^T of the matrix U S V^T, by Newton-Schulz: singular values move into about [0.7, 1.2].

    Each turn applies x -> a x + b x^3 + c x^5 to the singular values, by products of matrices alone:
    X <- a X + (b X X^T + c (X X^T)^2) X, which needs them at most 1 to begin with. A matrix of zeros stays one.
    """
    a, b, c = COEFFICIENTS
    x = matrix.mT if matrix.shape[-2] > matrix.shape[-1] else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(iterations):
        gram = x @ x.mT
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if matrix.shape[-2] > matrix.shape[-1] else x
