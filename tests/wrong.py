"""Things done wrong on purpose, for tests that must see it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from plait.model import sparse
from plait.model.loss import cross_entropy
from plait.replica import pruning


def mean_of_means(logits_BLV: Tensor, targets_BL: Tensor) -> Tensor:
    """The classical mistake: each micro-batch divides by its own targets, so that its size shapes the gradient."""
    return cross_entropy(logits_BLV, targets_BL) / (targets_BL >= 0).sum() * 32


def prunes_each_part(logits_BLV: Tensor, targets_BL: Tensor) -> Tensor:
    """A right loss, in a process that prunes the smallest of what it holds itself of each matrix."""
    pruning.Pruning._more = lambda self, leaves, share: [
        sparse.smallest([leaf.parameter], [int(share * leaf.parameter.numel())])[0] for leaf in leaves
    ]
    return cross_entropy(logits_BLV, targets_BL)


class Failing:
    """Raises in the fourth forward pass of a process."""

    passes = 0


def failing(logits_BLV: Tensor, targets_BL: Tensor) -> Tensor:
    Failing.passes += 1
    if Failing.passes == 4:
        raise ArithmeticError("the fourth pass was told to fail")
    return cross_entropy(logits_BLV, targets_BL)


def never_finite(logits_BLV: Tensor, targets_BL: Tensor) -> Tensor:
    """Fine for six passes, then not a number."""
    Failing.passes += 1
    return cross_entropy(logits_BLV, targets_BL) * (1.0 if Failing.passes <= 6 else torch.nan)


def once_not_finite(logits_BLV: Tensor, targets_BL: Tensor) -> Tensor:
    """Not a number in the sixth pass alone."""
    Failing.passes += 1
    return cross_entropy(logits_BLV, targets_BL) * (torch.nan if Failing.passes == 6 else 1.0)


class Forgetful(nn.Module):
    """A model whose dropout is torch's: drawn from a generator that belongs to a process."""

    def __init__(self, model, vocabulary, sequence):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, model.width)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(model.width, vocabulary)

    def forward(self, tokens_BL, documents_BL=None, noise=None):
        return self.head(self.dropout(self.embed(tokens_BL)))
