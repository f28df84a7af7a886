"""Generation, position by position, in as few operations as there are.

A decoder's own forward pass is made for training: modules, hooks, gradients. For one position of a batch calling them costs more than the
matrices do. Here one position is a straight line of operations over the same values:

    x ─┬─ norm ─ qkv ─ rotate ─ into the cache ─ attend ─ out ─(+)─┬─ norm ─ MLP ─(+)─►        [B, width], no dim of positions
       └────────────────────────────────────────────────────────────┘

Query heads that share a key head are queries of one attention, so that keys and values are never repeated. What is not known here (a
mixture of experts, adapters) is computed by the model's own forward pass.
Shapes: as in blocks.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from plait.model import packed
from plait.model.blocks import Around, Attention, Block, GeluMLP, RMSNorm, SwiGLU
from plait.model.cache import Cache
from plait.model.decoder import Decoder

Norm = Callable[[Tensor], Tensor]


def prefill(model: Decoder, tokens_BL: Tensor, cache: Cache) -> Tensor:
    """Read prompts, padded on the left as the cache was told; logits_BV behind the last position of each."""
    positions_BL, mask = cache.extend(tokens_BL.shape[1])
    around = Around(model.rotation(tokens_BL.shape[1], positions_BL), mask)
    x_BLD = model.enter(tokens_BL, around, positions_BL)
    for layer, block in enumerate(model.blocks):
        x_BLD = block(x_BLD, around, cache.layer(layer))
    return model.leave(x_BLD[:, -1:])[:, -1]


class Step:
    """One more position of each row."""

    def __init__(self, model: Decoder) -> None:
        self._model = model
        self.straight = _is_known(model)
        """whether it is computed here, and not by the model's own forward pass"""
        if not self.straight:
            return
        pack = packed.is_worth_it(model)
        self._layers = [_Layer(cast(Block, block), pack) for block in model.blocks]
        self._norm, self._head = _norm(model.norm), packed.applied(model.head, pack)
        if model.rotary is not None:
            self._cos, self._sin = torch.cat([model.rotary.cos] * 2, -1), torch.cat([-model.rotary.sin, model.rotary.sin], -1)

    def __call__(self, tokens_B: Tensor, cache: Cache) -> Tensor:
        """logits_BV behind these tokens. Raises ValueError where the cache is full."""
        if not self.straight:
            return cast(Tensor, self._model(tokens_B[:, None], cache=cache))[:, -1]
        cache.advance()
        place, seen = cache.newest(), cache.seen()
        x_BD: Tensor = self._model.embed(tokens_B)
        rotation = None
        if self._model.positions is not None:
            x_BD = x_BD + self._model.positions.weight[place]
        else:
            cos, sin = self._cos[place], self._sin[place]
            rotation = (cos, sin) if cos.ndim == 1 else (cos[:, None], sin[:, None])
        for layer, compute in enumerate(self._layers):
            x_BD = compute(x_BD, cache, layer, rotation, seen)
        return self._head(self._norm(x_BD))


class _Layer:
    """One block."""

    def __init__(self, block: Block, pack: bool) -> None:
        attention, mlp = block.attention, block.mlp
        self._norm1, self._norm2 = _norm(block.norm1), _norm(block.norm2)
        self._qkv, self._out = packed.applied(attention.qkv, pack), packed.added(attention.out, pack)
        self._width, self._repeat = attention.head_width, attention.queries_per_key
        self._norms = [_norm(part) for part in (attention.norm_q, attention.norm_k) if part is not None]
        self._swish = isinstance(mlp, SwiGLU)
        self._up = packed.applied(mlp.gate_up if isinstance(mlp, SwiGLU) else cast(GeluMLP, mlp).up, pack)
        self._down = packed.added(cast(nn.Module, mlp.down), pack)

    def __call__(self, x_BD: Tensor, cache: Cache, layer: int, rotation: tuple[Tensor, Tensor] | None, seen: Tensor | None) -> Tensor:
        qkv_BX = self._qkv(self._norm1(x_BD))
        qkv_BXE = qkv_BX.view(len(x_BD), -1, self._width)
        heads = qkv_BXE.shape[1] // (self._repeat + 2)
        if rotation is not None:
            qk_BXE = self._normed(qkv_BXE[:, : heads * (self._repeat + 1)], heads * self._repeat)
            turned_BXE = (qk_BXE * rotation[0]).addcmul_(qk_BXE.roll(self._width // 2, -1), rotation[1])
            q_BXE, k_BGE = turned_BXE[:, : heads * self._repeat], turned_BXE[:, heads * self._repeat :]
        else:
            q_BXE, k_BGE = qkv_BXE[:, : heads * self._repeat], qkv_BXE[:, heads * self._repeat : heads * (self._repeat + 1)]
        k_BGLE, v_BGLE = cache.write(layer, k_BGE, qkv_BXE[:, heads * (self._repeat + 1) :])
        q_BGRE = q_BXE.view(len(x_BD), heads, self._repeat, self._width)
        mixed_BGRE = functional.scaled_dot_product_attention(q_BGRE, k_BGLE, v_BGLE, attn_mask=seen)
        x_BD = self._out(x_BD, mixed_BGRE.reshape(len(x_BD), -1))
        h_BF = self._up(self._norm2(x_BD))
        if self._swish:
            gate_BF, up_BF = h_BF.chunk(2, -1)
            h_BF = functional.silu(gate_BF).mul_(up_BF)
        else:
            h_BF = functional.gelu(h_BF, approximate="tanh")
        return self._down(x_BD, h_BF)

    def _normed(self, qk_BXE: Tensor, queries: int) -> Tensor:
        if not self._norms:
            return qk_BXE
        norm_q, norm_k = self._norms
        return torch.cat([norm_q(qk_BXE[:, :queries]), norm_k(qk_BXE[:, queries:])], 1)


def _is_known(model: Decoder) -> bool:
    """Whether all that its blocks consist of is what `_Layer` computes."""
    return all(
        type(block) is Block
        and type(block.attention) is Attention
        and {"qkv", "out", "mix"} <= set(block.attention._modules) <= {"qkv", "out", "norm_q", "norm_k", "mix"}
        and type(block.mlp) in (SwiGLU, GeluMLP)
        and (block.attention.norm_q is None or model.rotary is not None)
        and not any(getattr(layer, "lora", None) is not None for layer in block.modules())
        for block in model.blocks
    )


def _norm(module: nn.Module) -> Norm:
    if not isinstance(module, RMSNorm):
        return cast(Norm, module.forward)
    weight, eps, shape = module.weight, module.eps, module.weight.shape
    if weight.device.type != "cpu":
        return lambda x: functional.rms_norm(x, shape, weight, eps)

    def rms_norm(x_BD: Tensor) -> Tensor:
        scale_B1 = torch.linalg.vector_norm(x_BD, dim=-1, keepdim=True).square_().div_(x_BD.shape[-1]).add_(eps).rsqrt_()
        return cast(Tensor, (x_BD * scale_B1).mul_(weight))

    return rms_norm
