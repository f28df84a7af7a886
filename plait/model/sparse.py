"""Which weights of a matrix become zero: the smallest of the whole, or of each four in a row the two smallest.

The smallest of a matrix are told without gathering it, whoever holds parts of it: magnitudes of floats are ordered as their bits are, read
as whole numbers, so that the k-th smallest is found digit by digit, from how many have each value of a digit.

    bits    0 01111100 ..    count the first digits of all    the k-th smallest begins with this one
                             count the second digits of those that begin so, and so on: 4 digits of 8 bits in fp32, 8 in fp64

Counts are whole numbers, whose sum over ranks is the same in any order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Total = Callable[[Tensor], Tensor]
"""Counts [matrices, values of a digit] of a rank -> their sum over all ranks that hold other parts of the same matrices."""

_BITS = 8
_WORDS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def _alone(counts: Tensor) -> Tensor:
    return counts


@torch.no_grad()
def smallest(matrices: Sequence[Tensor], counts: Sequence[int], total: Total = _alone) -> list[Tensor]:
    """True where a value is among so many of its whole matrix that are smallest in magnitude, or equal to the largest of these."""
    words = [matrix.detach().abs().contiguous().view(_WORDS[matrix.element_size()]).flatten() for matrix in matrices]
    left = torch.tensor(list(counts), dtype=torch.int64)
    found = [0] * len(words)
    width = 8 * matrices[0].element_size()
    for shift in range(width - _BITS, -1, -_BITS):
        here = torch.stack([_digits(word, start, shift, width) for word, start in zip(words, found, strict=True)])
        seen = total(here).cpu().cumsum(1)
        digits = (seen < left[:, None]).sum(1)
        left -= torch.where(digits > 0, seen.gather(1, (digits[:, None] - 1).clamp_min(0))[:, 0], 0)
        found = [(start << _BITS) + int(digit) for start, digit in zip(found, digits, strict=True)]
    return [
        (word <= threshold).view(matrix.shape) if count else torch.zeros_like(matrix, dtype=torch.bool)
        for matrix, word, threshold, count in zip(matrices, words, found, counts, strict=True)
    ]


@torch.no_grad()
def two_of_four(matrix: Tensor) -> Tensor:
    """True at the two smallest in magnitude of each four that stand side by side in a row; of equals at the later ones."""
    fours = matrix.detach().abs().unflatten(-1, (-1, 4))
    order = fours.argsort(dim=-1, descending=True, stable=True)
    return torch.zeros_like(fours, dtype=torch.bool).scatter_(-1, order[..., 2:], True).flatten(-2)


def _digits(word: Tensor, start: int, shift: int, width: int) -> Tensor:
    """How many of the words that begin with the digits `start` have each value of the next one, int64."""
    begun = word if shift + _BITS == width else word[(word >> (shift + _BITS)) == start]
    counts: Tensor = ((begun >> shift) & (2**_BITS - 1)).to(torch.int64).bincount(minlength=2**_BITS)
    return counts
