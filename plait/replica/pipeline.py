"""The pipeline axis: micro-batches flow through stages of the model, in the order of a schedule.

    2 ranks, 4 micro-batches          F forward, B backward, · waiting
    gpipe    0   F0 F1 F2 F3 ·  ·  B0 B0 B1 B1 B2 B2 B3 B3
             1   ·  F0 F1 F2 F3 B0 B0 B1 B1 B2 B2 B3 B3 ·  ·
    1f1b     0   F0 F1 ·  ·  B0 B0 F2 ·  B1 B1 F3 ·  B2 B2 ·  B3 B3
             1   ·  F0 B0 B0 F1 B1 B1 ·  F2 B2 B2 ·  F3 B3 B3 ·  ·

Orders and sends are those of torch.distributed.pipelining; stages.py cuts the model. What is here: units of any number of micro-batches
padded to what a schedule takes, buffers kept from unit to unit, and the bubble measured.

Sources: Huang et al. 2019 (GPipe); Narayanan et al. 2021 (1F1B, interleaved); Qi et al. 2023 (zero bubble).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
import torch.distributed
from torch import Tensor, nn
from torch.distributed.pipelining import (
    PipelineStage,
    Schedule1F1B,
    ScheduleGPipe,
    ScheduleInterleaved1F1B,
    ScheduleInterleavedZeroBubble,
)

from plait import spec
from plait.data.batches import NO_TARGET, MicroBatch
from plait.replica.mesh import Mesh
from plait.replica.stages import Context, Finish, Stage, Unit, stages_of_rank

if TYPE_CHECKING:
    from plait.replica.compute import Inputs

ENGINES = 4  # shapes of units whose buffers are kept: of training and of evaluating, and a last smaller one of each
_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class Pipeline:
    """Runs the micro-batches of a unit through the stages of all ranks along the pipeline, each of which calls it alike.

    busy, elapsed: seconds of the last `step` in which this rank computed, and that it took here.
    """

    def __init__(
        self, modules: Sequence[nn.Module], layout: spec.Layout, mesh: Mesh, device: torch.device, context: Context = nullcontext
    ) -> None:
        group = mesh.group("pipeline")
        assert group is not None
        self._group, self._place, self._device = group, mesh.place["pipeline"], device
        self._layout = layout
        self._unit = Unit(context=context)
        self._modules = list(modules)
        for module in self._modules:
            cast(Stage, module).unit = self._unit
        self._engine = lru_cache(maxsize=ENGINES)(self._build)
        self._clock = _Stopwatch(device)
        self.busy = self.elapsed = 0.0

    def filled(self, micro_batches: Sequence[MicroBatch]) -> list[MicroBatch]:
        """As many micro-batches as the schedule takes, of equally many rows: what is added has no targets, and changes no sum."""
        if not micro_batches:
            return []
        rows = max(len(micro_batch.samples_B) for micro_batch in micro_batches)
        even = [_with_rows(micro_batch, rows) for micro_batch in micro_batches]
        return even + [even[-1].without_targets()] * (count_taken(self._layout, len(even)) - len(even))

    def step(self, inputs: Sequence[Inputs], finish: Finish) -> None:
        """Forward and backward: gradients of the sum of what `finish` makes are added up. It is called where the last stage is."""
        self.busy = self.elapsed = 0.0
        if inputs:
            engine = self._engine_for(inputs, learning=True)
            with self._under_way(inputs, finish), self._clock:
                engine.run()
            self.busy, self.elapsed = engine.computing.take(), self._clock.take()

    @torch.no_grad()
    def measure(self, inputs: Sequence[Inputs], finish: Finish) -> None:
        """Forward alone."""
        if inputs:
            engine = self._engine_for(inputs, learning=False)
            with self._under_way(inputs, finish):
                engine.run()

    def _engine_for(self, inputs: Sequence[Inputs], learning: bool) -> _Engine:
        if self._unit.like is None:
            self._unit.like = self._look(inputs)
        return self._engine(len(inputs), len(inputs[0].tokens_BL), learning)

    def _build(self, count: int, rows: int, learning: bool) -> _Engine:
        assert self._unit.like is not None
        shape, dtype = self._unit.like
        x = torch.empty(rows, *shape, dtype=dtype, device="meta", requires_grad=True)
        return _Engine(self._modules, self._layout, self._place, self._group, self._device, x, count, learning)

    @torch.no_grad()
    def _look(self, inputs: Sequence[Inputs]) -> tuple[torch.Size, torch.dtype]:
        """What travels, rows aside: tried once on the first stage, and told to all, so that no step needs to find out."""
        told = torch.zeros(16, dtype=torch.int64, device=self._device)
        if self._place == 0:
            with self._under_way(inputs[:1]):
                x = self._modules[0](torch.zeros(1), torch.zeros(1))
            told[: 1 + x.ndim] = torch.tensor([_DTYPES.index(x.dtype), x.ndim - 1, *x.shape[1:]])
        torch.distributed.broadcast(told, group=self._group, group_src=0)
        dtype, dims, *sizes = told.tolist()
        return torch.Size(sizes[:dims]), _DTYPES[dtype]

    @contextmanager
    def _under_way(self, inputs: Sequence[Inputs], finish: Finish | None = None) -> Iterator[None]:
        self._unit.inputs, self._unit.finish = inputs, finish
        try:
            yield
        finally:
            self._unit.inputs, self._unit.finish = (), None


def count_taken(layout: spec.Layout, micro_batches: int) -> int:
    """How many a schedule takes in place of so many: with two stages a rank they come in rounds of one size, of P or more each."""
    if spec.stages_of(layout) > layout.pipeline:
        while micro_batches % max(1, micro_batches // layout.pipeline):
            micro_batches += 1
    return micro_batches


class _Engine:
    """torch's stages and schedule for so many micro-batches of one shape, with the buffers that they receive into."""

    def __init__(
        self,
        modules: Sequence[nn.Module],
        layout: spec.Layout,
        place: int,
        group: torch.distributed.ProcessGroup,
        device: torch.device,
        x: Tensor,
        count: int,
        learning: bool,
    ) -> None:
        self.computing = _Stopwatch(device)
        self._numbers = torch.arange(count)
        total = spec.stages_of(layout)
        stages = []
        for number, module in zip(stages_of_rank(place, layout), modules, strict=True):
            # With what goes in and out told beforehand torch need not try a forward and a backward first.
            comes = self._numbers[:1] if number == 0 else x
            stages.append(_TimedStage(self.computing, module, number, total, device, input_args=comes, output_args=x, group=group))
        schedule = _schedule(layout, stages, count)
        self._run = schedule.step if learning else schedule.eval

    def run(self) -> None:
        self._run(self._numbers, target=self._numbers, return_outputs=False, number=self._numbers)


