"""The decoder: GPT-2's and Llama's families, told apart by settings alone; "moe" is Llama's with a mixture of experts as its MLP.

          gpt2                                llama, moe
norm      LayerNorm                           RMSNorm
place     a learned vector a position         rotary angles in queries and keys
MLP       GELU, 4 x width                     SwiGLU, 8/3 x width
biases    yes                                 no
head      the embedding again                 its own
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

from plait import spec
from plait.model.attention import Mix
from plait.model.blocks import Around, Block, Embedding, Linear, Rotation, norm
from plait.model.cache import Cache
from plait.model.cut import Cut
from plait.model.init import Constant, InitialTable, Normal
from plait.model.layered import Layered, document_mask, sharding, without_gradient
from plait.model.moe import mixtures
from plait.model.noise import Dropout, Noise


class Decoder(Layered):
    """Tokens to logits of the next token."""

    def __init__(self, model: spec.Model, vocabulary: int, sequence: int) -> None:
        super().__init__()
        self.model = model
        self.context = sequence
        self.sharding = sharding(model)
        self.initial = _initial(model)
        self.without_gradient = without_gradient(model)
        self.embed = Embedding(vocabulary, model.width)
        self.positions = Embedding(sequence, model.width) if model.family == "gpt2" else None
        self.rotary = _Rotary(model, sequence) if model.rotates else None
        self.dropout = Dropout(model.dropout, "embed.dropout")
        self.blocks = nn.ModuleList(Block(model, layer) for layer in range(model.layers))
        self.norm = norm(model)
        self.head = Linear(model.width, vocabulary, bias=False)
        if model.tied_head:
            self.head.weight = self.embed.weight

    def forward(
        self,
        tokens_BL: Tensor,
        documents_BL: Tensor | None = None,
        noise: Noise | None = None,
        cache: Cache | None = None,
        cut: Cut | None = None,
    ) -> Tensor:
        """logits_BLV, in the dtype that matmuls are computed in.

        documents_BL: numbers of documents, of whole samples; attention stays within one. noise: dropout is drawn from it; none
        without it. cache: tokens go on behind what it holds. cut: tokens are those at its positions.
        Raises ValueError: more positions than the context.
        """
        length = tokens_BL.shape[1]
        self.check_length(length)
        if cache is None:
            around, positions_BL = self.around(length, documents_BL, noise, cut), None
        else:
            positions_BL, mask = cache.extend(length)
            around = Around(self.rotation(length, positions_BL), mask, noise)
        x_BLD = self.enter(tokens_BL, around, positions_BL)
        for layer, block in enumerate(self.blocks):
            x_BLD = self.through(block, x_BLD, around) if cache is None else block(x_BLD, around, cache.layer(layer))
        return self.leave(x_BLD)

    def around(self, length: int, documents_BL: Tensor | None, noise: Noise | None, cut: Cut | None = None) -> Around:
        """What blocks are given beside x, for `length` positions."""
        if cut is None:
            return Around(self.rotation(length, None), document_mask(documents_BL, None), noise)
        return Around(self.rotation(length, cut.positions_L), document_mask(documents_BL, cut.positions_L), noise, cut)

    def enter(self, tokens_BL: Tensor, around: Around, positions_BL: Tensor | None = None) -> Tensor:
        """x_BLD, the residual stream before the first block."""
        x_BLD = self.embed(tokens_BL)
        if self.positions is not None:
            positions_BL = positions_BL if around.cut is None else around.cut.stream_S
            x_BLD = x_BLD + (self.positions.weight[: x_BLD.shape[1]] if positions_BL is None else self.positions(positions_BL))
        return cast(Tensor, self.dropout(x_BLD, around.noise))

    def leave(self, x_BLD: Tensor) -> Tensor:
        """logits_BLV of what the last block returned."""
        return cast(Tensor, self.head(self.norm(x_BLD)))

    def new_cache(self, rows: int, positions: int, padding: list[int] | None = None) -> Cache:
        """An empty memory for generating `rows` texts at once, of up to `positions` tokens each, `padding` before them included."""
        like = cast(Tensor, self.norm.weight)
        return Cache(self.model, rows, positions, padding, dtype=_compute_dtype(like), device=like.device)

    def rotation(self, length: int, positions: Tensor | None) -> Rotation | None:
        """Angles of these positions, of the first `length` when None; none in families without."""
        return None if self.rotary is None else self.rotary(length, positions)


def compile_blocks(module: nn.Module) -> None:
    """torch.compile each block in place; blocks of equal shapes share one program. A model without `blocks` is compiled whole.

    Mixtures of experts are left out: how many tokens an expert gets is a number that no program can be made for. So are exchanges
    between ranks.
    """
    for mixture in mixtures(module):
        mixture.forward = torch.compiler.disable(mixture.forward)  # type: ignore[method-assign]
    for mix in (part for part in module.modules() if isinstance(part, Mix) and part.exchange is not None):
        mix.exchange = torch.compiler.disable(mix.exchange)
    for block in getattr(module, "blocks", [module]):
        block.compile()


class _Rotary(nn.Module):
    """The tables of angles position * theta^(-2i / E), made in fp64 and kept in the model's dtype."""

    def __init__(self, model: spec.Model, sequence: int) -> None:
        super().__init__()
        width = model.head_width
        frequencies = _stretched(model.rope_theta ** (-torch.arange(0, width, 2, dtype=torch.float64) / width), model.rope_scaling)
        angles_LE = torch.arange(sequence, dtype=torch.float64)[:, None] * frequencies
        self.cos: Tensor
        self.sin: Tensor
        self.register_buffer("cos", angles_LE.cos(), persistent=False)
        self.register_buffer("sin", angles_LE.sin(), persistent=False)

    def forward(self, length: int, positions: Tensor | None) -> Rotation:
        """positions: [L] or [B, L]; the first `length` when None."""
        places = slice(length) if positions is None else positions
        dtype = _compute_dtype(self.cos)
        return Rotation(self.cos[places].to(dtype).unsqueeze(-2), self.sin[places].to(dtype).unsqueeze(-2))


def _stretched(frequencies_E: Tensor, scaling: spec.RopeScaling | None) -> Tensor:
    """Radians a position of each pair, slowed where settings say so (Llama Team 2024, "The Llama 3 Herd of Models", 3.4)."""
    if scaling is None:
        return frequencies_E
    slow_E = frequencies_E / scaling.factor
    if scaling.low is None or scaling.high is None or scaling.original is None:
        return slow_E
    turns_E = scaling.original * frequencies_E / (2 * math.pi)
    kept_E = ((turns_E - scaling.low) / (scaling.high - scaling.low)).clamp(0, 1)
    return (1 - kept_E) * slow_E + kept_E * frequencies_E


def _compute_dtype(x: Tensor) -> torch.dtype:
    """What a matmul of `x` is computed in."""
    return torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype


def _initial(model: spec.Model) -> InitialTable:
    """GPT-2's: what writes into the residual stream starts smaller, by the root of how often it is written to."""
    residual = Normal(0.02 / (2 * model.layers) ** 0.5)
    return {
        "*norm*.weight": Constant(1.0),
        "*.bias": Constant(0.0),
        "blocks.*.attention.out.weight": residual,
        "blocks.*.mlp.down.weight": residual,
        "blocks.*.mlp.shared.down.weight": residual,
        "blocks.*.mlp.experts.down": residual,
        "*": Normal(0.02),
    }
