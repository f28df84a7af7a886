"""A replica: one whole copy of the model, its gradients and its optimizer.

    begin ─► accumulate, for each micro-batch ─► (a sync reduces the buckets) ─► apply

Who computes what, and when a unit counts, is not known here.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed
from torch import nn

from plait import spec
from plait.data.batches import MicroBatch
from plait.events import Load
from plait.model.decoder import compile_blocks
from plait.replica import device as devices
from plait.replica import eightbit, expert
from plait.replica.assemble import Assembly, Base, assemble, start_afresh
from plait.replica.compute import Compute, model_state
from plait.replica.gradients import Gradients
from plait.replica.looking import Looking
from plait.replica.mesh import ALONE, Mesh
from plait.replica.muon import Joint
from plait.replica.optim import build_optimizer, clip_factor, create_state, optimizer_state, reset_state, restore_state, set_rate
from plait.replica.part import Part
from plait.replica.placed import local_values, placed
from plait.replica.pruning import Pruning


class Replica:
    """One rank of a replica: trains its part of one copy of the model. parameters, parts: of what is trained, by path."""

    def __init__(self, run: spec.Run, vocabulary: int, device: torch.device, mesh: Mesh = ALONE, base: Base | None = None) -> None:
        self.device = device
        self.mesh = mesh
        self.assembly = assemble(run, vocabulary, device, mesh, base)
        self._shards = self.assembly.shards
        self.compute = Compute(run, self.assembly, device)
        self.parameters = {leaf.path: leaf.parameter for leaf in self.assembly.trained}
        self.parts = {leaf.path: leaf.part for leaf in self.assembly.trained}
        self.gradients = Gradients(self.assembly.trained, run.sync.bucket_bytes, mesh)
        self._block = run.train.optimizer.block_size if run.train.optimizer.state == "int8" else None
        if self._block is not None:
            eightbit.check_cuts(self.parts, self._block)
        joint = _joint(self.assembly) if run.train.optimizer.name == "muon" else None
        self.optimizer = build_optimizer(run.train.optimizer, self.parameters.items(), device, joint, run.rate_factor)
        self._pruning = None if run.prune is None else Pruning(run.prune, self.assembly, device, run.finetune is not None)
        self.publish()
        if run.train.compile:
            compile_blocks(self.compute.module)
        self._looking = _looking(run, self.compute.module, device, mesh)
        self._built_from = run, vocabulary, base
        self._clip = run.train.clip
        self._loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        self._divisor = 1
        self._to_come = 0
        self._waiting: list[MicroBatch] = []

    def begin(self, divisor: int, micro_batches: int) -> None:
        """A new unit: `micro_batches` will come, and losses are divided by `divisor`, the unit's target tokens."""
        self.gradients.begin()
        if self._shards is not None:
            self._shards.begin()
        expert.begin(self.compute.module, divisor)
        self._loss_sum.zero_()
        self._divisor = divisor
        self._to_come = micro_batches
        self._waiting.clear()

    def asking(self, question: Callable[[], None]) -> AbstractContextManager[None]:
        """Have `question` called within micro-batches too, where that is worth it: what it raises ends them."""
        return nullcontext() if self._looking is None else self._looking.ask(question)

    def accumulate(self, micro_batch: MicroBatch) -> None:
        """Forward and backward; gradients of (sum of token losses / divisor) are added to the buckets."""
        self._to_come -= 1
        if self._to_come == 0 and self._shards is not None:
            self._shards.final_pass()
        if self.compute.pipeline is not None:
            self._wait_for_all(micro_batch)
            return
        if self._to_come == 0:
            self.gradients.final_pass()
        loss = self.compute.loss(micro_batch)
        (loss / self._divisor).backward()
        self._loss_sum += loss.detach()

    def _wait_for_all(self, micro_batch: MicroBatch) -> None:
        """A schedule takes the micro-batches of a unit together; what it computed is final when it has ended."""
        self._waiting.append(micro_batch)
        if self._to_come == 0:
            self._loss_sum += self.compute.learn_in_stages(self._waiting, self._divisor)

    def finish(self) -> None:
        """All micro-batches have come: gradients are summed over this replica's ranks, and all buckets handed over."""
        if self._shards is not None:
            self._shards.reduce()
        self.gradients.finish()

    def squared_norm(self) -> float:
        """This rank's part of the sum of squares of all gradients, which are sums over all replicas by now: those of pruned weights are
        made zero."""
        if self._pruning is not None:
            self._pruning.silence()
        return self.gradients.squared_norm()

    def loss_sum(self) -> float:
        """The sum of token losses since `begin`, on ranks whose sums count."""
        return float(self._loss_sum) if self.compute.speaks else 0.0

    def sum_over_ranks(self, value: float) -> float:
        """Over all ranks of this replica, on each of them."""
        if self.mesh.ranks == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(total)
        return float(total)

    def held(self) -> int:
        """Values of the model that this rank counts, so that a replica's ranks count each one once."""
        return sum(leaf.parameter.numel() for leaf in self.assembly.leaves if leaf.counted)

    def load(self) -> Load:
        """Tokens that this rank sent to each expert since `begin`, by layer; of ranks that compute the same ones, one tells."""
        repeats = not self.compute.speaks and not self.assembly.sequence_parallel
        return [] if repeats else expert.load(self.compute.module) or []

    def pipeline_seconds(self) -> tuple[float, float]:
        """That this rank computed in a unit, and that the unit's micro-batches took on it; zeros where there is no pipeline."""
        pipeline = self.compute.pipeline
        return (0.0, 0.0) if pipeline is None else (pipeline.busy, pipeline.elapsed)

    def apply(self, grad_norm: float, rate: float, load: Load | None = None, sparsity: float | None = None) -> None:
        """Clip the reduced gradients by their global norm and take one step of the optimizer. load: of the whole unit, by expert.
        sparsity: share of pruned matrices that is to be zero from now on; None where it stays."""
        if (factor := clip_factor(self._clip, grad_norm)) < 1.0:
            self.gradients.scale(factor)
        set_rate(self.optimizer, rate)
        self.optimizer.step()
        if self._pruning is not None:
            self._pruning.follow(sparsity)
        if load:
            expert.follow(self.compute.module, load)
        self.publish()
        devices.synchronize(self.device)

    def state(self) -> dict[str, Any]:
        """Parameters, kept buffers, optimizer state, masks: "model.<path>" and "optimizer.<path>.<name>", the live tensors themselves, or
        Placed ones where this rank holds a part."""
        state = model_state(self.assembly)
        for leaf in self.assembly.trained:
            values = optimizer_state(self.optimizer, [(leaf.path, leaf.parameter)])
            state |= {f"optimizer.{path}": placed(value, self._part_of(path, leaf.part)) for path, value in values.items()}
        return state if self._pruning is None else state | self._pruning.state()

    def state_to_load(self) -> dict[str, Any]:
        """A `state` that is complete before the first step too, to be loaded into and then given to `restore`."""
        create_state(self.optimizer)
        return self.state()

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what was loaded into a state: its tensors are in place already, plain values are not."""
        prefix = "optimizer."
        values = {path.removeprefix(prefix): local_values(value) for path, value in state.items() if path.startswith(prefix)}
        restore_state(self.optimizer, self.parameters.items(), values)
        self.publish()

    @torch.no_grad()
    def start_afresh(self) -> None:
        """Parameters and optimizer state as before the first step."""
        start_afresh(self.assembly, *self._built_from)
        reset_state(self.optimizer)
        if self._pruning is not None:
            self._pruning.begin()
        self.publish()

    def _part_of(self, name: str, part: Part) -> Part:
        """Of a parameter's optimizer state by its name."""
        return part if self._block is None or not name.endswith(eightbit.SCALE) else eightbit.scale_part(part, self._block)

    def publish(self) -> None:
        """Parameters have changed: whoever computes next sees them."""
        if self._shards is not None:
            self._shards.publish()


def _looking(run: spec.Run, module: nn.Module, device: torch.device, mesh: Mesh) -> Looking | None:
    """Ranks of one replica are not to part amid a pass, and a compiler would ask when it compiles."""
    blocks = getattr(module, "blocks", None)
    able = device.type == "cpu" and mesh.ranks == 1 and not run.train.compile
    return Looking(blocks) if able and isinstance(blocks, nn.ModuleList) else None


def _joint(assembly: Assembly) -> Joint | None:
    """For an optimizer that needs whole matrices: the axes that cut them."""
    groups = [group for axis in ("shard", "tensor") if (group := assembly.mesh.group(axis)) is not None]
    return Joint({leaf.parameter: leaf.part for leaf in assembly.trained}, groups) if groups else None
