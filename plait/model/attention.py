"""Attention, mostly causal: by torch's fused kernel, or written out by chunks of queries.

Written out, a chunk of queries meets only the keys up to its own end, so that half of the square is never computed:

    keys     ───────►
    queries  ██░░░░░░      scores  =  q k^T / sqrt(E), -inf where a key is not seen
       │     ████░░░░      weights =  softmax(scores)
       ▼     ██████░░      mixed   =  dropout(weights) v
             ████████

Where it is not causal a chunk meets all keys. It serves where torch's kernel does not: with dropout, whose mask is the design's hash of
(head, query, key); and on CPUs, where it is 1.5 to 3 times as fast in bf16, and from 256 positions on up to 1.4 times in fp32, as long as
the weights, which it keeps, stay small. Query heads that share a key head are stacked along the queries, so that keys and values are
never repeated.
Shapes: B samples, H = G x R query heads, G key heads, L positions, E width of a head; N = B x G.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from plait.model.cut import Cut
from plait.model.noise import Dropout, Noise


class ScoreBias(Protocol):
    """What is added to the scores of whole samples. weight: the parameter that it is made of."""

    weight: Tensor

    def of(self, share: tuple[int, int], dtype: torch.dtype) -> Tensor:
        """[h, queries, keys], of a share of the heads: (which, of how many)."""
        ...

    def part(self, queries_L: Tensor, keys_K: Tensor) -> ScoreBias:
        """That of some queries and some keys."""
        ...

    def gradient(self, share: tuple[int, int], d_hLK: Tensor) -> Tensor:
        """Of the weight, given that of what `of` returned."""
        ...


Exchange = Callable[[Tensor, Tensor, Tensor, Tensor | None, Dropout, Noise | None, Cut, bool, ScoreBias | None], Tensor]
"""(q_BHLE, k_BGLE, v_BGLE, mask, dropout, noise, cut, causal, bias) -> mixed_BHLE, of the cut's positions; mask [B, 1, L, length] or
None."""

CHUNK = 64  # queries at once on a CPU; fewer leave the matmuls too small
LONG = 256  # positions from which it is the faster on a CPU in fp32 and fp64; in bf16 it always is
KEPT_BYTES = 2**26  # weights of one layer above which a CPU, too, takes torch's kernel, which keeps none


class Mix(nn.Module):
    """Where positions meet: attention without its parameters. `exchange` stands in for it where ranks share a sample."""

    def __init__(self, dropout: Dropout, causal: bool = True) -> None:
        super().__init__()
        self.dropout = dropout
        self.causal = causal
        self.exchange: Exchange | None = None

    def forward(
        self,
        q_BHLE: Tensor,
        k_BGLE: Tensor,
        v_BGLE: Tensor,
        mask: Tensor | None,
        noise: Noise | None,
        cut: Cut | None = None,
        bias: ScoreBias | None = None,
    ) -> Tensor:
        """As `attend`; with a cut, of its positions."""
        if self.exchange is not None and cut is not None:
            return self.exchange(q_BHLE, k_BGLE, v_BGLE, mask, self.dropout, noise, cut, self.causal, bias)
        added = None if bias is None else bias.of((0, 1) if cut is None else cut.head_share, q_BHLE.dtype)
        return attend(q_BHLE, k_BGLE, v_BGLE, mask, self.dropout, noise, self.causal, added)


def attend(
    q_BHLE: Tensor,
    k_BGLE: Tensor,
    v_BGLE: Tensor,
    mask: Tensor | None,
    dropout: Dropout,
    noise: Noise | None,
    causal: bool = True,
    bias_HLK: Tensor | None = None,
) -> Tensor:
    """Returns mixed values, [B, H, L, E].

    mask: bool, [B, 1, L, keys], true where a query sees a key; all, or those before it, when None. causal: no query sees behind its place,
    whatever the mask says besides. bias_HLK: added to scores.
    """
    keep = _keep(q_BHLE, k_BGLE.shape[2], dropout, noise) if noise is not None and dropout.rate > 0 else None
    if keep is None and bias_HLK is not None and not torch.is_grad_enabled():
        return _biased(q_BHLE, k_BGLE, v_BGLE, mask, causal, bias_HLK)
    if keep is None and bias_HLK is None and not _better_written_out(q_BHLE, k_BGLE):
        shared = q_BHLE.shape[1] != k_BGLE.shape[1]
        return functional.scaled_dot_product_attention(
            q_BHLE, k_BGLE, v_BGLE, attn_mask=mask, is_causal=causal and mask is None, enable_gqa=shared
        )
    return cast(Tensor, _WrittenOut.apply(q_BHLE, k_BGLE, v_BGLE, mask, keep, causal, bias_HLK))


def _biased(q_BHLE: Tensor, k_BHKE: Tensor, v_BHKE: Tensor, mask: Tensor | None, causal: bool, bias_HLK: Tensor) -> Tensor:
    """By torch's kernel, which takes a bias in place of a mask."""
    if mask is None and causal:
        mask = causal_mask(bias_HLK.shape[1], bias_HLK.device)
    added = bias_HLK if mask is None else torch.where(mask, bias_HLK, -math.inf)
    return functional.scaled_dot_product_attention(q_BHLE, k_BHKE, v_BHKE, attn_mask=added)


