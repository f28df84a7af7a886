"""What a model tells, compared with what is right: losses to learn from, and counts to judge by.

    tokens     each place's entry of the vocabulary, of logits that ranks of the tensor axis may share
    labels     of a sample, at its first place, or of its words at their first tokens; each may weigh something of its own
    numbers    of a sample: squared errors, of scaled numbers
    spans      of a passage: its first and its last token, each chosen among all places

All are sums over targets. Outputs of a task's head are few, and made whole where ranks share them.
Shapes: B samples, L positions, V entries of the vocabulary, R rows that outputs stand in, O outputs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from plait import spec
from plait.model.loss import NO_TARGET, cross_entropy, load_loss
from plait.replica import tensor
from plait.replica.assemble import Assembly

if TYPE_CHECKING:
    from plait.replica.compute import Inputs


@dataclass(frozen=True)
class Sums:
    """Sums over targets: of losses, of right guesses (None where none is right or wrong), of targets. confusion: labels, [right, told]."""

    loss: float = 0.0
    correct: int | None = 0
    targets: int = 0
    confusion: np.ndarray | None = None

    def __add__(self, other: Sums) -> Sums:
        known = [each.confusion for each in (self, other) if each.confusion is not None]
        correct = None if self.correct is None or other.correct is None else self.correct + other.correct
        confusion = reduce(np.add, known) if known else None
        return Sums(self.loss + other.loss, correct, self.targets + other.targets, confusion)


class Telling(Protocol):
    """One objective's losses and counts."""

    def loss(self, outputs_BRO: Tensor, inputs: Inputs, learning: bool) -> Tensor:
        """The sum of losses, differentiable. learning: targets are smoothed, where settings say so."""
        ...

    def sums(self, outputs_BRO: Tensor, inputs: Inputs) -> Sums: ...


def telling(run: spec.Run, assembly: Assembly, device: torch.device) -> Telling:
    """What compares a run's outputs with its targets. Raises RunFileError: a loss of one's own that is not there."""
    head = run.data.objective.head
    if head is None:
        return Tokens(run, assembly)
    if head.kind == "regress":
        return Numbers(assembly)
    return Spans(assembly) if head.kind == "answer" else Labels(run, assembly, device)


class Tokens:
    """The next token, a hidden one, or one of a target."""

    def __init__(self, run: spec.Run, assembly: Assembly) -> None:
        self._assembly, self._group = assembly, assembly.mesh.group("tensor")
        self._loss, self._smoothing = load_loss(run.train.loss), run.train.label_smoothing

    def loss(self, outputs_BRO: Tensor, inputs: Inputs, learning: bool) -> Tensor:
        """Of an encoder-decoder logits are of the target's positions alone."""
        targets_BL = inputs.targets_BL[:, -outputs_BRO.shape[1] :]
        first, group = self._assembly.first_entry, self._group
        smoothing = self._smoothing if learning else 0.0
        if self._loss is cross_entropy and first is not None and group is not None:
            return tensor.cross_entropy(outputs_BRO, targets_BL, first, group, self._assembly.outputs, smoothing)
        if self._loss is cross_entropy:
            return cross_entropy(outputs_BRO, targets_BL, smoothing)
        return self._loss(_whole(outputs_BRO, self._assembly), targets_BL)

    def sums(self, outputs_BRO: Tensor, inputs: Inputs) -> Sums:
        first, group = self._assembly.first_entry, self._group
        targets_BL = inputs.targets_BL[:, -outputs_BRO.shape[1] :]
        guesses_BL = outputs_BRO.argmax(-1) if first is None or group is None else tensor.guesses(outputs_BRO, first, group)
        counted_BL = targets_BL >= 0
        correct = (guesses_BL == targets_BL) & counted_BL
        return Sums(float(self.loss(outputs_BRO, inputs, learning=False)), int(correct.sum()), int(counted_BL.sum()))


