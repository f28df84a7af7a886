"""Dropout whose mask is a function of what is computed, not of who computes it.

An element is kept by a hash of (seed, step, sample, module path, its global index within the sample). No generator
has a state, so that the mask follows no cut of micro-batches, sequences or heads, and recomputing gives it again.

    seed, step ── blake2b ──┐
    samples_B ──────────────┴─ mix64 ─ key_B ─┐
    path ────────────────── blake2b ──────────┴─ mix64 ─┐
    row: all dims but the sample's and the last ────────┴─ mix64 ─ a, b: two 32-bit words a row
    column: the last dim ─ a ─ xor-shift ─ multiply ─ b ─ xor-shift ─ multiply ─ compare with the rate

The words of a row cost 64-bit arithmetic once a row; an element costs eight passes of 32-bit arithmetic, which wraps alike
on every device. mix64 is the finaliser of splitmix64 (Steele, Lea, Flood 2014); the element's two rounds are those
of a murmur-like finaliser with the second word added between them.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor, nn

from plait.model.cut import Cut


class Noise:
    """The keys of one micro-batch's samples.

    samples_B: numbers of the samples in the run, int64, on the device that computes. cut: the part of them that is computed here.
    counted_B: bool, the samples that weigh anything, and do not only fill up a micro-batch; all when None.
    """

    def __init__(self, seed: int, step: int, samples_B: Tensor, cut: Cut | None = None, counted_B: Tensor | None = None) -> None:
        self.key_B = _mix64(samples_B * _GOLDEN + _key64(f"{seed} {step}"))
        self.zero = torch.zeros((), dtype=torch.int64, device=samples_B.device)
        self.cut = cut
        self.counted_B = counted_B

    def rows(self, shape: torch.Size, device: torch.device) -> Tensor:
        """Global rows of an x of [sample, position, ..., column], int64: all dims but the first and the last, flat."""
        if self.cut is None:
            return torch.arange(math.prod(shape[1:-1]), device=device)
        inner = math.prod(shape[2:-1])
        return (self.cut.rows(shape[1])[:, None] * inner + torch.arange(inner, device=device)).flatten()


class Dropout(nn.Module):
    """Zeroes a share `rate` of the elements and scales the rest by 1 / (1 - rate). Without noise it is the identity.

    path: the module's, unique in the model: two modules of one path would drop alike. spread: columns are cut over the ranks that share
    heads, where some do.
    """

    spread = False

    def __init__(self, rate: float, path: str) -> None:
        super().__init__()
        self.rate = rate
        # A tensor, not a number: compiled blocks share one program, into which a number would be baked.
        self.key: Tensor
        self.register_buffer("key", torch.tensor(_key64(path)), persistent=False)

    def forward(self, x: Tensor, noise: Noise | None) -> Tensor:
        """x: [sample, ..., column]. Returns the same shape and dtype."""
        if noise is None or self.rate == 0.0:
            return x
        rows_R = noise.rows(x.shape, x.device)
        first = noise.cut.head_share[0] * x.shape[-1] if self.spread and noise.cut is not None else 0
        columns_C = torch.arange(first, first + x.shape[-1], dtype=torch.int32, device=x.device)
        keep = self.keep(noise, rows_R, columns_C).view(x.shape)
        # Scaled before it is masked: a scale in bf16 would itself be rounded, by 0.2 % for a rate of 0.1.
        return (x * (1.0 / (1.0 - self.rate))) * keep.to(x.dtype)

    def keep(self, noise: Noise, rows_R: Tensor, columns_C: Tensor) -> Tensor:
        """Which elements stay, [B, R, C] bool, for the given global rows (int64) and columns (int32) of each sample."""
        # A compiler that sees which rows and columns they are reckons with their products, which must wrap: it folds them, or takes it, as
        # C++ does of signed numbers, that they never overflow; so that masks were others, and loops never ended. A zero that it cannot know
        # hides them.
        columns_C = columns_C ^ noise.zero.to(columns_C.dtype)
        return keep_mask(_mix64(noise.key_B ^ self.key), rows_R ^ noise.zero, columns_C, self.rate)


def keep_mask(key_B: Tensor, rows_R: Tensor, columns_C: Tensor, rate: float) -> Tensor:
    """Which elements stay, [B, R, C] bool, of samples with these keys, in these rows (int64) and columns (int32)."""
    words_BR1 = _mix64(key_B[:, None] + rows_R * _GOLDEN)[..., None]
    first, second = words_BR1.to(torch.int32), (words_BR1 >> 32).to(torch.int32)
    hash_BRC = first + columns_C * _WEYL32
    hash_BRC ^= hash_BRC >> 16
    hash_BRC = torch.add(second, hash_BRC, alpha=_MURMUR_A)
    hash_BRC ^= hash_BRC >> 15
    hash_BRC *= _MURMUR_B
    return hash_BRC >= round(rate * 2**32) - 2**31


def _mix64(z: Tensor) -> Tensor:
    z = (z ^ _shift(z, 30)) * _SPLITMIX_A
    z = (z ^ _shift(z, 27)) * _SPLITMIX_B
    return z ^ _shift(z, 31)


def _shift(z: Tensor, bits: int) -> Tensor:
    """A logical shift to the right: torch's keeps the sign."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _key64(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)


def _signed(value: int, bits: int) -> int:
    return value - (1 << bits) if value >> (bits - 1) else value


_GOLDEN = _signed(0x9E3779B97F4A7C15, 64)
_SPLITMIX_A = _signed(0xBF58476D1CE4E5B9, 64)
_SPLITMIX_B = _signed(0x94D049BB133111EB, 64)
_WEYL32 = _signed(0x9E3779B9, 32)
_MURMUR_A = _signed(0x85EBCA6B, 32)
_MURMUR_B = _signed(0xC2B2AE35, 32)
