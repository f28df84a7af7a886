"""A mixture of experts in place of a block's MLP: a token is computed by a few of many experts, chosen by a router.

    x ─┬─ router ─ sigmoid ─(+ bias)─ top k ─────────── which experts, and their weights
       │                                 │                          │
       ├──── tokens sorted by expert ◄───┘                          │
       │      0 0 0 1 1 3 3 3 3     ─ experts ─ back in order ─ weighted sum ─(+)─► y
       └──── shared experts, if any ──────────────────────────────────────────┘

Scores are sigmoids, the weights of the chosen ones are their scores over the sum of these (the score itself where one expert is chosen,
which would otherwise learn nothing): DeepSeek-AI 2024, "DeepSeek-V3 Technical Report", section 2.1.2. Or they are softmaxes over all
experts, as in Mixtral (Jiang et al. 2024). No expert has a capacity, so that
no token is dropped: a token's outcome depends on nothing but itself. It is routed in fp32 (fp64 in fp64) whatever autocast says, since a
score that rounds otherwise chooses otherwise.

Experts are kept equally busy by one or both of

    bias         added to the scores for choosing alone; after a committed step it moves by a fixed rate towards what was chosen less
                 than the mean of the global batch (Wang et al. 2024, "Auxiliary-Loss-Free Load Balancing Strategy")
    auxiliary    a loss of each sequence, auxiliary * sum_i f_i P_i a token: f_i is n / (k T) times the choices of expert i among the
                 sequence's T tokens, as a constant, P_i the mean of its score's share of all scores (section 2.1.2, eq. 17 to 20)

Both are functions of samples and of the global batch, so that they follow no cut of it.
Shapes: B samples, L positions, D width, n experts, K chosen for a token, F width inside an expert; N = B x L tokens, M = N x K.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from plait import spec
from plait.model.noise import Noise

Compute = Callable[[Tensor, Tensor], Tensor]
"""(rows_MD sorted by expert, counts_n) -> out_MD, row by row."""

Exchange = Callable[[Tensor, Tensor, Compute], Tensor]
"""(rows_MD sorted by expert, counts_n of all experts, the experts held here) -> out_MD: has each row computed where its expert is held."""


class Mixture(nn.Module):
    """A block's mixture. `exchange` stands between tokens and experts where ranks hold different ones; layer: the block's number."""

    def __init__(self, width: int, mixture: spec.Mixture, layer: int, shared: nn.Module | None = None) -> None:
        super().__init__()
        self.layer = layer
        self.router = Router(width, mixture)
        self.experts = Experts(width, mixture.hidden, mixture.experts)
        self.shared = shared
        self.exchange: Exchange | None = None

    def forward(self, x_BLD: Tensor, noise: Noise | None = None) -> Tensor:
        """y_BLD, in x's dtype. noise: tells which samples count; all when None."""
        chosen_BLK, weights_BLK = self.router(x_BLD, None if noise is None else noise.counted_B)
        x_ND = x_BLD.flatten(0, 1).to(_compute_dtype(x_BLD))
        out_NKD = self._computed(x_ND, chosen_BLK.flatten(0, 1))
        y_BLD = (out_NKD * weights_BLK.flatten(0, 1)[..., None]).sum(1).to(x_BLD.dtype).view_as(x_BLD)
        return y_BLD if self.shared is None else cast(Tensor, y_BLD + self.shared(x_BLD))

    def _computed(self, x_ND: Tensor, chosen_NK: Tensor) -> Tensor:
        """What each token's experts make of it, [N, K, D]."""
        N, K = chosen_NK.shape
        order_M = chosen_NK.flatten().argsort(stable=True)
        back_M = inverse(order_M)
        counts_n = chosen_NK.flatten().bincount(minlength=self.router.experts)
        rows_MD = reorder(x_ND, order_M // K, back_M, K)
        out_MD = self.experts(rows_MD, counts_n) if self.exchange is None else self.exchange(rows_MD, counts_n, self.experts)
        return reorder(out_MD, back_M, order_M).view(N, K, x_ND.shape[1])


class Router(nn.Module):
    """Chooses experts, and counts what it chose.

    load: tokens sent to each expert since `begin`, int64, of the samples that count: each micro-batch once, when its backward passes.
    reduce_counts: sums a sequence's choices [B, n] over the ranks that hold its other positions. bias: kept in checkpoints.
    """

    def __init__(self, width: int, mixture: spec.Mixture) -> None:
        super().__init__()
        self.experts, self.per_token, self.scores = mixture.experts, mixture.per_token, mixture.scores
        self.auxiliary, self.bias_rate = mixture.auxiliary, mixture.bias_rate
        self.auxiliary_scale = 1.0
        self.reduce_counts: Callable[[Tensor], Tensor] = _alone
        self.weight = nn.Parameter(torch.empty(mixture.experts, width))
        self.bias: Tensor | None
        self.load: Tensor
        self.register_buffer("bias", torch.zeros(mixture.experts) if mixture.balance == "bias" else None)
        self.register_buffer("load", torch.zeros(mixture.experts, dtype=torch.int64), persistent=False)

    def forward(self, x_BLD: Tensor, counted_B: Tensor | None) -> tuple[Tensor, Tensor]:
        """(chosen_BLK, weights_BLK): numbers of experts, and what each counts."""
        wide = torch.promote_types(x_BLD.dtype, torch.float32)
        with torch.autocast(x_BLD.device.type, enabled=False):
            outputs_BLn = functional.linear(x_BLD.to(wide), self.weight.to(wide))
            scores_BLn = outputs_BLn.sigmoid() if self.scores == "sigmoid" else outputs_BLn.softmax(-1)
            chosen_BLK = self._choose(scores_BLn.detach())
            if torch.is_grad_enabled():
                scores_BLn = cast(Tensor, _Balanced.apply(scores_BLn, self._counts(chosen_BLK, counted_B), self))
            weights_BLK = scores_BLn.gather(-1, chosen_BLK)
            return chosen_BLK, weights_BLK / _sum(weights_BLK) if self.per_token > 1 else weights_BLK

    def begin(self, auxiliary_scale: float) -> None:
        """A new unit: count from zero. auxiliary_scale: what losses are multiplied with, one over the unit's target tokens."""
        self.auxiliary_scale = auxiliary_scale
        self.load.zero_()

    @torch.no_grad()
    def follow(self, load: list[int]) -> None:
        """Move the bias, if there is one, by the load of a whole global batch: up where an expert had less than the mean."""
        if self.bias is not None:
            load_n = torch.tensor(load, dtype=torch.int64, device=self.bias.device)
            below_n = load_n.sum() - len(load) * load_n  # in whole numbers: the same on every rank
            self.bias.add_(below_n.sign(), alpha=self.bias_rate)

    def _choose(self, scores_BLn: Tensor) -> Tensor:
        biased_BLn = scores_BLn if self.bias is None else scores_BLn + self.bias
        return biased_BLn.topk(self.per_token, -1).indices

    def _counts(self, chosen_BLK: Tensor, counted_B: Tensor | None) -> Tensor:
        """How often each expert was chosen in each sample, [B, n] int64; of samples that do not count, never."""
        chosen_BM = chosen_BLK.flatten(1)
        ones = torch.ones_like(chosen_BM) if counted_B is None else counted_B[:, None].to(torch.int64).expand_as(chosen_BM)
        return chosen_BM.new_zeros(len(chosen_BM), self.experts).scatter_add_(1, chosen_BM, ones)


class Experts(nn.Module):
    """SwiGLU MLPs, stacked: down_i(silu(gate_i(x)) * up_i(x))."""

    def __init__(self, width: int, hidden: int, experts: int) -> None:
        super().__init__()
        self.gate_up = nn.Parameter(torch.empty(experts, 2 * hidden, width))
        self.down = nn.Parameter(torch.empty(experts, width, hidden))

    def forward(self, rows_MD: Tensor, counts_n: Tensor) -> Tensor:
        """out_MD of rows that are sorted by expert; counts_n: how many each of the experts held here has."""
        gate_MF, up_MF = grouped_matmul(rows_MD, self.gate_up.to(rows_MD.dtype), counts_n).chunk(2, -1)
        return grouped_matmul(functional.silu(gate_MF) * up_MF, self.down.to(rows_MD.dtype), counts_n)


def mixtures(module: nn.Module) -> list[Mixture]:
    """The mixtures of a model, or of a part of one."""
    return [found for found in module.modules() if isinstance(found, Mixture)]


def grouped_matmul(x_MI: Tensor, weight_nOI: Tensor, counts_n: Tensor) -> Tensor:
    """x_m W_i^T, [M, O], where i is the expert of row m: the first counts[0] rows are expert 0's, the next expert 1's."""
    if x_MI.dtype == torch.bfloat16 and not any(size * x_MI.element_size() % 16 for size in weight_nOI.shape[1:]):
        return functional.grouped_mm(x_MI, weight_nOI.transpose(1, 2), offs=counts_n.cumsum(0, dtype=torch.int32))
    return cast(Tensor, _Grouped.apply(x_MI, weight_nOI, counts_n.tolist()))


def reorder(x: Tensor, index_M: Tensor, back_M: Tensor, copies: int = 1) -> Tensor:
    """x[index], where back[m] says which row of the result is the m-th copy, the first row's copies first.

    The gradient is gathered as the values were and summed over a row's copies: always in one order, and nothing is scattered.
    """
    return cast(Tensor, _Reorder.apply(x, index_M, back_M, copies))


def inverse(order_M: Tensor) -> Tensor:
    """The permutation that undoes one."""
    return torch.empty_like(order_M).scatter_(0, order_M, torch.arange(len(order_M), device=order_M.device))


class _Balanced(torch.autograd.Function):
    """Scores, as they are. Backward counts the load, and adds the gradient of the auxiliary loss to that of the scores.

    A token's part of the loss is  a sum_i f_i s_i / S,  S = sum_i s_i;  its gradient  a (f_j - sum_i f_i s_i / S) / S.
    """

    @staticmethod
    def forward(ctx: Any, scores_BLn: Tensor, counts_Bn: Tensor, router: Router) -> Tensor:
        ctx.router, ctx.load_n = router, counts_Bn.sum(0)
        if router.auxiliary:
            of_sequence_Bn = router.reduce_counts(counts_Bn).to(scores_BLn.dtype)
            f_Bn = of_sequence_Bn * router.experts / of_sequence_Bn.sum(-1, keepdim=True).clamp_min(1)  # the sum is k T
            ctx.save_for_backward(scores_BLn, f_Bn)
        return scores_BLn.view_as(scores_BLn)

    @staticmethod
    def backward(ctx: Any, gradient_BLn: Tensor) -> tuple[Tensor, None, None]:
        router: Router = ctx.router
        router.load += ctx.load_n
        if router.auxiliary:
            scores_BLn, f_Bn = ctx.saved_tensors
            f_B1n, sum_BL1 = f_Bn[:, None], _sum(scores_BLn)
            pull_BLn = (f_B1n - (f_B1n * scores_BLn).sum(-1, keepdim=True) / sum_BL1) / sum_BL1
            gradient_BLn = gradient_BLn.add(pull_BLn, alpha=router.auxiliary * router.auxiliary_scale)
        return gradient_BLn, None, None


class _Grouped(torch.autograd.Function):
    """One matmul for each expert. Forward they have results of their own, which selective recomputing can keep."""

    @staticmethod
    def forward(ctx: Any, x_MI: Tensor, weight_nOI: Tensor, counts: list[int]) -> Tensor:
        ctx.save_for_backward(x_MI, weight_nOI)
        ctx.counts = counts
        return torch.cat([torch.mm(x, weight.t()) for x, weight in zip(x_MI.split(counts), weight_nOI, strict=True)])

    @staticmethod
    def backward(ctx: Any, gradient_MO: Tensor) -> tuple[Tensor, Tensor, None]:
        x_MI, weight_nOI = ctx.saved_tensors
        dx_MI, d_weight_nOI = torch.empty_like(x_MI), torch.empty_like(weight_nOI)
        rows = zip(x_MI.split(ctx.counts), gradient_MO.split(ctx.counts), dx_MI.split(ctx.counts), strict=True)
        for (x, gradient, dx), weight, d_weight in zip(rows, weight_nOI, d_weight_nOI, strict=True):
            torch.mm(gradient, weight, out=dx)
            torch.mm(gradient.t(), x, out=d_weight)
        return dx_MI, d_weight_nOI, None


class _Reorder(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, index_M: Tensor, back_M: Tensor, copies: int) -> Tensor:
        ctx.save_for_backward(back_M)
        ctx.copies = copies
        return x[index_M]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (back_M,) = ctx.saved_tensors
        gathered = gradient[back_M]
        return gathered if ctx.copies == 1 else gathered.unflatten(0, (-1, ctx.copies)).sum(1), None, None, None


def _alone(counts_Bn: Tensor) -> Tensor:
    return counts_Bn


def _sum(scores: Tensor) -> Tensor:
    """Over the last dim, kept; never zero, which sigmoids of far negative numbers are."""
    return scores.sum(-1, keepdim=True) + 1e-20


def _compute_dtype(x: Tensor) -> torch.dtype:
    """What a matmul of `x` is computed in."""
    return torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