class Labels:
    """Of a sample its outputs stand in the first rows, as its label does; a rank that has not its first place has no label either."""

    def __init__(self, run: spec.Run, assembly: Assembly, device: torch.device) -> None:
        self._assembly = assembly
        objective = run.data.objective
        weights = objective.weights if isinstance(objective.weights, dict) else {}
        self._weights_O = torch.tensor([weights[name] for name in objective.labels or ()], device=device) if weights else None
        self._loss, self._smoothing = load_loss(run.train.loss), run.train.label_smoothing

    def loss(self, outputs_BRO: Tensor, inputs: Inputs, learning: bool) -> Tensor:
        whole_BRO = _wide(_whole(outputs_BRO, self._assembly))
        targets_BR = inputs.targets_BL[:, : whole_BRO.shape[1]]
        if self._loss is not cross_entropy:
            return self._loss(whole_BRO, targets_BR)
        return functional.cross_entropy(
            whole_BRO.flatten(0, -2),
            targets_BR.flatten(),
            weight=None if self._weights_O is None else self._weights_O.to(whole_BRO.dtype),
            ignore_index=NO_TARGET,
            reduction="sum",
            label_smoothing=self._smoothing if learning else 0.0,
        )

    def sums(self, outputs_BRO: Tensor, inputs: Inputs) -> Sums:
        whole_BRO = _whole(outputs_BRO, self._assembly)
        labels = whole_BRO.shape[-1]
        targets_BR = inputs.targets_BL[:, : whole_BRO.shape[1]]
        counted_BR = targets_BR >= 0
        pairs_N = (targets_BR * labels + whole_BRO.argmax(-1))[counted_BR]
        confusion = torch.bincount(pairs_N, minlength=labels**2).view(labels, labels).cpu().numpy()
        loss = float(self.loss(outputs_BRO, inputs, learning=False))
        return Sums(loss, int(confusion.trace()), int(counted_BR.sum()), confusion)


class Numbers:
    """One of each sample, in the first rows as a label."""

    def __init__(self, assembly: Assembly) -> None:
        self._assembly = assembly

    def loss(self, outputs_BRO: Tensor, inputs: Inputs, learning: bool) -> Tensor:
        told_B = _wide(_whole(outputs_BRO, self._assembly))[:, 0, 0]
        assert inputs.values_B is not None
        counted_B = inputs.targets_BL[:, 0] >= 0
        return ((told_B - inputs.values_B.to(told_B.dtype)).square() * counted_B).sum()

    def sums(self, outputs_BRO: Tensor, inputs: Inputs) -> Sums:
        return Sums(float(self.loss(outputs_BRO, inputs, learning=False)), None, int((inputs.targets_BL[:, 0] >= 0).sum()))


class Spans:
    """Two targets of each sample, its first and its last token: the mean of a batch is that of both."""

    def __init__(self, assembly: Assembly) -> None:
        self._assembly = assembly

    def loss(self, outputs_BRO: Tensor, inputs: Inputs, learning: bool) -> Tensor:
        places_2BL = self._places(outputs_BRO, inputs)
        return functional.cross_entropy(places_2BL.flatten(0, 1), self._targets(inputs).flatten(), ignore_index=NO_TARGET, reduction="sum")

    def sums(self, outputs_BRO: Tensor, inputs: Inputs) -> Sums:
        targets_2B = self._targets(inputs)
        right_2B = (self._places(outputs_BRO, inputs).argmax(-1) == targets_2B) & (targets_2B >= 0)
        return Sums(float(self.loss(outputs_BRO, inputs, learning=False)), int(right_2B.sum()), int((targets_2B >= 0).sum()))

    def _places(self, outputs_BRO: Tensor, inputs: Inputs) -> Tensor:
        """Scores of all places to be the first, and the last; padding is none."""
        places_2BL = _wide(_whole(outputs_BRO, self._assembly)).permute(2, 0, 1)
        return places_2BL if inputs.documents_BL is None else places_2BL.masked_fill(inputs.documents_BL < 0, -math.inf)

    @staticmethod
    def _targets(inputs: Inputs) -> Tensor:
        return inputs.targets_BL[:, :2].t()


def _whole(outputs_BRO: Tensor, assembly: Assembly) -> Tensor:
    """All outputs, on every rank that shares them."""
    group = assembly.mesh.group("tensor")
    if assembly.first_entry is None or group is None:
        return outputs_BRO
    return tensor.gather_logits(outputs_BRO, group, assembly.outputs)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
