"""Weights in eight bits, for a model that is used and no longer trained: a quarter of the bytes, a scale for each output channel.

    weight of row o    w_oi  ~  scale_o  q_oi        q_oi in -127 ... 127,  scale_o = max_i |w_oi| / 127

    weights    y_o = scale_o  sum_i q_oi x_i               x as it is: what is saved is memory, and the time of reading it
    dynamic    y_o = scale_o  a  sum_i q_oi p_i            x ~ a p, p in eight bits too, a of each position by itself

So what a position gets depends on no other one. Linear layers, the embedding of tokens, and of a mixture its experts are rounded; norms,
biases, positions and routers are not. What is tied stays tied. Experts compute by "weights" in either way.

Engines, as measured on CPUs (docs/shrink.md): few positions, which generation computes one by one, by torch's own product of bf16 with
int8; many by a product of floats; "dynamic" by FBGEMM where torch has it, whose products of x86 without VNNI need p in seven bits.
Symmetric, by channel: Jacob et al. 2018; by position: Yao et al. 2022 (ZeroQuant), Dettmers et al. 2022 (LLM.int8()).
"""

from __future__ import annotations

import warnings
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import Parameter, functional

from plait.model.moe import Experts

Mode = Literal["weights", "dynamic"]
MODES: tuple[Mode, ...] = ("weights", "dynamic")
_TOP = 127

# torch deprecates the tensors that FBGEMM's weights are packed from; where they are gone `_products` does without.
warnings.filterwarnings("ignore", message="torch.quantize_per_tensor, torch.quantize_per_channel and other", category=UserWarning)


def round_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(q, scale) of a matrix [O, I], or of a stack of them: a scale for each row."""
    scale = weight.abs().amax(-1) / _TOP
    q = weight / torch.where(scale > 0, scale, 1.0).unsqueeze(-1)
    return q.round_().clamp_(-_TOP, _TOP).to(torch.int8), scale


@torch.no_grad()
def round_weights(model: nn.Module, mode: Mode) -> None:
    """Replace the model's linear layers, its embedding of tokens and its experts, in place. It can only be used from then on."""
    rounded: dict[Parameter, Rounded] = {}
    for path, module in list(model.named_modules()):
        new: nn.Module
        if isinstance(module, nn.Linear):
            new = Int8Linear(module, mode, rounded.get(cast(Parameter, module.weight)))
        elif isinstance(module, nn.Embedding) and path == "embed":
            new = Int8Embedding(module)
        elif isinstance(module, Experts):
            new = Int8Experts(module)
        else:
            continue
        if isinstance(new, Rounded):
            rounded.setdefault(cast(Parameter, module.weight), new)
        owner, _, name = path.rpartition(".")
        setattr(model.get_submodule(owner), name, new)
    model.requires_grad_(False)


class Rounded(nn.Module):
    """`weight` int8 and its `scale`, kept in checkpoints; those of `same` where it is tied to that, which keeps them then."""

    def __init__(self, weight: Tensor, same: Rounded | None = None) -> None:
        super().__init__()
        self.weight: Tensor
        self.scale: Tensor
        q, scale = round_rows(weight) if same is None else (same.weight, same.scale)
        self.register_buffer("weight", q, persistent=same is None)
        self.register_buffer("scale", scale, persistent=same is None)


class Int8Embedding(Rounded):
    def __init__(self, layer: nn.Embedding) -> None:
        super().__init__(layer.weight)

    def forward(self, tokens: Tensor) -> Tensor:
        return functional.embedding(tokens, self.weight).to(self.scale.dtype) * self.scale[tokens].unsqueeze(-1)


class Int8Linear(Rounded):
    """A linear layer. x of two dims is positions of several texts, one each; of more dims texts as a whole."""

    def __init__(self, layer: nn.Linear, mode: Mode, same: Rounded | None) -> None:
        super().__init__(layer.weight, same)
        self.bias = layer.bias
        self.mode = mode
        self._packed: Any = None

    def forward(self, x: Tensor) -> Tensor:
        if self.mode == "dynamic":
            y = self._by_positions(x.flatten(0, -2)).view(*x.shape[:-1], -1)
        elif x.ndim == 2 and x.device.type == "cpu" and x.dtype != torch.float64:
            ones = torch.ones_like(self.scale, dtype=torch.bfloat16)
            y = torch._weight_int8pack_mm(x.to(torch.bfloat16), self.weight, ones).to(x.dtype)
        else:
            y = functional.linear(x, self.weight.to(x.dtype))
        y = y * self.scale.to(y.dtype)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def _by_positions(self, x_NI: Tensor) -> Tensor:
        """Without the scales of rows."""
        length_N1 = x_NI.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(x_NI.dtype).tiny)
        x_NI = x_NI / length_N1
        if x_NI.device.type == "cpu" and "fbgemm" in torch.backends.quantized.supported_engines:
            return self._by_fbgemm(x_NI.float()).to(x_NI.dtype) * length_N1
        p_NI = (x_NI * _TOP).round_().to(torch.int8)
        return _products(p_NI, self.weight).to(x_NI.dtype) * (length_N1 / _TOP)

    def _by_fbgemm(self, x_NI: Tensor) -> Tensor:
        """FBGEMM takes one scale for all that it is given, from its least and its largest value: a row of both ends beside keeps it."""
        if self._packed is None:
            ones, zeros = torch.ones(len(self.weight), dtype=torch.float64), torch.zeros(len(self.weight), dtype=torch.int64)
            wrapped = torch._make_per_channel_quantized_tensor(self.weight, ones, zeros, 0)
            self._packed = torch.ops.quantized.linear_prepack(wrapped, None)
        ends_1I = torch.ones_like(x_NI[:1])
        ends_1I[:, ::2] = -1.0
        return cast(Tensor, torch.ops.quantized.linear_dynamic(torch.cat([x_NI, ends_1I]), self._packed, True))[:-1]


class Int8Experts(nn.Module):
    """A mixture's experts, one product each."""

    def __init__(self, experts: Experts) -> None:
        super().__init__()
        self.gate_up, self.down = Rounded(experts.gate_up), Rounded(experts.down)

    def forward(self, rows_MD: Tensor, counts_n: Tensor) -> Tensor:
        """As that of the experts."""
        gate_MF, up_MF = _grouped(rows_MD, self.gate_up, counts_n).chunk(2, -1)
        return _grouped(functional.silu(gate_MF) * up_MF, self.down, counts_n)


def _grouped(x_MI: Tensor, stack: Rounded, counts_n: Tensor) -> Tensor:
    """Of rows that are sorted by expert."""
    parts = zip(x_MI.split(counts_n.tolist()), stack.weight, stack.scale, strict=True)
    return torch.cat([functional.linear(x, q.to(x.dtype)) * scale.to(x.dtype) for x, q, scale in parts])


def _products(p_NI: Tensor, q_OI: Tensor) -> Tensor:
    """p q^T of int8: in whole numbers where the device has such products, which want eights, and more than 16 rows; else as floats."""
    if p_NI.device.type == "cuda" and not any(size % 8 for size in q_OI.shape):
        padded = functional.pad(p_NI, (0, 0, 0, max(0, 32 - len(p_NI))))
        return torch._int_mm(padded, q_OI.t())[: len(p_NI)]
    return functional.linear(p_NI.float(), q_OI.float())
