"""Causal attention: by torch's fused kernel, or written out by chunks of queries.

Written out, a chunk of queries meets only the keys up to its own end, so that half of the square is never computed:

    keys     ───────►
    queries  ██░░░░░░      scores  =  q k^T / sqrt(E), -inf where a key is not seen
       │     ████░░░░      weights =  softmax(scores)
       ▼     ██████░░      mixed   =  dropout(weights) v
             ████████

It serves where torch's kernel does not: with dropout, whose mask is the design's hash of (head, query, key); and on CPUs, where
it is 1.5 to 3 times as fast in bf16, and from 256 positions on up to 1.4 times in fp32, as long as the weights, which it keeps,
stay small. Query heads that share a key head are stacked along the queries, so that keys and values are never repeated.
Shapes: B samples, H = G x R query heads, G key heads, L positions, E width of a head; N = B x G.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional

from plait.model.noise import Dropout, Noise

CHUNK = 64  # queries at once on a CPU; fewer leave the matmuls too small
LONG = 256  # positions from which it is the faster on a CPU in fp32 and fp64; in bf16 it always is
KEPT_BYTES = 2**26  # weights of one layer above which a CPU, too, takes torch's kernel, which keeps none


def attend(q_BHLE: Tensor, k_BGLE: Tensor, v_BGLE: Tensor, mask: Tensor | None, dropout: Dropout, noise: Noise | None) -> Tensor:
    """Returns mixed values, [B, H, L, E]. mask: bool, [B, 1, L, keys], true where a query sees a key; causal when None."""
    keep = _Keep(dropout, noise) if noise is not None and dropout.rate > 0 else None
    if keep is None and not _better_written_out(q_BHLE, k_BGLE):
        shared = q_BHLE.shape[1] != k_BGLE.shape[1]
        return functional.scaled_dot_product_attention(q_BHLE, k_BGLE, v_BGLE, attn_mask=mask, is_causal=mask is None, enable_gqa=shared)
    return cast(Tensor, _WrittenOut.apply(q_BHLE, k_BGLE, v_BGLE, mask, keep))


def causal_mask(length: int, device: torch.device) -> Tensor:
    """[L, L] bool: a query sees the keys up to its own position."""
    return torch.ones(length, length, dtype=torch.bool, device=device).tril()


def _better_written_out(q_BHLE: Tensor, k_BGLE: Tensor) -> bool:
    B, H, L, _ = q_BHLE.shape
    if q_BHLE.device.type != "cpu" or not torch.is_grad_enabled() or k_BGLE.shape[2] != L:
        return False
    small = B * H * L * L // 2 * q_BHLE.element_size() <= KEPT_BYTES
    return small and (L >= LONG or q_BHLE.dtype == torch.bfloat16)


class _Keep:
    """The elements of the weights that dropout keeps; an element's row is (head, query), its column the key."""

    def __init__(self, dropout: Dropout, noise: Noise) -> None:
        self._dropout, self._noise = dropout, noise
        self.scale = 1.0 / (1.0 - dropout.rate)

    def chunk(self, weights_NRCK: Tensor, heads: int, length: int, first: int) -> Tensor:
        """The mask of the weights of queries [first, first + C) and keys [0, K), bool."""
        C, K = weights_NRCK.shape[2:]
        device = weights_NRCK.device
        rows_HC = torch.arange(heads, device=device)[:, None] * length + torch.arange(first, first + C, device=device)
        columns_K = torch.arange(K, dtype=torch.int32, device=device)
        return self._dropout.keep(self._noise, rows_HC.flatten(), columns_K).view(weights_NRCK.shape)