def causal_mask(length: int, device: torch.device) -> Tensor:
    """[L, L] bool: a query sees the keys up to its own position."""
    return torch.ones(length, length, dtype=torch.bool, device=device).tril()


def _better_written_out(q_BHLE: Tensor, k_BGLE: Tensor) -> bool:
    B, H, L, _ = q_BHLE.shape
    if q_BHLE.device.type != "cpu" or not torch.is_grad_enabled() or k_BGLE.shape[2] != L:
        return False
    small = B * H * L * L // 2 * q_BHLE.element_size() <= KEPT_BYTES
    return small and (L >= LONG or q_BHLE.dtype == torch.bfloat16)


def _keep(q_BHLE: Tensor, keys: int, dropout: Dropout, noise: Noise) -> Keep:
    heads, length = q_BHLE.shape[1:3]
    first = 0 if noise.cut is None else noise.cut.head_share[0] * heads
    queries_L, keys_K = (torch.arange(size, device=q_BHLE.device) for size in (length, keys))
    heads_H = torch.arange(first, first + heads, device=q_BHLE.device)
    return Keep(dropout, noise, heads_H, queries_L, keys_K, length if noise.cut is None else noise.cut.length)


class Keep:
    """The elements of the weights that dropout keeps; an element's row is (head, query), its column the key.

    heads_H, queries_L, keys_K: global numbers of what a rank computes. length: positions of a whole sample.
    """

    def __init__(self, dropout: Dropout, noise: Noise, heads_H: Tensor, queries_L: Tensor, keys_K: Tensor, length: int) -> None:
        self._dropout, self._noise = dropout, noise
        self._rows_HL = heads_H[:, None] * length + queries_L
        self._columns_K = keys_K.to(torch.int32)
        self.scale = 1.0 / (1.0 - dropout.rate)

    def chunk(self, shape: torch.Size, first: int) -> Tensor:
        """The mask of weights of `shape` [N, R, C, K], bool: of the queries from `first` on, and the first K keys."""
        rows_HC = self._rows_HL[:, first : first + shape[2]]
        return self._dropout.keep(self._noise, rows_HC.flatten(), self._columns_K[: shape[3]]).view(shape)


