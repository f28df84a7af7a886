"""Fingerprints of state: equal where all bits are, and computed where the tensors are.

Tensors are read as 32-bit words x, in blocks; a block's sum is

    sum over i of  w_i x_i   mod 2^64            w_i odd, of 64 bits, always the same ones

so that one word that differs always shows (w_i times what it differs by is no multiple of 2^64), and of two blocks that differ in more
words but one pair in 2^32 has one sum. (Lemire and Kaser 2014, "Strongly universal string hashing is fast": multilinear.) Sums of blocks
are hashed on the host, BLAKE2b, with the tensor's name, shape and dtype.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor

from plait.replica.placed import local_values

WHOLE = "all"
_BLOCK = 4096
"""Words."""
_BLOCKS = {"cpu": 32}
"""Blocks at once: what a core's cache holds."""
_BLOCKS_ELSEWHERE = 4096


@torch.no_grad()
def fingerprints(state: Mapping[str, Any], each: bool) -> dict[str, str]:
    """Of each tensor and plain value of a state by its name, or of all of it by the name WHOLE. Tensors are this rank's own parts."""
    values = {name: local_values(state[name]) for name in sorted(state)}
    sums = {name: _sums(value) for name, value in values.items() if isinstance(value, Tensor)}
    there = _to_host(sums)
    digests = {name: _digest(name, value, there.get(name)) for name, value in values.items()}
    if each:
        return {name: digest.hex() for name, digest in digests.items()}
    return {WHOLE: hashlib.blake2b(b"".join(digests.values()), digest_size=8).hexdigest()}


def _sums(tensor: Tensor) -> Tensor:
    """Of each block, int64."""
    words, weights = _words(tensor), _weights(tensor.device)
    whole = words.numel() // _BLOCK * _BLOCK
    at_once = _BLOCKS.get(tensor.device.type, _BLOCKS_ELSEWHERE)
    sums = [(blocks * weights).sum(1) for blocks in words[:whole].view(-1, _BLOCK).split(at_once)] if whole else []
    rest = words[whole:]
    return torch.cat([*sums, (rest * weights[: rest.numel()]).sum().view(1)])


def _words(tensor: Tensor) -> Tensor:
    """The bits of a tensor as int32, padded with zeros to whole words."""
    raw = tensor.detach().contiguous().view(-1).view(torch.uint8)
    if raw.numel() % 4 or raw.storage_offset() % 4:
        raw = torch.nn.functional.pad(raw, (0, -raw.numel() % 4))
    return raw.view(torch.int32)


@cache
def _weights(device: torch.device) -> Tensor:
    """Drawn on the host, so that they are the same everywhere."""
    drawn = torch.randint(-(2**63), 2**63 - 1, (_BLOCK,), dtype=torch.int64, generator=torch.Generator().manual_seed(0x9E3779B9))
    return (drawn | 1).to(device)


def _to_host(sums: Mapping[str, Tensor]) -> dict[str, bytes]:
    """One copy for all tensors of a device."""
    there: dict[str, bytes] = {}
    for device in {each.device for each in sums.values()}:
        here = {name: each for name, each in sums.items() if each.device == device}
        pieces = torch.cat(list(here.values())).cpu().split([each.numel() for each in here.values()])
        there |= {name: piece.numpy().tobytes() for name, piece in zip(here, pieces, strict=True)}
    return there


def _digest(name: str, value: Any, sums: bytes | None) -> bytes:
    what = [name, list(value.shape), str(value.dtype)] if sums is not None else [name, value]
    return hashlib.blake2b(json.dumps(what).encode() + (sums or b""), digest_size=8).digest()
