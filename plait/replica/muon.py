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
Where ranks hold parts of a matrix they join them, share the matrices among themselves, and hand the updates back (Liu et al. 2025, section
3.1, with the work shared instead of repeated):

    rank 0   a0 b0 c0 d0  ─┐ sum   a b  ─ orthogonalise ─┐ gather   parts 0 of all updates
    rank 1   a1 b1 c1 d1  ─┘       c d  ─ orthogonalise ─┘          parts 1

torch.optim.Muon iterates in bfloat16 whatever the matrix is. Here it iterates in the matrix's own dtype: in fp64 a curve must not depend
on the layout, and rounding to eight bits would turn the last bit of a gradient into a visible difference.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed
from torch import Tensor
from torch.distributed import ProcessGroup

from plait.replica.part import Part
from plait.replica.stepping import Stepping
from plait.replica.transport import POOL, gather_rows, sum_rows

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # Keller Jordan's quintic: steepest at zero, then within about 0.7 to 1.2
ITERATIONS = 5
JOINED_BYTES = 2**26  # matrices that are joined at once, or one for each rank where those are more


class Muon(Stepping):
    """Groups with `orthogonal=True` hold matrices and are trained by Muon; the other groups by AdamW.

    State of a matrix: momentum_buffer; of any other parameter: step, exp_avg, exp_avg_sq, as in torch.optim.AdamW. It is created
    with the optimizer. `fused` is AdamW's. `joint` is for matrices of which ranks hold parts.
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
        joint: Joint | None = None,
    ) -> None:
        self._joint = joint
        defaults = {"lr": lr, "momentum": momentum, "nesterov": nesterov, "betas": betas, "eps": eps}
        super().__init__(groups, defaults | {"weight_decay": weight_decay, "fused": fused, "orthogonal": False})
        for group in self.param_groups:
            for parameter in group["params"]:
                self._create_state(group, parameter)

    def step_group(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        if group["orthogonal"]:
            self._step_matrices(group, parameters)
            return
        first, second = ([self.state[parameter][name] for parameter in parameters] for name in ("exp_avg", "exp_avg_sq"))
        self.step_adam(group, parameters, first, second)

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

    def _step_matrices(self, group: dict[str, Any], matrices: list[Tensor]) -> None:
        if self._joint is None:
            for matrix in matrices:
                self._move(group, matrix, orthogonalise(self._ahead(group, matrix)), matrix.shape)
            return
        for batch in self._joint.batches(matrices):
            updates = self._joint.orthogonalise(batch, [self._ahead(group, matrix) for matrix in batch])
            for matrix, update in zip(batch, updates, strict=True):
                self._move(group, matrix, update, self._joint.parts[matrix].shape)

    def _ahead(self, group: dict[str, Any], matrix: Tensor) -> Tensor:
        """The momentum, advanced; where nesterov, as it would be one step on."""
        assert matrix.grad is not None
        momentum: Tensor = self.state[matrix]["momentum_buffer"]
        momentum.lerp_(matrix.grad, 1 - group["momentum"])
        return matrix.grad.lerp(momentum, group["momentum"]) if group["nesterov"] else momentum

    def _move(self, group: dict[str, Any], matrix: Tensor, update: Tensor, shape: torch.Size) -> None:
        """shape: of the whole matrix."""
        matrix.mul_(1 - group["lr"] * group["weight_decay"])
        matrix.add_(update, alpha=-group["lr"] * 0.2 * math.sqrt(max(shape)))


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


class _Seat(NamedTuple):
    """Where a matrix is joined: by which rank, and from which element of its row on."""

    rank: int
    first: int


class Joint:
    """Orthogonalises matrices of which the ranks of `groups` hold `parts`; of each this rank's. Ranks call it alike, in one order.

    groups: those that differ along one axis of the mesh each. Along an axis that cuts a matrix not at all, ranks hold the same.
    """

    def __init__(self, parts: Mapping[Tensor, Part], groups: Sequence[ProcessGroup]) -> None:
        self.parts = {matrix: part for matrix, part in parts.items() if len(part.shape) == 2}
        self._groups = list(groups)
        self._ranks = math.prod(group.size() for group in groups)
        self._pool = POOL
        self._held = self._count()

    def batches(self, matrices: Sequence[Tensor]) -> list[list[Tensor]]:
        """What is joined together, so that whole matrices are few at any time."""
        batches: list[list[Tensor]] = []
        filled = 0
        for matrix in matrices:
            size = self.parts[matrix].shape.numel() * matrix.element_size()
            if not batches or (filled + size > JOINED_BYTES and len(batches[-1]) >= self._ranks) or matrix.dtype != batches[-1][0].dtype:
                batches.append([])
                filled = 0
            batches[-1].append(matrix)
            filled += size
        return batches

    def orthogonalise(self, matrices: Sequence[Tensor], updates: Sequence[Tensor]) -> list[Tensor]:
        """This rank's parts of the orthogonalised updates, given its parts of the updates."""
        seats, width = self._seat(matrices)
        rows_RN = self._pool.take((self._ranks, width), updates[0].dtype, updates[0].device).zero_()
        for matrix, update, seat in zip(matrices, updates, seats, strict=True):
            self.parts[matrix].put(update / self._held[matrix], self._at(rows_RN[seat.rank], matrix, seat))
        rank, joined = self._sum(rows_RN)
        for matrix, seat in zip(matrices, seats, strict=True):
            if seat.rank == rank:
                whole = self._at(joined, matrix, seat)
                whole.copy_(orthogonalise(whole))
        self._gather(rows_RN, rank, joined)
        return [self.parts[matrix].take(self._at(rows_RN[seat.rank], matrix, seat)) for matrix, seat in zip(matrices, seats, strict=True)]

    def _seat(self, matrices: Sequence[Tensor]) -> tuple[list[_Seat], int]:
        """The costliest matrix first, each by the rank that has the least to do. Also the length of the longest row."""
        work, filled = [0] * self._ranks, [0] * self._ranks
        seats: dict[Tensor, _Seat] = {}
        for matrix in sorted(matrices, key=lambda matrix: _work(self.parts[matrix].shape), reverse=True):
            rank = min(range(self._ranks), key=lambda rank: work[rank])
            seats[matrix] = _Seat(rank, filled[rank])
            work[rank] += _work(self.parts[matrix].shape)
            filled[rank] += self.parts[matrix].shape.numel()
        return [seats[matrix] for matrix in matrices], max(filled)

    def _at(self, row: Tensor, matrix: Tensor, seat: _Seat) -> Tensor:
        shape = self.parts[matrix].shape
        return row[seat.first : seat.first + shape.numel()].view(shape)

    def _sum(self, rows_RN: Tensor) -> tuple[int, Tensor]:
        """Of the rows, summed over all ranks, this rank's; and which it is."""
        rank, row = 0, rows_RN.view(-1)
        for group in self._groups:
            rows = row.view(group.size(), -1)
            row = self._pool.take(rows.shape[1:], rows.dtype, rows.device)
            sum_rows(rows, row, group, self._pool)
            rank = rank * group.size() + group.rank()
        return rank, row

    def _gather(self, rows_RN: Tensor, rank: int, row: Tensor) -> None:
        """Fill all rows, of which this rank has its own."""
        rows_RN[rank] = row
        known = 1
        for group in reversed(self._groups):
            first = rank // (known * group.size()) * known * group.size()
            gather_rows(rows_RN[first : first + known * group.size()].view(group.size(), -1), group)
            known *= group.size()

    def _count(self) -> dict[Tensor, float]:
        """How many ranks hold each value of a matrix."""
        wholes = torch.tensor([part.shape.numel() for part in self.parts.values()], dtype=torch.float64)
        held = torch.tensor([part.local_shape.numel() for part in self.parts.values()], dtype=torch.float64)
        device = next(iter(self.parts)).device if self.parts else torch.device("cpu")
        held = held.to(device)
        for group in self._groups:
            torch.distributed.all_reduce(held, group=group)
        return dict(zip(self.parts, (held.cpu() / wholes).tolist(), strict=True))


def _work(shape: torch.Size) -> int:
    return shape.numel() * min(shape)
