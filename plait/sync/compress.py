"""How flat values travel in fewer bytes.

    bf16     the upper half of each fp32                                   2 bytes a value
    fp16     a power of two for all, then fp16                             2 bytes
    int8     a scale for each block of 256, then the nearest two of 255    1.016 bytes
             steps, one or the other by chance
    topk     the largest of them, and where they were                      8 bytes, for a share of them

             encode                        decode
    values ─────────► payload tensors ═══════════► values, some of them lost

What is not finite stays so: if a value is NaN or infinite, so is one that is decoded, that a step with such gradients may still be
seen and skipped. bf16 and fp16 round to the nearest; int8 rounds so that each value is right on average, as in QSGD (Alistarh et al.
2017, section 3, with the largest magnitude of a block as its norm, after Wen et al. 2017, TernGrad); topk leaves values out, and
needs error feedback to make up for them (plait.sync.feedback).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

Name = Literal["none", "bf16", "fp16", "int8", "topk"]
BLOCK = 256
"""Values that share a scale in int8: one large value costs so many others their precision."""


class Flat(NamedTuple):
    """One tensor of a payload."""

    length: int
    dtype: torch.dtype


class Codec(Protocol):
    """Values are flat and of fp32 or fp64. feeds_back: whether what it loses has to be sent later."""

    name: Name
    feeds_back: bool

    def parts(self, count: int, dtype: torch.dtype) -> list[Flat]:
        """What the payload of so many values is; wider dtypes first."""

    def size(self, count: int, dtype: torch.dtype) -> int:
        """Bytes of that payload."""

    def encode(self, values_N: Tensor, key: int) -> list[Tensor]:
        """The payload. key: decides what is left to chance; the same key and values give the same payload."""

    def decode(self, payload: Sequence[Tensor], out_N: Tensor) -> None:
        """Overwrite `out_N`. Raises ValueError where no such values have that payload."""


def build_codec(name: Name, top_k: float = 0.01) -> Codec | None:
    """None for "none". top_k: the share of values that topk sends."""
    match name:
        case "none":
            return None
        case "bf16":
            return BrainFloat()
        case "fp16":
            return HalfFloat()
        case "int8":
            return Int8()
        case "topk":
            return TopK(top_k)


class _Sized:
    def parts(self, count: int, dtype: torch.dtype) -> list[Flat]:
        raise NotImplementedError

    def size(self, count: int, dtype: torch.dtype) -> int:
        return sum(part.length * part.dtype.itemsize for part in self.parts(count, dtype))


class BrainFloat(_Sized):
    """fp32's range, 8 bits of precision. What of fp64 is beyond that range becomes infinite."""

    name: Name = "bf16"
    feeds_back = False

    def parts(self, count: int, dtype: torch.dtype) -> list[Flat]:
        return [Flat(count, torch.bfloat16)]

    def encode(self, values_N: Tensor, key: int) -> list[Tensor]:
        return [values_N.to(torch.bfloat16)]

    def decode(self, payload: Sequence[Tensor], out_N: Tensor) -> None:
        (values_N,) = _checked(self, payload, out_N)
        out_N.copy_(values_N)


class HalfFloat(_Sized):
    """11 bits of precision. Scaled by the power of two that brings the largest magnitude below 2^15, so that nothing overflows; what is
    below 2^-29 of the largest loses precision, below 2^-39 all."""

    name: Name = "fp16"
    feeds_back = False

    def parts(self, count: int, dtype: torch.dtype) -> list[Flat]:
        return [Flat(1, dtype), Flat(count, torch.float16)]

    def encode(self, values_N: Tensor, key: int) -> list[Tensor]:
        largest = values_N.abs().amax() if len(values_N) else values_N.new_zeros(())
        _, exponent = torch.frexp(largest)
        # Above 2^126 the inverse of a scale would not be a normal number in fp32.
        scale = torch.ldexp(torch.ones_like(largest), (exponent - 15).clamp_(min=-126 + 15))
        return [scale.view(1), (values_N / scale).to(torch.float16)]

    def decode(self, payload: Sequence[Tensor], out_N: Tensor) -> None:
        scale, values_N = _checked(self, payload, out_N)
        torch.mul(values_N, scale, out=out_N)


class Int8(_Sized):
    """Blocks of BLOCK values, each with a scale: the largest magnitude / 127, in the values' own dtype."""

    name: Name = "int8"
    feeds_back = False

    def __init__(self) -> None:
        self._chance = _Chance()

    def parts(self, count: int, dtype: torch.dtype) -> list[Flat]:
        return [Flat(math.ceil(count / BLOCK), dtype), Flat(count, torch.int8)]

    def encode(self, values_N: Tensor, key: int) -> list[Tensor]:
        values_BK = _in_blocks(values_N)
        scales_B1 = values_BK.abs().amax(1, keepdim=True) / 127
        steps_BK = values_BK / torch.where(scales_B1 == 0, 1.0, scales_B1)
        steps_BK += self._chance.between_0_and_1(steps_BK, key)
        steps_BK.floor_().clamp_(-127, 127)
        return [scales_B1.view(-1), steps_BK.to(torch.int8).view(-1)[: len(values_N)]]

    def decode(self, payload: Sequence[Tensor], out_N: Tensor) -> None:
        scales_B, steps_N = _checked(self, payload, out_N)
        whole = len(out_N) // BLOCK
        steps_BK, out_BK = (each[: whole * BLOCK].view(whole, BLOCK) for each in (steps_N, out_N))
        torch.mul(steps_BK, scales_B[:whole, None], out=out_BK)
        if tail := len(out_N) - whole * BLOCK:
            torch.mul(steps_N[-tail:], scales_B[-1], out=out_N[-tail:])


