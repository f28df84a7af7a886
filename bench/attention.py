"""Attention written out by chunks against torch's fused kernel, forward and backward, on one core: the table of docs/model.md.

python bench/attention.py
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from plait.model import attention
from plait.model.noise import Dropout

SHAPES = ((8, 256), (4, 512), (2, 1024))
HEADS, HEAD_WIDTH, ROUNDS = 6, 64, 10


def main() -> None:
    torch.set_num_threads(1)
    print(
        "| batch × positions | torch's kernel, fp32 | written out, fp32 | torch's kernel, bf16 | written out, bf16 |\n|---|---|---|---|---|"
    )
    for batch, length in SHAPES:
        cells = [f"{best * 1e3:.0f} ms" for dtype in (torch.float32, torch.bfloat16) for best in _both(batch, length, dtype)]
        print(f"| {batch} × {length} | {' | '.join(cells)} |")


def _both(batch: int, length: int, dtype: torch.dtype) -> list[float]:
    """Best seconds of torch's kernel and of ours, taken by turns."""
    stacked = torch.randn(batch, length, 3 * HEADS, HEAD_WIDTH, dtype=dtype, requires_grad=True)
    outer = torch.randn(batch, length, HEADS, HEAD_WIDTH, dtype=dtype).transpose(1, 2)
    seconds: list[list[float]] = [[], []]
    for _ in range(ROUNDS):
        for taken, kept_bytes in zip(seconds, (0, attention.KEPT_BYTES), strict=True):
            taken.append(_timed(lambda kept=kept_bytes: _step(stacked, outer, kept)))
    return [min(taken) for taken in seconds]


def _step(stacked: Tensor, outer: Tensor, kept_bytes: int) -> None:
    before, attention.KEPT_BYTES = attention.KEPT_BYTES, kept_bytes
    q, k, v = (part.transpose(1, 2) for part in stacked.split(HEADS, 2))
    attention.attend(q, k, v, None, Dropout(0.0, ""), None).backward(outer)
    attention.KEPT_BYTES = before


def _timed(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