class _WrittenOut(torch.autograd.Function):
    """Keeps the weights of each chunk, and with dropout their mask, for the gradient."""

    @staticmethod
    def forward(ctx: Any, q_BHLE: Tensor, k_BGLE: Tensor, v_BGLE: Tensor, mask: Tensor | None, keep: _Keep | None) -> Tensor:
        B, H, L, E = q_BHLE.shape
        G = k_BGLE.shape[1]
        q_NRLE = (q_BHLE * (1.0 / math.sqrt(E))).reshape(B * G, H // G, L, E)
        k_NLE, v_NLE = k_BGLE.reshape(B * G, L, E), v_BGLE.reshape(B * G, L, E)
        mixed_NRLE = torch.empty_like(q_NRLE)
        kept: list[Tensor] = []
        for first, end in _chunks(L, q_BHLE.device):
            scores = _stacked(q_NRLE, first, end) @ k_NLE[:, :end].transpose(1, 2)
            scores_NRCK = scores.view(B * G, H // G, end - first, end)
            weights = _hide(scores_NRCK, mask, first, end, G).softmax(-1, dtype=scores.dtype)
            kept.append(weights)
            if keep is not None:
                stays = keep.chunk(weights, H, L, first)
                kept.append(stays)
                weights = _drop(weights, stays, keep.scale)
            mixed = weights.view(scores.shape) @ v_NLE[:, :end]
            mixed_NRLE[:, :, first:end] = mixed.view(B * G, H // G, end - first, E)
        ctx.save_for_backward(q_NRLE, k_NLE, v_NLE, *kept)
        ctx.shape, ctx.scale = q_BHLE.shape, None if keep is None else keep.scale
        return mixed_NRLE.view(q_BHLE.shape)

    @staticmethod
    def backward(ctx: Any, gradient_BHLE: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        q_NRLE, k_NLE, v_NLE, *kept = ctx.saved_tensors
        B, _, L, E = ctx.shape
        gradient_NRLE = gradient_BHLE.reshape(q_NRLE.shape)
        dq_NRLE, dk_NLE, dv_NLE = torch.empty_like(q_NRLE), _sums(k_NLE), _sums(v_NLE)
        remembered = iter(kept)
        for first, end in _chunks(L, q_NRLE.device):
            weights_NRCK, stays = next(remembered), None if ctx.scale is None else next(remembered)
            gradient = _stacked(gradient_NRLE, first, end)
            flat = (len(gradient), gradient.shape[1], end)
            dropped = weights_NRCK if stays is None else _drop(weights_NRCK, stays, ctx.scale)
            dv_NLE[:, :end] += dropped.view(flat).transpose(1, 2) @ gradient
            d_weights = (gradient @ v_NLE[:, :end].transpose(1, 2)).view(weights_NRCK.shape)
            d_weights = d_weights if stays is None else _drop(d_weights, stays, ctx.scale)
            d_scores = torch.ops.aten._softmax_backward_data(d_weights, weights_NRCK, -1, d_weights.dtype).view(flat)
            dq_NRLE[:, :, first:end] = (d_scores @ k_NLE[:, :end]).view(*q_NRLE.shape[:2], end - first, E)
            dk_NLE[:, :end] += d_scores.transpose(1, 2) @ _stacked(q_NRLE, first, end)
        dq_NRLE *= 1.0 / math.sqrt(E)
        shape = (B, -1, L, E)
        return dq_NRLE.view(ctx.shape), dk_NLE.to(k_NLE.dtype).view(shape), dv_NLE.to(v_NLE.dtype).view(shape), None, None


def _chunks(length: int, device: torch.device) -> Iterator[tuple[int, int]]:
    size = CHUNK if device.type == "cpu" else length
    return ((first, min(first + size, length)) for first in range(0, length, size))


def _stacked(x_NRLE: Tensor, first: int, end: int) -> Tensor:
    """Positions [first, end) of the heads that share a key head, one behind the other: [N, R x C, E]."""
    return x_NRLE[:, :, first:end].reshape(len(x_NRLE), -1, x_NRLE.shape[-1])


def _hide(scores_NRCK: Tensor, mask: Tensor | None, first: int, end: int, groups: int) -> Tensor:
    """Minus infinity, in place, where a key is not seen."""
    if mask is None:
        later_CC = ~causal_mask(end - first, scores_NRCK.device)
        scores_NRCK[..., first:end].masked_fill_(later_CC, -math.inf)
    else:
        scores_NRCK.masked_fill_(~mask[:, :, first:end, :end].repeat_interleave(groups, 0), -math.inf)
    return scores_NRCK


def _drop(x: Tensor, stays: Tensor, scale: float) -> Tensor:
    return (x * stays).mul_(scale)


def _sums(x: Tensor) -> Tensor:
    """Where chunks are summed: never in less than fp32."""
    return torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32))
