"""Attention to a part of the keys, in a form in which parts add up to the whole.

    lse    =  log sum exp(q k^T / sqrt(E))              how much a part weighs, for each query
    mixed  =  dropout(exp(q k^T / sqrt(E) - lse)) v

    whole:    lse = log(exp(lse_1) + exp(lse_2))        mixed = exp(lse_1 - lse) mixed_1 + exp(lse_2 - lse) mixed_2

The weights of a part within the whole are exp(scores - lse) with the whole's lse: given that and the whole's mixed values, a part's
gradients need no other part, and no weights are kept (Dao et al. 2022). torch's flash kernels compute a part on CPUs, and on GPUs in
half precision; written out, by chunks of queries, it serves where they do not: with dropout, and with masks or fp32 on GPUs.
Shapes: B samples, H = G x R query heads, G key heads, L queries, K keys, E width of a head; N = B x G.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from plait.model.attention import CHUNK, Keep, drop, hide, stacked, sums

SCORES = 2**26  # of a chunk on a GPU


class Sight(NamedTuple):
    """What queries see of keys: those up to their own place, where `causal`; those of a mask [B, 1, L, K]; or all. keep: dropout's.

    bias_HLK: added to scores. d_bias_HLK: what its gradient is added to.
    """

    causal: bool = False
    mask: Tensor | None = None
    keep: Keep | None = None
    bias_HLK: Tensor | None = None
    d_bias_HLK: Tensor | None = None


def attend_part(q_BHLE: Tensor, k_BGKE: Tensor, v_BGKE: Tensor, sight: Sight) -> tuple[Tensor, Tensor]:
    """mixed_BHLE, and lse_BHL in at least fp32: minus infinity where a query sees none of these keys."""
    return _kernel(q_BHLE, k_BGKE, sight).attend(q_BHLE, k_BGKE, v_BGKE, sight)


def part_gradients(
    gradient_BHLE: Tensor, q_BHLE: Tensor, k_BGKE: Tensor, v_BGKE: Tensor, mixed_BHLE: Tensor, lse_BHL: Tensor, sight: Sight
) -> tuple[Tensor, Tensor, Tensor]:
    """This part's share of the gradients of q, k and v. mixed_BHLE, lse_BHL: the whole's."""
    kernel = _kernel(q_BHLE, k_BGKE, sight)
    return kernel.gradients(gradient_BHLE, q_BHLE, k_BGKE, v_BGKE, mixed_BHLE, lse_BHL, sight)


def merge(mixed_BHLE: Tensor, lse_BHL: Tensor, part_BHLE: Tensor, part_lse_BHL: Tensor) -> None:
    """Add a part, in place; before the first there are zeros, and minus infinity."""
    total_BHL = torch.logaddexp(lse_BHL, part_lse_BHL)
    mixed_BHLE.mul_((lse_BHL - _finite(total_BHL)).exp_()[..., None])
    mixed_BHLE.add_(part_BHLE * (part_lse_BHL - _finite(total_BHL)).exp_()[..., None])
    lse_BHL.copy_(total_BHL)


def _finite(lse: Tensor) -> Tensor:
    """What scores are compared with, also where nothing is seen: their difference must stay minus infinity, not become not a number."""
    return lse.clamp_min(torch.finfo(lse.dtype).min)


class _Kernel(NamedTuple):
    attend: Callable[[Tensor, Tensor, Tensor, Sight], tuple[Tensor, Tensor]]
    gradients: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Sight], tuple[Tensor, Tensor, Tensor]]


def _kernel(q_BHLE: Tensor, k_BGKE: Tensor, sight: Sight) -> _Kernel:
    if sight.keep is not None or sight.bias_HLK is not None:
        return WRITTEN_OUT
    if q_BHLE.device.type == "cpu":
        return FLASH_CPU
    return FLASH_CUDA if sight.mask is None and _flash_serves(q_BHLE, k_BGKE, sight.causal) else WRITTEN_OUT


# torch's kernel on CPUs


def _flash_cpu(q_BHLE: Tensor, k_BGKE: Tensor, v_BGKE: Tensor, sight: Sight) -> tuple[Tensor, Tensor]:
    attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    mixed_BHLE, lse_BHL = attend(q_BHLE, k_BGKE, v_BGKE, 0.0, sight.causal, attn_mask=_added(sight.mask, q_BHLE.dtype))
    if sight.mask is not None:
        lse_BHL.masked_fill_(~sight.mask.any(-1), -math.inf)  # the kernel says 0 there
    return mixed_BHLE, lse_BHL


def _flash_cpu_gradients(
    gradient_BHLE: Tensor, q_BHLE: Tensor, k_BGKE: Tensor, v_BGKE: Tensor, mixed_BHLE: Tensor, lse_BHL: Tensor, sight: Sight
) -> tuple[Tensor, Tensor, Tensor]:
    backward: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    mask, lse_BHL = _added(sight.mask, q_BHLE.dtype), lse_BHL.contiguous()
    dq, dk, dv = backward(gradient_BHLE, q_BHLE, k_BGKE, v_BGKE, mixed_BHLE, lse_BHL, 0.0, sight.causal, attn_mask=mask)
    return dq, dk, dv


def _added(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A mask as the kernel takes it: added to the scores."""
    return None if mask is None else torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, -math.inf)


