"""The encoder, BERT's family: each position sees all of its sample, and tells the tokens that were masked.

    tokens ─ embed + positions + segments ─ norm ─ dropout ─ block ─ ... ─ block ─┬─ transform ─ gelu ─ norm ─ head ─► logits
                                                                                 └─ states, for whoever has another head

A block norms behind each residual sum: x = norm1(x + attention(x)), x = norm2(x + mlp(x)). The head is the embedding again, with a bias for
each entry. Shapes: B samples, L positions, D width. (Devlin et al. 2019.)
"""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn
from torch.nn import functional

from plait import spec
from plait.model.blocks import Around, Block, Embedding, Linear, norm
from plait.model.cut import Cut
from plait.model.init import Constant, Normal
from plait.model.layered import Layered, document_mask, sharding, without_gradient
from plait.model.noise import Dropout, Noise

SEGMENTS = 2
"""Kinds of text that a sample may have: a first and a second sentence."""


class Encoder(Layered):
    """Tokens to logits of what stands at each place itself.

    context, sharding, initial, without_gradient: as a decoder's.
    """

    def __init__(self, model: spec.Model, vocabulary: int, sequence: int) -> None:
        super().__init__()
        self.model = model
        self.context = sequence
        self.sharding = {**sharding(model), "head.bias": "vocabulary", "segments.weight": "replicated", "transform.*": "replicated"}
        self.initial = {"*norm*.weight": Constant(1.0), "*.bias": Constant(0.0), "*": Normal(0.02)}
        self.without_gradient = without_gradient(model)
        self.embed = Embedding(vocabulary, model.width)
        self.positions = Embedding(sequence, model.width)
        self.segments = Embedding(SEGMENTS, model.width)
        self.embed_norm = norm(model)
        self.dropout = Dropout(model.dropout, "embed.dropout")
        self.blocks = nn.ModuleList(Block(model, layer, causal=False) for layer in range(model.layers))
        self.transform = Linear(model.width, model.width)
        self.norm = norm(model)
        self.head = Linear(model.width, vocabulary)
        if model.tied_head:
            self.head.weight = self.embed.weight

    def forward(
        self,
        tokens_BL: Tensor,
        documents_BL: Tensor | None = None,
        noise: Noise | None = None,
        cut: Cut | None = None,
        segments_BL: Tensor | None = None,
    ) -> Tensor:
        """logits_BLV, as a decoder's. documents_BL: positions see those of their own document alone; padding is one of its own.

        Raises ValueError: more positions than the context.
        """
        return self.leave(self.states(tokens_BL, documents_BL, noise, cut, segments_BL))

    def states(
        self,
        tokens_BL: Tensor,
        documents_BL: Tensor | None = None,
        noise: Noise | None = None,
        cut: Cut | None = None,
        segments_BL: Tensor | None = None,
    ) -> Tensor:
        """x_BLD behind the last block. segments_BL: 0 or 1 at each position; 0 where left out."""
        self.check_length(tokens_BL.shape[1])
        around = self.around(tokens_BL.shape[1], documents_BL, noise, cut)
        return self.through_all(self.enter(tokens_BL, around, segments_BL), around)

    def around(self, length: int, documents_BL: Tensor | None, noise: Noise | None, cut: Cut | None = None) -> Around:
        """What blocks are given beside x."""
        return Around(None, document_mask(documents_BL, None if cut is None else cut.positions_L, causal=False), noise, cut)

    def enter(self, tokens_BL: Tensor, around: Around, segments_BL: Tensor | None = None) -> Tensor:
        """x_BLD before the first block."""
        x_BLD = self.embed(tokens_BL)
        places = self.positions.weight[: x_BLD.shape[1]] if around.cut is None else self.positions(around.cut.stream_S)
        x_BLD = x_BLD + places + (self.segments.weight[0] if segments_BL is None else self.segments(segments_BL))
        return cast(Tensor, self.dropout(self.embed_norm(x_BLD), around.noise))

    def leave(self, x_BLD: Tensor) -> Tensor:
        """logits_BLV of what the last block returned."""
        return cast(Tensor, self.head(self.norm(functional.gelu(self.transform(x_BLD)))))
