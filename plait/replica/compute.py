"""Forward passes: a model with its loss, on its device, in its precision."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from plait import spec
from plait.data.batches import MicroBatch
from plait.model.build import build
from plait.model.loss import load_loss
from plait.model.noise import Noise
from plait.replica import device as devices


@dataclass(frozen=True)
class Sums:
    """Sums over target tokens: of losses, of right guesses, of targets."""

    loss: float
    correct: int
    targets: int


class Compute:
    """What a run computes of a micro-batch. `module` is freshly initialised from the run's seed."""

    def __init__(self, run: spec.Run, vocabulary: int, device: torch.device) -> None:
        self.device = device
        self._seed = run.train.seed
        self._precision = run.train.precision
        self._loss = load_loss(run.train.loss)
        dtype = devices.dtype(self._precision)
        self.module = build(run.model, vocabulary, run.data.sequence, self._seed, dtype=dtype, device=device)

    def loss(self, micro_batch: MicroBatch) -> Tensor:
        """The sum of token losses, with dropout."""
        tokens_BL, targets_BL, documents_BL = self._to_device(micro_batch)
        noise = Noise(self._seed, micro_batch.step, self._tensor(micro_batch.samples_B))
        with devices.autocast(self.device, self._precision):
            return self._loss(self.module(tokens_BL, documents_BL, noise), targets_BL)

    @torch.no_grad()
    def measure(self, micro_batch: MicroBatch) -> Sums:
        """Losses and right guesses, without dropout."""
        tokens_BL, targets_BL, documents_BL = self._to_device(micro_batch)
        with devices.autocast(self.device, self._precision):
            logits_BLV = self.module(tokens_BL, documents_BL)
            loss = self._loss(logits_BLV, targets_BL)
        counted_BL = targets_BL >= 0
        correct = (logits_BLV.argmax(-1) == targets_BL) & counted_BL
        return Sums(float(loss), int(correct.sum()), int(counted_BL.sum()))

    def model_state(self) -> dict[str, Tensor]:
        """Parameters and kept buffers, "model.<path>", the live tensors; a parameter that is shown twice is kept once."""
        shown = {path for path, _ in self.module.named_parameters(remove_duplicate=False)}
        tied = shown - {path for path, _ in self.module.named_parameters()}
        return {f"model.{path}": tensor for path, tensor in self.module.state_dict().items() if path not in tied}

    def _to_device(self, micro_batch: MicroBatch) -> tuple[Tensor, Tensor, Tensor | None]:
        documents = micro_batch.documents_BL
        return (
            self._tensor(micro_batch.tokens_BL),
            self._tensor(micro_batch.targets_BL),
            None if documents is None else self._tensor(documents),
        )

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self.device, non_blocking=True)