# torch's kernel on GPUs


def _flash_serves(q_BHLE: Tensor, k_BGKE: Tensor, causal: bool) -> bool:
    asked = torch.backends.cuda.SDPAParams(q_BHLE, k_BGKE, k_BGKE, None, 0.0, causal, True)
    return q_BHLE.shape[-1] % 8 == 0 and torch.backends.cuda.can_use_flash_attention(asked)


def _flash_cuda(q_BHLE: Tensor, k_BGKE: Tensor, v_BGKE: Tensor, sight: Sight) -> tuple[Tensor, Tensor]:
    mixed_BHLE, lse_BHL, *_ = torch.ops.aten._scaled_dot_product_flash_attention(q_BHLE, k_BGKE, v_BGKE, 0.0, sight.causal)
    return mixed_BHLE, lse_BHL


def _flash_cuda_gradients(
    gradient_BHLE: Tensor, q_BHLE: Tensor, k_BGKE: Tensor, v_BGKE: Tensor, mixed_BHLE: Tensor, lse_BHL: Tensor, sight: Sight
) -> tuple[Tensor, Tensor, Tensor]:
    backward: Any = torch.ops.aten._scaled_dot_product_flash_attention_backward
    of_generator = torch.zeros(2, dtype=torch.int64, device=q_BHLE.device)  # the kernel's own dropout, which is not used, has none
    lengths = (None, None, q_BHLE.shape[2], k_BGKE.shape[2])
    given = (gradient_BHLE, q_BHLE, k_BGKE, v_BGKE, mixed_BHLE, lse_BHL.contiguous())
    dq, dk, dv = backward(*given, *lengths, 0.0, sight.causal, of_generator, of_generator)
    return dq, dk, dv


# written out


def _written_out(q_BHLE: Tensor, k_BGKE: Tensor, v_BGKE: Tensor, sight: Sight) -> tuple[Tensor, Tensor]:
    q_NRLE, k_NKE, v_NKE = _grouped(q_BHLE, k_BGKE, v_BGKE)
    mixed_NRLE, lse_NRL = _wide(torch.empty_like(q_NRLE)), _wide(q_NRLE.new_empty(q_NRLE.shape[:3]))
    for first, end, seen in _chunks(q_NRLE, k_NKE, sight):
        scores_NRCK = _scores(q_NRLE, k_NKE, first, end, seen, sight)
        lse_NRC = scores_NRCK.logsumexp(-1)
        weights_NRCK = scores_NRCK.sub_(_finite(lse_NRC)[..., None]).exp_()
        if sight.keep is not None:
            weights_NRCK = drop(weights_NRCK, sight.keep.chunk(weights_NRCK.shape, first), sight.keep.scale)
        mixed = weights_NRCK.to(v_NKE.dtype).flatten(1, 2) @ v_NKE[:, :seen]
        mixed_NRLE[:, :, first:end] = mixed.view(mixed_NRLE[:, :, first:end].shape)
        lse_NRL[:, :, first:end] = lse_NRC
    return mixed_NRLE.view(q_BHLE.shape), lse_NRL.view(q_BHLE.shape[:3])


