"""Forward passes: a model with its loss, on its device, in its precision."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from plait import spec
from plait.data import dealing
from plait.data.batches import MicroBatch
from plait.model.cut import Cut, joined
from plait.model.noise import Noise
from plait.replica import context
from plait.replica import device as devices
from plait.replica.assemble import Assembly, kept_paths
from plait.replica.placed import placed
from plait.replica.telling import Sums, telling

if TYPE_CHECKING:
    from plait.replica.pipeline import Pipeline

MEASURED_AT_ONCE = 4  # micro-batches for each rank of a pipeline: enough to keep most of them busy, few enough for their buffers


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
        self._telling = telling(run, assembly, device)
        self.grain = dealing.grain(run)
        self.pipeline = _pipeline(run, assembly, device) if assembly.stages else None

    def loss(self, micro_batch: MicroBatch, learning: bool = True) -> Tensor:
        """The sum of token losses: of this rank's sequences and positions. learning: with dropout, and smoothed targets."""
        inputs = self.inputs(micro_batch, learning)
        with devices.autocast(self.device, self._precision):
            return self._telling.loss(self.module(*inputs.arguments, **inputs.keywords), inputs, learning)

    def learn_in_stages(self, micro_batches: Sequence[MicroBatch], divisor: int) -> Tensor:
        """Forward and backward of all at once, through a pipeline: adds the gradients of (sum of token losses / divisor) and returns the
        sum, on ranks of the last stage."""
        assert self.pipeline is not None
        total = torch.zeros((), dtype=torch.float64, device=self.device)

        def finish(logits_BLV: Tensor, inputs: Inputs) -> Tensor:
            loss = self._telling.loss(logits_BLV, inputs, learning=True)
            total.add_(loss.detach())
            return loss / divisor

        self.pipeline.step([self.inputs(each, learning=True) for each in self.pipeline.filled(micro_batches)], finish)
        return total

    @torch.no_grad()
    def measure(self, micro_batches: Iterable[MicroBatch]) -> Sums:
        """Losses and right guesses, without dropout; on one rank of those that compute the same. Your own model is told by train(False)
        that it is not learning."""
        called = self._assembly.stages or [self.module]
        for module in called:
            module.eval()
        sums = list(self._measured(micro_batches) if self.pipeline is None else self._measured_in_stages(micro_batches))
        for module in called:
            module.train()
        return sum(sums, Sums())

    def _measured(self, micro_batches: Iterable[MicroBatch]) -> Iterator[Sums]:
        for micro_batch in micro_batches:
            inputs = self.inputs(micro_batch, learning=False)
            with devices.autocast(self.device, self._precision):
                yield self.sums_of(self.module(*inputs.arguments, **inputs.keywords), inputs)

    def _measured_in_stages(self, micro_batches: Iterable[MicroBatch]) -> list[Sums]:
        assert self.pipeline is not None
        sums: list[Sums] = []

        def finish(logits_BLV: Tensor, inputs: Inputs) -> Tensor:
            sums.append(self.sums_of(logits_BLV, inputs))
            return logits_BLV.new_zeros(())

        coming = iter(micro_batches)
        while some := list(islice(coming, MEASURED_AT_ONCE * self._mesh.size("pipeline"))):
            self.pipeline.measure([self.inputs(each, learning=False) for each in self.pipeline.filled(some)], finish)
        return sums

    def inputs(self, micro_batch: MicroBatch, learning: bool) -> Inputs:
        """What the model is called with on this rank. learning: with dropout, which follows no padding that is left out."""
        whole = micro_batch.tokens_BL.shape[1]
        micro_batch = self._without_padding(micro_batch)
        cut = self._cut(whole, micro_batch)
        here = slice(None) if cut is None else cut.positions_L.cpu().numpy()
        counted_B = self._tensor(np.any(micro_batch.targets_BL >= 0, 1))
        noise = Noise(self._seed, micro_batch.step, self._tensor(micro_batch.samples_B), cut, counted_B) if learning else None
        documents_BL, segments_BL, values_B = map(self._maybe, (micro_batch.documents_BL, micro_batch.segments_BL, micro_batch.values_B))
        tokens_BL, targets_BL = (self._tensor(whole_BL[:, here]) for whole_BL in (micro_batch.tokens_BL, micro_batch.targets_BL))
        return Inputs(tokens_BL, targets_BL, documents_BL, noise, cut, micro_batch.source, segments_BL, values_B)

    def sums_of(self, outputs_BRO: Tensor, inputs: Inputs) -> Sums:
        """Sums over targets; none on ranks that would only repeat another's."""
        sums = self._telling.sums(outputs_BRO, inputs)
        return sums if self.speaks else Sums(correct=None if sums.correct is None else 0)

    @property
    def speaks(self) -> bool:
        """Whether this rank's sums count: ranks of the tensor axis compute the same ones."""
        return self._mesh.place["tensor"] == 0

    def _without_padding(self, micro_batch: MicroBatch) -> MicroBatch:
        """The places that any of its rows fills."""
        if self.grain is None or micro_batch.filled is None:
            return micro_batch
        length = max(1, -(-micro_batch.filled // self.grain)) * self.grain
        return micro_batch if length >= micro_batch.tokens_BL.shape[1] else micro_batch.beginning(length)

    def _cut(self, whole: int, micro_batch: MicroBatch) -> Cut | None:
        """Of a row of `whole` places or its beginning; of a source and what stands behind it, each by itself."""
        length, source = micro_batch.tokens_BL.shape[1], micro_batch.source
        if length == whole and self._mesh.size("context") == 1 and not self._assembly.sequence_parallel:
            return None
        return joined((self._cut_of(source), self._cut_of(length - source))) if source else self._cut_of(length, whole)

    def _cut_of(self, length: int, whole: int = 0) -> Cut:
        mesh = self._mesh
        positions_L = context.positions(length, *mesh.of("context"), self._context_by).to(self.device)
        stream_S = positions_L.chunk(mesh.size("tensor"))[mesh.place["tensor"]] if self._assembly.sequence_parallel else positions_L
        return Cut(whole or length, positions_L, stream_S, mesh.of("tensor"), filled=length)

    def _maybe(self, array: np.ndarray | None) -> Tensor | None:
        return None if array is None else self._tensor(array)

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self.device, non_blocking=True)


@dataclass(frozen=True)
class Inputs:
    """Of one micro-batch on one rank; documents_BL and segments_BL of whole samples."""

    tokens_BL: Tensor
    targets_BL: Tensor
    documents_BL: Tensor | None
    noise: Noise | None
    cut: Cut | None
    source: int = 0
    segments_BL: Tensor | None = None
    values_B: Tensor | None = None

    @property
    def arguments(self) -> tuple[Any, ...]:
        """A user's own model is called with these alone."""
        return (self.tokens_BL, self.documents_BL) if self.noise is None else (self.tokens_BL, self.documents_BL, self.noise)

    @property
    def keywords(self) -> dict[str, Any]:
        given = {"cut": self.cut, "source": self.source or None, "segments_BL": self.segments_BL}
        return {name: value for name, value in given.items() if value is not None}


def _pipeline(run: spec.Run, assembly: Assembly, device: torch.device) -> Pipeline:
    from plait.replica.pipeline import Pipeline  # torch's takes its time to import

    return Pipeline(assembly.stages, run.layout, assembly.mesh, device, partial(devices.autocast, device, run.train.precision))


def model_state(assembly: Assembly) -> dict[str, Any]:
    """What a checkpoint keeps of the model: parameters and buffers, "model.<path>", the live tensors; Placed ones where this rank holds a
    part."""
    state = assembly.module.state_dict()
    kept = {f"model.{path}": state[path] for path in sorted(kept_paths(assembly.module) - assembly.left_out)}
    leaves = (leaf for leaf in assembly.leaves if leaf.path not in assembly.left_out)
    return kept | {f"model.{leaf.path}": placed(leaf.parameter, leaf.part) for leaf in leaves}
