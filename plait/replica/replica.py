"""A replica: one whole copy of the model, its gradients and its optimizer.

    begin ─► accumulate, for each micro-batch ─► (a sync reduces the buckets) ─► apply

Who computes what, and when a unit counts, is not known here.
"""

from __future__ import annotations

from typing import Any

import torch

from plait import spec
from plait.data.batches import MicroBatch
from plait.model.decoder import compile_blocks
from plait.replica import device as devices
from plait.replica.compute import Compute
from plait.replica.gradients import Gradients
from plait.replica.optim import build_optimizer, create_state, optimizer_state, reset_state, restore_state, set_rate


class Replica:
    """Trains one copy of the model on one rank."""

    def __init__(self, run: spec.Run, vocabulary: int, device: torch.device) -> None:
        self.device = device
        self.compute = Compute(run, vocabulary, device)
        self.parameters = dict(self.compute.module.named_parameters())
        self.gradients = Gradients(self.parameters.values(), int(run.sync.bucket_mib * 2**20))
        self.optimizer = build_optimizer(run.train.optimizer, self.parameters.items(), device)
        if run.train.compile:
            compile_blocks(self.compute.module)
        self._built_from = run, vocabulary
        self._clip = run.train.clip
        self._loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        self._divisor = 1
        self._to_come = 0

    def begin(self, divisor: int, micro_batches: int) -> None:
        """A new unit: `micro_batches` will come, and losses are divided by `divisor`, the unit's target tokens."""
        self.gradients.begin()
        self._loss_sum.zero_()
        self._divisor = divisor
        self._to_come = micro_batches

    def accumulate(self, micro_batch: MicroBatch) -> None:
        """Forward and backward; gradients of (sum of token losses / divisor) are added to the buckets."""
        self._to_come -= 1
        if self._to_come == 0:
            self.gradients.final_pass()
        loss = self.compute.loss(micro_batch)
        (loss / self._divisor).backward()
        self._loss_sum += loss.detach()

    def loss_sum(self) -> float:
        """The sum of token losses since `begin`."""
        return float(self._loss_sum)

    def apply(self, grad_norm: float, rate: float) -> None:
        """Clip the reduced gradients by their global norm and take one step of the optimizer."""
        if self._clip is not None and grad_norm > self._clip:
            self.gradients.scale(self._clip / (grad_norm + 1e-6))
        set_rate(self.optimizer, rate)
        self.optimizer.step()
        devices.synchronize(self.device)

    def state(self) -> dict[str, Any]:
        """Parameters, kept buffers and optimizer state: "model.<path>" and "optimizer.<path>.<name>", the live tensors themselves."""
        optimizer = optimizer_state(self.optimizer, self.parameters.items())
        return self.compute.model_state() | {f"optimizer.{path}": value for path, value in optimizer.items()}

    def state_to_load(self) -> dict[str, Any]:
        """A `state` that is complete before the first step too, to be loaded into and then given to `restore`."""
        create_state(self.optimizer)
        return self.state()

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what was loaded into a state: its tensors are in place already, plain values are not."""
        prefix = "optimizer."
        values = {path.removeprefix(prefix): value for path, value in state.items() if path.startswith(prefix)}
        restore_state(self.optimizer, self.parameters.items(), values)

    @torch.no_grad()
    def start_afresh(self) -> None:
        """Parameters and optimizer state as before the first step."""
        fresh = Compute(*self._built_from, self.device).model_state()
        for path, tensor in self.compute.model_state().items():
            tensor.copy_(fresh[path])
        reset_state(self.optimizer)
