"""The block of decoders and encoders and its parts, in all families.

    x ─┬─ norm ─ attention ─ dropout ─(+)─┬─ norm ─ MLP ─ dropout ─(+)─►
       └──────────────────────────────────┘└─────────────────────────┘

In the family "bert" a norm stands behind each sum instead. In the family "moe" the MLP of all layers but the first few is a mixture of
experts, which moe.py computes.
Weights that read the same input are stacked: queries, keys and values in one matrix [q | k | v], gate and up in another.
One matmul reads the input once, and under autocast casts it once; each part is the matrix that Hugging Face's checkpoints
name, so that import and export are a concatenation. Rotary positions pair dim i with i + half, as theirs do.
Shapes: B samples, L positions, D width, H heads, G key and value heads, E width of a head, F width inside the MLP.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from plait import spec
from plait.model.attention import Mix, ScoreBias
from plait.model.cache import LayerCache
from plait.model.cut import Cut
from plait.model.moe import Mixture
from plait.model.noise import Dropout, Noise


class Rotation(NamedTuple):
    """Cosines and sines of the positions' angles, [..., L, 1, E / 2], in the dtype that heads are computed in."""

    cos: Tensor
    sin: Tensor


class Around(NamedTuple):
    """What every block is given beside x, alike in all of them: made from the tokens, so that it need not travel.

    mask: bool, true where a query may see a key, [B, 1, L, keys]; plainly causal when None. bias: what is added to scores. segments_BL,
    padded_BL: which of an encoder's two texts stands at each position of x, and which stand for nothing.
    """

    rotation: Rotation | None = None
    mask: Tensor | None = None
    noise: Noise | None = None
    cut: Cut | None = None
    bias: ScoreBias | None = None
    segments_BL: Tensor | None = None
    padded_BL: Tensor | None = None


PLAIN = Around()


class Linear(nn.Linear):
    """A linear layer that draws no values when built: init.py gives them."""

    def reset_parameters(self) -> None:
        pass


class Embedding(nn.Embedding):
    """An embedding that draws no values when built."""

    def reset_parameters(self) -> None:
        pass


class RMSNorm(nn.Module):
    """x / rms(x) * weight (Zhang, Sennrich 2019)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and not torch.compiler.is_compiling():
            return cast(Tensor, _RMSNorm.apply(x, self.weight, self.eps))
        return functional.rms_norm(x, self.weight.shape, self.weight, self.eps)


class Attention(nn.Module):
    """Self-attention; several query heads may share a key and value head (Ainslie et al. 2023)."""

    def __init__(self, model: spec.Model, path: str, causal: bool) -> None:
        super().__init__()
        self.scale = math.sqrt(model.head_width) if model.family == "t5" else None  # T5's scores are not divided by it
        self.head_width = model.head_width
        self.queries_per_key = model.heads // model.key_value_heads
        self.qkv = Linear(model.width, (model.heads + 2 * model.key_value_heads) * self.head_width, bias=model.biased_qkv)
        self.out = Linear(model.heads * self.head_width, model.width, bias=model.layer_norms)
        self.norm_q = RMSNorm(self.head_width, model.norm_eps) if model.qk_norm else None
        self.norm_k = RMSNorm(self.head_width, model.norm_eps) if model.qk_norm else None
        self.mix = Mix(Dropout(model.dropout, f"{path}.dropout"), causal=causal)

    def forward(self, x_BLD: Tensor, around: Around, memory: LayerCache | None) -> Tensor:
        qkv_BLX = self.qkv(x_BLD)  # whose length is attention's, even where x holds a part of it
        qkv_BLHE = qkv_BLX.view(*qkv_BLX.shape[:2], -1, self.head_width)
        kv_heads = qkv_BLHE.shape[2] // (self.queries_per_key + 2)  # told by the weight, which may be one rank's part
        heads = kv_heads * self.queries_per_key
        qk_BLHE, v_BLGE = qkv_BLHE.split([heads + kv_heads, kv_heads], 2)
        if self.norm_q is not None and self.norm_k is not None:
            q_BLHE, k_BLGE = qk_BLHE.split([heads, kv_heads], 2)
            qk_BLHE = torch.cat([self.norm_q(q_BLHE), self.norm_k(k_BLGE)], 2)
        if around.rotation is not None:
            qk_BLHE = rotate(qk_BLHE, around.rotation)
        q_BLHE, k_BLGE = qk_BLHE.split([heads, kv_heads], 2)
        q_BHLE, k_BGLE, v_BGLE = q_BLHE.transpose(1, 2), k_BLGE.transpose(1, 2), v_BLGE.transpose(1, 2)
        q_BHLE = q_BHLE if self.scale is None else q_BHLE * self.scale
        if memory is not None:
            k_BGLE, v_BGLE = memory.extend(k_BGLE, v_BGLE)
        mixed_BHLE = self.mix(q_BHLE, k_BGLE, v_BGLE, around.mask, around.noise, around.cut, around.bias)
        return cast(Tensor, self.out(mixed_BHLE.transpose(1, 2).flatten(2)))


class GeluMLP(nn.Module):
    """GPT-2's and BERT's: down(gelu(up(x))), GPT-2's with the tanh form of GELU."""

    def __init__(self, model: spec.Model) -> None:
        super().__init__()
        self.up = Linear(model.width, model.hidden_width)
        self.down = Linear(model.hidden_width, model.width)
        self.form = "tanh" if model.family == "gpt2" else "none"

    def forward(self, x_BLD: Tensor) -> Tensor:
        return cast(Tensor, self.down(functional.gelu(self.up(x_BLD), approximate=self.form)))