def _schedule(layout: spec.Layout, stages: list[Any], count: int) -> Any:
    settings: dict[str, Any] = {"loss_fn": lambda scalar, number: scalar, "scale_grads": False}
    if layout.schedule == "interleaved":
        return ScheduleInterleaved1F1B(stages, count, **settings)
    if layout.schedule == "zero_bubble":
        return ScheduleInterleavedZeroBubble(stages, count, **settings)
    # Below as many micro-batches as stages 1F1B is GPipe, and torch's refuses.
    kind = ScheduleGPipe if layout.schedule == "gpipe" or count < layout.pipeline else Schedule1F1B
    return kind(stages[0], count, **settings)


class _TimedStage(PipelineStage):
    """A stage that knows how long it computed; what it waits for in sending and receiving is not in it."""

    def __init__(self, computing: _Stopwatch, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._computing = computing

    def _post_metadata_inference_cleanup(self) -> None:
        """Nothing was tried before the first step, and gradients, which torch would forget here, are views of a bucket."""

    def forward_one_chunk(self, *arguments: Any, **keywords: Any) -> Any:
        with self._computing:
            return super().forward_one_chunk(*arguments, **keywords)

    def backward_one_chunk(self, *arguments: Any, **keywords: Any) -> Any:
        with self._computing:
            return super().backward_one_chunk(*arguments, **keywords)

    def backward_weight_one_chunk(self, *arguments: Any, **keywords: Any) -> Any:
        with self._computing:
            return super().backward_weight_one_chunk(*arguments, **keywords)

    def perform_reduce_grad(self, *arguments: Any, **keywords: Any) -> Any:
        with self._computing:
            return super().perform_reduce_grad(*arguments, **keywords)


class _Stopwatch:
    """Adds up the seconds between entering and leaving, on a GPU as its stream sees them."""

    def __init__(self, device: torch.device) -> None:
        self._events = device.type == "cuda"
        self._marks: list[tuple[Any, Any]] = []
        self._began: Any = None

    def __enter__(self) -> None:
        self._began = self._mark()

    def __exit__(self, *_: object) -> None:
        self._marks.append((self._began, self._mark()))

    def take(self) -> float:
        """The seconds since the last call."""
        if self._events and self._marks:
            self._marks[-1][1].synchronize()
            seconds = sum(began.elapsed_time(ended) / 1000 for began, ended in self._marks)
        else:
            seconds = sum(ended - began for began, ended in self._marks)
        self._marks.clear()
        return float(seconds)

    def _mark(self) -> Any:
        if not self._events:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def _with_rows(micro_batch: MicroBatch, rows: int) -> MicroBatch:
    """Filled up with rows that have no targets."""
    more = rows - len(micro_batch.samples_B)
    if not more:
        return micro_batch

    def filled(array: np.ndarray, value: int) -> np.ndarray:
        return np.concatenate([array, np.full((more, *array.shape[1:]), value, dtype=array.dtype)])

    def zeros(array: np.ndarray | None) -> np.ndarray | None:
        return None if array is None else filled(array, 0)

    return replace(
        micro_batch,
        tokens_BL=filled(micro_batch.tokens_BL, 0),
        targets_BL=filled(micro_batch.targets_BL, NO_TARGET),
        samples_B=filled(micro_batch.samples_B, 0),
        documents_BL=zeros(micro_batch.documents_BL),
        segments_BL=zeros(micro_batch.segments_BL),
        values_B=zeros(micro_batch.values_B),
    )
