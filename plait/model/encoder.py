"""The encoder, BERT's family: each position sees all of its sample, and tells the tokens that were masked.

    tokens ─ embed + positions + segments ─ norm ─ dropout ─ block ─ ... ─ block ─ transform ─ gelu ─ norm ─ head ─► logits

A block norms behind each residual sum: x = norm1(x + attention(x)), x = norm2(x + mlp(x)). The head is the embedding again, with a bias for
each entry. (Devlin et al. 2019.)

A task has a head of its own in place of the last three:

    ... block ─ the first position, or the mean ─ pooler ─ tanh ─ dropout ─ task head ─► outputs    of a sample
    ... block ─────────────────────────────────────────────────── dropout ─ task head ─► outputs    of each position (answers: no dropout)

Shapes: B samples, L positions, D width, R rows that outputs stand in: one of a sample, all positions elsewhere, O outputs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from plait import spec
from plait.model.blocks import PLAIN, Around, Block, Embedding, Linear, norm
from plait.model.cut import Cut
from plait.model.init import Constant, Normal
from plait.model.layered import Layered, document_mask, sharding, without_gradient
from plait.model.noise import Dropout, Noise

SEGMENTS = 2
"""Kinds of text that a sample may have: a first and a second sentence."""


class Encoder(Layered):
    """Tokens to logits of what stands at each place itself; with a head of a task, to what that one tells.

    context, sharding, initial, without_gradient: as a decoder's.
    """

    def __init__(self, model: spec.Model, vocabulary: int, sequence: int, head: spec.Head | None = None) -> None:
        super().__init__()
        self.model = model
        self.context = sequence
        self.sharding = {
            **sharding(model),
            "head.bias": "vocabulary",
            "task_head.*": "vocabulary",
            "segments.weight": "replicated",
            "transform.*": "replicated",
            "pooler.*": "replicated",
        }
        self.initial = {"*norm*.weight": Constant(1.0), "*.bias": Constant(0.0), "*": Normal(0.02)}
        self.without_gradient = without_gradient(model)
        self.leaves_around = head is not None
        self.embed = Embedding(vocabulary, model.width)
        self.positions = Embedding(sequence, model.width)
        self.segments = Embedding(SEGMENTS, model.width)
        self.embed_norm = norm(model)
        self.dropout = Dropout(model.dropout, "embed.dropout")
        self.blocks = nn.ModuleList(Block(model, layer, causal=False) for layer in range(model.layers))
        if head is None:
            self._tell_tokens(vocabulary)
            return
        self.mean = Mean() if head.pooled and model.pooling == "mean" else None
        self.pooler = Linear(model.width, model.width) if head.pooled else None
        self.head_dropout = Dropout(0.0 if head.kind == "answer" else model.dropout, "task_head.dropout")
        self.task_head = Linear(model.width, head.outputs)

    def _tell_tokens(self, vocabulary: int) -> None:
        self.transform = Linear(self.model.width, self.model.width)
        self.norm = norm(self.model)
        self.head = Linear(self.model.width, vocabulary)
        if self.model.tied_head:
            self.head.weight = self.embed.weight

    def forward(
        self,
        tokens_BL: Tensor,
        documents_BL: Tensor | None = None,
        noise: Noise | None = None,
        cut: Cut | None = None,
        segments_BL: Tensor | None = None,
    ) -> Tensor:
        """logits_BLV, as a decoder's; outputs_BRO of a task's head. documents_BL: positions see those of their own document alone; padding
        is one of its own. segments_BL: 0 or 1 at each position; 0 where left out.

        Raises ValueError: more positions than the context.
        """
        self.check_length(tokens_BL.shape[1])
        around = self.around(tokens_BL.shape[1], documents_BL, noise, cut, segments_BL)
        return self.leave(self.through_all(self.enter(tokens_BL, around), around), around)

    def around(
        self, length: int, documents_BL: Tensor | None, noise: Noise | None, cut: Cut | None = None, segments_BL: Tensor | None = None
    ) -> Around:
        """What blocks are given beside x, and the model's ends. documents_BL, segments_BL: of whole samples."""
        mask = document_mask(documents_BL, None if cut is None else cut.positions_L, causal=False)
        here = slice(None) if cut is None else cut.stream_S
        segments = None if segments_BL is None else segments_BL[:, here]
        padded = None if documents_BL is None else documents_BL[:, here] < 0
        return Around(None, mask, noise, cut, None, segments, padded)

    def enter(self, tokens_BL: Tensor, around: Around) -> Tensor:
        """x_BLD before the first block."""
        x_BLD = self.embed(tokens_BL)
        places = self.positions.weight[: x_BLD.shape[1]] if around.cut is None else self.positions(around.cut.stream_S)
        x_BLD = x_BLD + places + (self.segments.weight[0] if around.segments_BL is None else self.segments(around.segments_BL))
        return cast(Tensor, self.dropout(self.embed_norm(x_BLD), around.noise))

    def leave(self, x_BLD: Tensor, around: Around = PLAIN) -> Tensor:
        """logits_BLV, or outputs_BRO, of what the last block returned."""
        if not self.leaves_around:
            return cast(Tensor, self.head(self.norm(functional.gelu(self.transform(x_BLD)))))
        noise = around.noise
        if self.pooler is not None:
            x_BLD, noise = torch.tanh(self.pooler(self._pooled(x_BLD, around))), _of_sample(noise)
        return cast(Tensor, self.task_head(self.head_dropout(x_BLD, noise)))

    def _pooled(self, x_BLD: Tensor, around: Around) -> Tensor:
        """x_B1D; of samples whose first place is on another rank, something that nobody looks at."""
        return x_BLD[:, :1] if self.mean is None else self.mean(x_BLD, around.padded_BL)


class Mean(nn.Module):
    """The mean of a sample's positions. total: what sums over those who share a sample, where ranks do."""

    def __init__(self) -> None:
        super().__init__()
        self.total: Callable[[Tensor], Tensor] | None = None

    def forward(self, x_BLD: Tensor, padded_BL: Tensor | None) -> Tensor:
        """x_B1D, of positions that are no padding."""
        counted_BL1 = (torch.ones_like(x_BLD[..., 0]) if padded_BL is None else (~padded_BL).to(x_BLD.dtype)).unsqueeze(-1)
        sums_B1 = torch.cat([(x_BLD * counted_BL1).sum(1, keepdim=True), counted_BL1.sum(1, keepdim=True)], -1)
        sums_B1 = sums_B1 if self.total is None else self.total(sums_B1)
        return sums_B1[..., :-1] / sums_B1[..., -1:]


def _of_sample(noise: Noise | None) -> Noise | None:
    """The same noise for what stands once in each sample, whoever computes it."""
    if noise is None or noise.cut is None:
        return noise
    noise, only = copy.copy(noise), torch.zeros(1, dtype=torch.int64, device=noise.key_B.device)
    noise.cut = Cut(1, only, only)
    return noise
