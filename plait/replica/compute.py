"""Forward passes: a model with its loss, on its device, in its precision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from plait import spec
from plait.data.batches import MicroBatch
from plait.model.cut import Cut
from plait.model.loss import cross_entropy, load_loss
from plait.model.noise import Noise
from plait.replica import context, tensor
from plait.replica import device as devices
from plait.replica.assemble import Assembly


@dataclass(frozen=True)
class Sums:
    """Sums over target tokens: of losses, of right guesses, of targets."""

    loss: float
    correct: int
    targets: int


class Compute:
    """What a rank computes of a micro-batch, with a module that was assembled for its place in the mesh."""

    def __init__(self, run: spec.Run, assembly: Assembly, device: torch.device) -> None:
        self.device = device
        self.module = assembly.module
        self._assembly = assembly
        self._mesh = assembly.mesh
        self._context_by = run.layout.context_by
        self._seed = run.train.seed
        self._precision = run.train.precision
        self._loss = load_loss(run.train.loss)

    def loss(self, micro_batch: MicroBatch) -> Tensor:
        """The sum of token losses, with dropout: of this rank's sequences and positions."""
        inputs = self.inputs(micro_batch, learning=True)
        with devices.autocast(self.device, self._precision):
            return self.loss_of(self.module(*inputs.arguments, **inputs.keywords), inputs.targets_BL)

    @torch.no_grad()
    def measure(self, micro_batch: MicroBatch) -> Sums:
        """Losses and right guesses, without dropout."""
        inputs = self.inputs(micro_batch, learning=False)
        with devices.autocast(self.device, self._precision):
            return self.sums_of(self.module(*inputs.arguments, **inputs.keywords), inputs.targets_BL)

    def inputs(self, micro_batch: MicroBatch, learning: bool) -> Inputs:
        """What the model is called with on this rank. learning: with dropout."""
        cut = self._cut(micro_batch.tokens_BL.shape[1])
        here = slice(None) if cut is None else cut.positions_L.cpu().numpy()
        counted_B = self._tensor(np.any(micro_batch.targets_BL >= 0, 1))
        noise = Noise(self._seed, micro_batch.step, self._tensor(micro_batch.samples_B), cut, counted_B) if learning else None
        documents = None if micro_batch.documents_BL is None else self._tensor(micro_batch.documents_BL)
        tokens_BL, targets_BL = (self._tensor(whole_BL[:, here]) for whole_BL in (micro_batch.tokens_BL, micro_batch.targets_BL))
        return Inputs(tokens_BL, targets_BL, documents, noise, cut)

    def loss_of(self, logits_BLV: Tensor, targets_BL: Tensor) -> Tensor:
        """The sum of token losses of logits, spread or whole."""
        first, group = self._assembly.first_entry, self._mesh.group("tensor")
        if first is None or group is None:
            return self._loss(logits_BLV, targets_BL)
        if self._loss is cross_entropy:
            return tensor.cross_entropy(logits_BLV, targets_BL, first, group)
        return self._loss(tensor.gather_logits(logits_BLV, group, self._assembly.vocabulary), targets_BL)

    def sums_of(self, logits_BLV: Tensor, targets_BL: Tensor) -> Sums:
        """Sums over targets; none on ranks that would only repeat another's."""
        first, group = self._assembly.first_entry, self._mesh.group("tensor")
        loss = self.loss_of(logits_BLV, targets_BL)
        guesses_BL = logits_BLV.argmax(-1) if first is None or group is None else tensor.guesses(logits_BLV, first, group)
        counted_BL = targets_BL >= 0
        correct = (guesses_BL == targets_BL) & counted_BL
        return Sums(float(loss), int(correct.sum()), int(counted_BL.sum())) if self.speaks else Sums(0.0, 0, 0)

    @property
    def speaks(self) -> bool:
        """Whether this rank's sums count: ranks of the tensor axis compute the same ones."""
        return self._mesh.place["tensor"] == 0

    def _cut(self, length: int) -> Cut | None:
        mesh = self._mesh
        if mesh.size("context") == 1 and not self._assembly.sequence_parallel:
            return None
        positions_L = context.positions(length, *mesh.of("context"), self._context_by).to(self.device)
        stream_S = positions_L.chunk(mesh.size("tensor"))[mesh.place["tensor"]] if self._assembly.sequence_parallel else positions_L
        return Cut(length, positions_L, stream_S, mesh.of("tensor"))

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self.device, non_blocking=True)


@dataclass(frozen=True)
class Inputs:
    """Of one micro-batch on one rank; documents_BL of whole samples."""

    tokens_BL: Tensor
    targets_BL: Tensor
    documents_BL: Tensor | None
    noise: Noise | None
    cut: Cut | None

    @property
    def arguments(self) -> tuple[Any, ...]:
        """A user's own model is called with these alone."""
        return (self.tokens_BL, self.documents_BL) if self.noise is None else (self.tokens_BL, self.documents_BL, self.noise)

    @property
    def keywords(self) -> dict[str, Any]:
        return {} if self.cut is None else {"cut": self.cut}


def model_state(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and kept buffers, "model.<path>", the live tensors; a parameter that is shown twice is kept once."""
    shown = {path for path, _ in module.named_parameters(remove_duplicate=False)}
    tied = shown - {path for path, _ in module.named_parameters()}
    return {f"model.{path}": tensor for path, tensor in module.state_dict().items() if path not in tied}