class ReluMLP(nn.Module):
    """T5's: down(relu(up(x))), without biases."""

    def __init__(self, model: spec.Model) -> None:
        super().__init__()
        self.up = Linear(model.width, model.hidden_width, bias=False)
        self.down = Linear(model.hidden_width, model.width, bias=False)

    def forward(self, x_BLD: Tensor) -> Tensor:
        return cast(Tensor, self.down(functional.relu(self.up(x_BLD))))


class SwiGLU(nn.Module):
    """Llama's: down(silu(gate(x)) * up(x)) (Shazeer 2020). T5 1.1's has GELU, in its tanh form, for silu."""

    def __init__(self, width: int, hidden: int, gelu: bool = False) -> None:
        super().__init__()
        self.gelu = gelu
        self.gate_up = Linear(width, 2 * hidden, bias=False)
        self.down = Linear(hidden, width, bias=False)

    def forward(self, x_BLD: Tensor) -> Tensor:
        gate_BLF, up_BLF = self.gate_up(x_BLD).chunk(2, -1)
        opened_BLF = functional.gelu(gate_BLF, approximate="tanh") if self.gelu else functional.silu(gate_BLF)
        return cast(Tensor, self.down(opened_BLF * up_BLF))


class Block(nn.Module):
    """One layer of any family; layer: its number. recompute: what whoever runs it for training computes again in backward."""

    def __init__(self, model: spec.Model, layer: int, causal: bool = True) -> None:
        super().__init__()
        self.recompute = model.recomputes(layer)
        path = f"blocks.{layer}"
        self.norm1 = norm(model)
        self.attention = Attention(model, f"{path}.attention", causal)
        self.norm2 = norm(model)
        self.mlp = _mlp(model, layer)
        self.dropout1 = Dropout(model.dropout, f"{path}.dropout1")
        self.dropout2 = Dropout(model.dropout, f"{path}.dropout2")
        self.norms_sums = model.family == "bert"

    def forward(self, x_BLD: Tensor, around: Around = PLAIN, memory: LayerCache | None = None) -> Tensor:
        if self.norms_sums:
            x_BLD = self.norm1(x_BLD + self.dropout1(self.attention(x_BLD, around, memory), around.noise))
            return cast(Tensor, self.norm2(x_BLD + self.dropout2(self.mlp(x_BLD), around.noise)))
        x_BLD = x_BLD + self.dropout1(self.attention(self.norm1(x_BLD), around, memory), around.noise)
        y_BLD = self.norm2(x_BLD)
        y_BLD = self.mlp(y_BLD, around.noise) if isinstance(self.mlp, Mixture) else self.mlp(y_BLD)
        return cast(Tensor, x_BLD + self.dropout2(y_BLD, around.noise))


def norm(model: spec.Model) -> nn.Module:
    """The family's norm over the width."""
    return nn.LayerNorm(model.width, model.norm_eps) if model.layer_norms else RMSNorm(model.width, model.norm_eps)


def rotate(x_BLHE: Tensor, rotation: Rotation) -> Tensor:
    """Turn each pair (i, i + E / 2) of a head by its position's angle (Su et al. 2021)."""
    return cast(Tensor, _Rotate.apply(x_BLHE, rotation.cos, rotation.sin))


def _mlp(model: spec.Model, layer: int) -> nn.Module:
    if model.layer_norms:
        return GeluMLP(model)
    if model.family == "t5":
        return SwiGLU(model.width, model.hidden_width, gelu=True) if model.gated else ReluMLP(model)
    if not model.mixes(layer):
        return SwiGLU(model.width, model.hidden_width)
    mixture = model.mixture
    shared = SwiGLU(model.width, mixture.shared * mixture.hidden) if mixture.shared else None
    return Mixture(model.width, mixture, layer, shared)


class _Rotate(torch.autograd.Function):
    """Two passes and nothing kept but the tables; the gradient turns back by the same angle."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turn(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turn(gradient, cos, -sin), None, None


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat([(first * cos).addcmul_(second, sin, value=-1), (second * cos).addcmul_(first, sin)], -1)


class _RMSNorm(torch.autograd.Function):
    """torch composes it from small operations on CPUs; this is about twice as fast there.

    With r = 1 / rms(x):  y = x r w,   dw = sum g x r,   dx = g w r - x r^3 mean(g w x).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale = length.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return cast(Tensor, (x * scale).mul_(weight))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, scale = ctx.saved_tensors
        product_ND = (gradient * x).flatten(0, -2)
        d_weight = torch.mv(product_ND.t(), scale.flatten())
        inner = torch.mv(product_ND, weight).view_as(scale)
        inner.mul_(scale * scale * scale).div_(-x.shape[-1])
        return (gradient * weight).mul_(scale).addcmul_(x, inner), d_weight, None