def _written_out_gradients(
    gradient_BHLE: Tensor, q_BHLE: Tensor, k_BGKE: Tensor, v_BGKE: Tensor, mixed_BHLE: Tensor, lse_BHL: Tensor, sight: Sight
) -> tuple[Tensor, Tensor, Tensor]:
    q_NRLE, k_NKE, v_NKE = _grouped(q_BHLE, k_BGKE, v_BGKE)
    gradient_NRLE, lse_NRL = gradient_BHLE.reshape(q_NRLE.shape), lse_BHL.reshape(q_NRLE.shape[:3])
    inner_NRL = (_wide(gradient_BHLE) * mixed_BHLE).sum(-1).reshape(lse_NRL.shape)
    dq_NRLE, dk_NKE, dv_NKE = torch.empty_like(q_NRLE), sums(k_NKE), sums(v_NKE)
    for first, end, seen in _chunks(q_NRLE, k_NKE, sight):
        weights_NRCK = _scores(q_NRLE, k_NKE, first, end, seen, sight).sub_(lse_NRL[:, :, first:end, None]).exp_()
        gradient = stacked(gradient_NRLE, first, end)
        d_weights_NRCK = _wide(gradient @ v_NKE[:, :seen].transpose(1, 2)).view(weights_NRCK.shape)
        dropped_NRCK = weights_NRCK
        if sight.keep is not None:
            stays = sight.keep.chunk(weights_NRCK.shape, first)
            dropped_NRCK = drop(weights_NRCK, stays, sight.keep.scale)
            d_weights_NRCK = drop(d_weights_NRCK, stays, sight.keep.scale)
        dv_NKE[:, :seen] += dropped_NRCK.to(v_NKE.dtype).flatten(1, 2).transpose(1, 2) @ gradient
        d_scores_NRCK = d_weights_NRCK.sub_(inner_NRL[:, :, first:end, None]).mul_(weights_NRCK)
        if sight.d_bias_HLK is not None:
            sight.d_bias_HLK[:, first:end, :seen] += d_scores_NRCK.view(len(q_BHLE), -1, end - first, seen).sum(0)
        d_scores = d_scores_NRCK.to(q_NRLE.dtype).flatten(1, 2)
        dq_NRLE[:, :, first:end] = (d_scores @ k_NKE[:, :seen]).view(dq_NRLE[:, :, first:end].shape)
        dk_NKE[:, :seen] += d_scores.transpose(1, 2) @ stacked(q_NRLE, first, end)
    dq_NRLE *= 1.0 / math.sqrt(q_BHLE.shape[-1])
    return dq_NRLE.view(q_BHLE.shape), dk_NKE.view(k_BGKE.shape), dv_NKE.view(v_BGKE.shape)


def _grouped(q_BHLE: Tensor, k_BGKE: Tensor, v_BGKE: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scaled queries and their keys and values, by key heads."""
    (B, H, L, E), G = q_BHLE.shape, k_BGKE.shape[1]
    q_NRLE = (q_BHLE * (1.0 / math.sqrt(E))).reshape(B * G, H // G, L, E)
    return q_NRLE, k_BGKE.reshape(B * G, -1, E), v_BGKE.reshape(B * G, -1, E)


def _chunks(q_NRLE: Tensor, k_NKE: Tensor, sight: Sight) -> Iterator[tuple[int, int, int]]:
    """(first, end) of the queries of each chunk, and how many of the keys they meet."""
    (N, R, L, _), K = q_NRLE.shape, k_NKE.shape[1]
    size = CHUNK if q_NRLE.device.type == "cpu" else max(CHUNK, SCORES // (N * R * K))
    for first in range(0, L, size):
        end = min(first + size, L)
        yield first, end, end if sight.causal else K


def _scores(q_NRLE: Tensor, k_NKE: Tensor, first: int, end: int, seen: int, sight: Sight) -> Tensor:
    """[N, R, C, seen], in at least fp32."""
    scores_NRCK = _wide(stacked(q_NRLE, first, end) @ k_NKE[:, :seen].transpose(1, 2))
    scores_NRCK = scores_NRCK.view(len(q_NRLE), -1, end - first, seen)
    if sight.bias_HLK is not None:
        bias_HCK = sight.bias_HLK[:, first:end, :seen]
        scores_NRCK.view(-1, *bias_HCK.shape).add_(bias_HCK)
    if not sight.causal and sight.mask is None:
        return scores_NRCK
    groups = 1 if sight.mask is None else len(q_NRLE) // len(sight.mask)
    return hide(scores_NRCK, first, sight.mask, groups)


def _wide(x: Tensor) -> Tensor:
    """In at least fp32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


FLASH_CPU = _Kernel(_flash_cpu, _flash_cpu_gradients)
FLASH_CUDA = _Kernel(_flash_cuda, _flash_cuda_gradients)
WRITTEN_OUT = _Kernel(_written_out, _written_out_gradients)
