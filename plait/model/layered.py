"""What all models of plait's own are: blocks, one after the other, that pass on the residual stream.

A forward pass has four parts, of which a pipeline's stages compute some, `around`, `enter`, `through` for each block, and `leave`: only x
travels between them.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from plait import spec
from plait.model.init import InitialTable
from plait.model.sharding import ShardingTable


class Layered(nn.Module):
    """context: most positions that it computes. sharding, initial: tables read by whoever cuts it or gives it values.
    without_gradient: rows of parameters whose true gradient is zero, by pattern: what adds alike to the scores of all keys changes no
    weight. leaves_around: `leave` is given what blocks are given, behind x."""

    model: spec.Model
    context: int
    blocks: nn.ModuleList
    sharding: ShardingTable
    initial: InitialTable
    without_gradient: dict[str, tuple[int, int]]
    leaves_around = False

    def check_length(self, length: int) -> None:
        """Raises ValueError: more positions than the context."""
        if length > self.context:
            raise ValueError(f"{length} positions are more than the model's context of {self.context}")

    def through(self, block: nn.Module, x_BLD: Tensor, around: Any) -> Tensor:
        """One block, recomputed in backward where the settings say so."""
        recompute = getattr(block, "recompute", "none")
        if recompute == "none" or not torch.is_grad_enabled():
            return cast(Tensor, block(x_BLD, around))
        # The noise is a hash: recomputing draws the same, and no generator's state needs keeping.
        keeping = _KEEPING if recompute == "selective" else {}
        return cast(Tensor, checkpoint(block, x_BLD, around, use_reentrant=False, preserve_rng_state=False, **keeping))

    def through_all(self, x_BLD: Tensor, around: Any, blocks: Iterable[nn.Module] | None = None) -> Tensor:
        """These blocks, one after the other; all when left out."""
        for block in self.blocks if blocks is None else blocks:
            x_BLD = self.through(block, x_BLD, around)
        return x_BLD


def document_mask(documents_BL: Tensor | None, queries_Q: Tensor | None, causal: bool = True) -> Tensor | None:
    """[B, 1, Q, L] of the queries at these positions, all when None: what stands in the same document, and before it where causal; None
    where there are no documents."""
    if documents_BL is None:
        return None
    positions_L = torch.arange(documents_BL.shape[1], device=documents_BL.device)
    queries_Q = positions_L if queries_Q is None else queries_Q
    same_BQL = documents_BL[:, queries_Q, None] == documents_BL[:, None, :]
    return (same_BQL & (positions_L <= queries_Q[:, None]) if causal else same_BQL)[:, None]


def sharding(model: spec.Model) -> ShardingTable:
    """How blocks, embeddings and a head over the vocabulary may be cut."""
    heads, kv_heads = model.heads, model.key_value_heads
    return {
        "embed.weight": "vocabulary",
        "head.weight": "vocabulary",
        "positions.weight": "replicated",
        "blocks.*.attention.qkv.*": f"column({heads},{kv_heads},{kv_heads})",
        "blocks.*.attention.out.weight": "row",
        "blocks.*.mlp.gate_up.weight": "column(1,1)",
        "blocks.*.mlp.up.*": "column",
        "blocks.*.mlp.down.weight": "row",
        "blocks.*.mlp.router.weight": "replicated",
        "blocks.*.mlp.experts.*": "expert",
        "blocks.*.mlp.shared.gate_up.weight": "column(1,1)",
        "blocks.*.mlp.shared.down.weight": "row",
        "blocks.*.bias": "replicated",
        "*norm*.*": "replicated",
    }


def without_gradient(model: spec.Model) -> dict[str, tuple[int, int]]:
    """Of a family without angles: the biases of keys, unless they are normed."""
    if model.rotates or model.qk_norm or not model.biased_qkv:
        return {}
    first = model.heads * model.head_width
    return {"blocks.*.attention.qkv.bias": (first, first + model.key_value_heads * model.head_width)}


def _keep_products(_: Any, operation: Any, *arguments: Any, **keywords: Any) -> CheckpointPolicy:
    kept = operation in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten._grouped_mm.default)
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


_KEEPING: dict[str, Any] = {"context_fn": partial(create_selective_checkpoint_contexts, _keep_products)}
