"""Models side by side: what each takes on disk, how fast it reads and writes, how well it tells.

Models take turns, several times, and the best time of each counts, so that what else the machine does is no model's fault alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from plait import spec
from plait.data.batches import EvaluationBatches, MicroBatch
from plait.errors import CheckpointError, DataError
from plait.model.decode import Step, prefill
from plait.model.decoder import Decoder
from plait.model.int8 import Rounded
from plait.replica import device as devices
from plait.tasks.evaluate import check_split, data_of, micro_batch_of
from plait.tasks.trained import Trained, load
from plait.train import manifest

TURNS = 3
WRITTEN = 48
"""Most tokens of a turn."""


@dataclass(frozen=True)
class Weighed:
    """bytes: of parameters and buffers on disk, without optimizer state. zeros: share of the parameters. reads, writes: tokens/s of reading
    a split in micro-batches, and of writing one text; None where a model writes none, or there is no data. loss: nats a token."""

    folder: str
    step: int
    bytes: int
    parameters: int
    zeros: float
    reads: float | None
    writes: float | None
    loss: float | None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def weigh(folders: Sequence[str | Path], split: str = "validation", limit: int | None = 64, device: spec.Device = "auto") -> list[Weighed]:
    """Each folder's newest checkpoint. limit: sequences of the split, all when None. Raises UserError,
    CheckpointError."""
    check_split(split)
    scales = [_Scale(load(folder, device), split, limit) for folder in folders]
    devices.set_threads(scales[0].trained.run.cluster.threads, 1)
    for _ in range(TURNS):
        for scale in scales:
            scale.turn()
    return [scale.weighed() for scale in scales]


class _Scale:
    """One model, with the best times so far."""

    def __init__(self, trained: Trained, split: str, limit: int | None) -> None:
        self.trained = trained
        self._device = trained.compute.device
        self._batches = _batches(trained, split, limit)
        self._loss: float | None = None
        self._reading = self._writing = 0.0

    def turn(self) -> None:
        if self._batches is not None:
            self._reading = max(self._reading, self._read(self._batches))
        if isinstance(self.trained.module, Decoder):
            self._writing = max(self._writing, self._write(self.trained.module))

    def weighed(self) -> Weighed:
        path = manifest.candidates(self.trained.folder / "checkpoints")[0]
        entries = [entry for name, entry in manifest.read(path).tensors.items() if name.startswith("model.")]
        module = self.trained.module
        weights = [*module.parameters(), *(part.weight for part in module.modules() if isinstance(part, Rounded))]
        values = {value.data_ptr(): value for value in weights}.values()  # what is tied counts once
        parameters = sum(value.numel() for value in values)
        return Weighed(
            folder=str(self.trained.folder),
            step=self.trained.step,
            bytes=sum(torch.Size(entry.shape).numel() * _size(entry.dtype) for entry in entries),
            parameters=parameters,
            zeros=1 - sum(int(value.count_nonzero()) for value in values) / parameters,
            reads=self._reading or None,
            writes=self._writing or None,
            loss=self._loss,
        )

    def _read(self, batches: EvaluationBatches) -> float:
        """Tokens/s; the loss is the same each time."""
        size = micro_batch_of(self.trained)
        read = [batches.read(first, min(first + size, batches.size)) for first in range(0, batches.size, size)]
        sums, seconds = self._timed(lambda: self.trained.compute.measure(read))
        self.trained.module.eval()
        self._loss = sums.loss / sums.targets
        return _tokens(read) / seconds

    @torch.inference_mode()
    def _write(self, module: Decoder) -> float:
        tokens = min(WRITTEN, module.context - 1)
        step, cache = Step(module), module.new_cache(1, tokens + 1)
        begin = torch.tensor([[self.trained.tokenizer.end_of_text]], device=self._device)
        newest = prefill(module, begin, cache).argmax(-1)

        def write() -> None:
            last = newest
            for _ in range(tokens):
                last = step(last, cache).argmax(-1)

        return tokens / self._timed(write)[1]

    def _timed(self, work: Callable[[], Any]) -> tuple[Any, float]:
        devices.synchronize(self._device)
        began = time.perf_counter()
        result = work()
        devices.synchronize(self._device)
        return result, time.perf_counter() - began


def _batches(trained: Trained, split: str, limit: int | None) -> EvaluationBatches | None:
    """None where the data is not at hand: a model that was imported has none."""
    try:
        return EvaluationBatches(data_of(trained.folder, trained.run).split(split, trained.run.data.sequence), limit)
    except (CheckpointError, DataError):
        return None


def _tokens(read: Sequence[MicroBatch]) -> int:
    return sum(micro_batch.tokens_BL.size for micro_batch in read)


def _size(dtype: str) -> int:
    return int(getattr(torch, dtype.removeprefix("torch.")).itemsize)