class _WrittenOut(torch.autograd.Function):
    """Keeps the weights of each chunk, and with dropout their mask, for the gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        q_BHLE: Tensor,
        k_BGLE: Tensor,
        v_BGLE: Tensor,
        mask: Tensor | None,
        keep: Keep | None,
        causal: bool,
        bias_HLK: Tensor | None,
    ) -> Tensor:
        B, H, L, E = q_BHLE.shape
        G, K = k_BGLE.shape[1:3]
        q_NRLE = (q_BHLE * (1.0 / math.sqrt(E))).reshape(B * G, H // G, L, E)
        k_NLE, v_NLE = k_BGLE.reshape(B * G, K, E), v_BGLE.reshape(B * G, K, E)
        mixed_NRLE = torch.empty_like(q_NRLE)
        kept: list[Tensor] = []
        for first, end, seen in _chunks(L, K, q_BHLE.device, causal):
            scores = stacked(q_NRLE, first, end) @ k_NLE[:, :seen].transpose(1, 2)
            scores_NRCK = scores.view(B * G, H // G, end - first, seen)
            if bias_HLK is not None:
                scores_NRCK.view(B, H, end - first, seen).add_(bias_HLK[:, first:end, :seen])
            if causal or mask is not None:
                hide(scores_NRCK, first, mask, G)
            weights = scores_NRCK.softmax(-1, dtype=scores.dtype)
            kept.append(weights)
            if keep is not None:
                stays = keep.chunk(weights.shape, first)
                kept.append(stays)
                weights = drop(weights, stays, keep.scale)
            mixed = weights.view(scores.shape) @ v_NLE[:, :seen]
            mixed_NRLE[:, :, first:end] = mixed.view(B * G, H // G, end - first, E)
        ctx.save_for_backward(q_NRLE, k_NLE, v_NLE, *kept)
        ctx.bias_shape = None if bias_HLK is None else bias_HLK.shape
        ctx.shape, ctx.causal, ctx.scale = q_BHLE.shape, causal, None if keep is None else keep.scale
        return mixed_NRLE.view(q_BHLE.shape)

    @staticmethod
    def backward(ctx: Any, gradient_BHLE: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None, Tensor | None]:
        q_NRLE, k_NLE, v_NLE, *kept = ctx.saved_tensors
        B, H, L, E = ctx.shape
        gradient_NRLE = gradient_BHLE.reshape(q_NRLE.shape)
        dq_NRLE, dk_NLE, dv_NLE = torch.empty_like(q_NRLE), sums(k_NLE), sums(v_NLE)
        d_bias_HLK = None if ctx.bias_shape is None else sums(q_NRLE.new_empty(ctx.bias_shape))
        remembered = iter(kept)
        for first, end, seen in _chunks(L, k_NLE.shape[1], q_NRLE.device, ctx.causal):
            weights_NRCK, stays = next(remembered), None if ctx.scale is None else next(remembered)
            gradient = stacked(gradient_NRLE, first, end)
            flat = (len(gradient), gradient.shape[1], seen)
            dropped = weights_NRCK if stays is None else drop(weights_NRCK, stays, ctx.scale)
            dv_NLE[:, :seen] += dropped.view(flat).transpose(1, 2) @ gradient
            d_weights = (gradient @ v_NLE[:, :seen].transpose(1, 2)).view(weights_NRCK.shape)
            d_weights = d_weights if stays is None else drop(d_weights, stays, ctx.scale)
            d_scores = torch.ops.aten._softmax_backward_data(d_weights, weights_NRCK, -1, d_weights.dtype).view(flat)
            if d_bias_HLK is not None:
                d_bias_HLK[:, first:end, :seen] += d_scores.view(B, H, end - first, seen).sum(0)
            dq_NRLE[:, :, first:end] = (d_scores @ k_NLE[:, :seen]).view(*q_NRLE.shape[:2], end - first, E)
            dk_NLE[:, :seen] += d_scores.transpose(1, 2) @ stacked(q_NRLE, first, end)
        dq_NRLE *= 1.0 / math.sqrt(E)
        shape = (B, -1, k_NLE.shape[1], E)
        d_bias_HLK = None if d_bias_HLK is None else d_bias_HLK.to(q_NRLE.dtype)
        dk_BGLE, dv_BGLE = dk_NLE.to(k_NLE.dtype).view(shape), dv_NLE.to(v_NLE.dtype).view(shape)
        return dq_NRLE.view(ctx.shape), dk_BGLE, dv_BGLE, None, None, None, d_bias_HLK


def _chunks(length: int, keys: int, device: torch.device, causal: bool) -> Iterator[tuple[int, int, int]]:
    """(first, end) of the queries of each chunk, and how many of the keys they meet."""
    size = CHUNK if device.type == "cpu" else length
    for first in range(0, length, size):
        end = min(first + size, length)
        yield first, end, end if causal else keys


def stacked(x_NRLE: Tensor, first: int, end: int) -> Tensor:
    """Positions [first, end) of the heads that share a key head, one behind the other: [N, R x C, E]."""
    return x_NRLE[:, :, first:end].reshape(len(x_NRLE), -1, x_NRLE.shape[-1])


def hide(scores_NRCK: Tensor, first: int, mask: Tensor | None, groups: int) -> Tensor:
    """Minus infinity, in place, where a query, from `first` on, does not see one of the first K keys; causal without a mask."""
    queries, keys = scores_NRCK.shape[2:]
    if mask is None:
        later_CC = ~causal_mask(queries, scores_NRCK.device)
        scores_NRCK[..., first:].masked_fill_(later_CC, -math.inf)
    else:
        hidden_B1CK = ~mask[:, :, first : first + queries, :keys]
        scores_NRCK.masked_fill_(hidden_B1CK.repeat_interleave(groups, 0), -math.inf)
    return scores_NRCK


def drop(x: Tensor, stays: Tensor, scale: float) -> Tensor:
    return (x * stays).mul_(scale)


def sums(x: Tensor) -> Tensor:
    """Where chunks are summed: never in less than fp32."""
    return torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32))