class TopK(_Sized):
    """The ceil(share * N) of largest magnitude, where NaN is larger than all, and their indices, rising."""

    name: Name = "topk"
    feeds_back = True

    def __init__(self, share: float) -> None:
        self._share = share

    def parts(self, count: int, dtype: torch.dtype) -> list[Flat]:
        if count >= 2**31:
            raise ValueError(f"{count} values: indices are of 32 bits")
        kept = math.ceil(self._share * count)
        return [Flat(kept, dtype), Flat(kept, torch.int32)]

    def encode(self, values_N: Tensor, key: int) -> list[Tensor]:
        (kept, _), _ = self.parts(len(values_N), values_N.dtype)
        indices_K, _ = _largest(values_N.abs(), kept).sort()
        return [values_N[indices_K], indices_K.to(torch.int32)]

    def decode(self, payload: Sequence[Tensor], out_N: Tensor) -> None:
        values_K, indices_K = _checked(self, payload, out_N)
        if len(indices_K) and not bool((indices_K[0] >= 0) & (indices_K[-1] < len(out_N)) & (indices_K[1:] > indices_K[:-1]).all()):
            raise ValueError(f"topk: indices that do not rise within 0 to {len(out_N) - 1}")
        out_N.zero_()
        out_N[indices_K.long()] = values_K


class _Chance:
    """Random numbers by key. One generator for each device is kept, as making one takes longer than seeding it."""

    def __init__(self) -> None:
        self._generators: dict[torch.device, torch.Generator] = {}

    def between_0_and_1(self, like_BK: Tensor, key: int) -> Tensor:
        """Uniform over 2^16 numbers around 1/2: 0 and 1 are not among them, so that whole steps stay what they are. 16 bits a value,
        cut from 64, take a quarter of the time of torch.rand and shift the average by 2^-17 of a step at most."""
        device = like_BK.device
        generator = self._generators.setdefault(device, torch.Generator(device)).manual_seed(key)
        words = torch.empty(like_BK.numel() // 4, dtype=torch.int64, device=device).random_(-(2**63), None, generator=generator)
        halves_BK = words.view(torch.int16).view(like_BK.shape)
        return halves_BK.to(like_BK.dtype).add_(2**15 + 0.5).mul_(2.0**-16)


def _in_blocks(values_N: Tensor) -> Tensor:
    """[blocks, BLOCK], the last filled up with zeros."""
    missing = -len(values_N) % BLOCK
    return (torch.nn.functional.pad(values_N, (0, missing)) if missing else values_N).view(-1, BLOCK)


SAMPLE = 2**15


def _largest(magnitudes_N: Tensor, kept: int) -> Tensor:
    """Indices of the `kept` largest, in no order.

    Only values above a threshold are compared: one that a few more than `kept` should pass, by a sample of them (Lin et al. 2018, Deep
    Gradient Compression, section 3.2). Where too few passed, all are compared; the answer is exact. A ninth of the time for 1% of 2M.
    """
    sample_S = magnitudes_N[:: max(1, len(magnitudes_N) // SAMPLE)]
    rank = math.ceil(1.25 * kept / max(1, len(magnitudes_N)) * len(sample_S)) + 8
    if 8 * rank < len(sample_S):
        threshold = sample_S.topk(rank, sorted=True).values[-1]
        candidates_C = (magnitudes_N < threshold).logical_not_().nonzero().squeeze(1)  # NaN is no less than anything
        if len(candidates_C) >= kept:
            return candidates_C[magnitudes_N[candidates_C].topk(kept, sorted=False).indices]
    return magnitudes_N.topk(kept, sorted=False).indices


def _checked(codec: Codec, payload: Sequence[Tensor], out_N: Tensor) -> Sequence[Tensor]:
    """The payload, if tensors of `out_N`'s shape and dtype have one of such parts."""
    expected = [([part.length], part.dtype) for part in codec.parts(out_N.numel(), out_N.dtype)]
    found = [(list(tensor.shape), tensor.dtype) for tensor in payload]
    if found != expected:
        raise ValueError(f"{codec.name}: a payload of {_told(found)} where {out_N.numel()} values of {out_N.dtype} have {_told(expected)}")
    return payload


def _told(parts: list[tuple[list[int], torch.dtype]]) -> str:
    return " and ".join(f"{shape} {dtype}" for shape, dtype in parts) or "nothing"
