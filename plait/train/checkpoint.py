"""Checkpoints: the state of one replica, written while training goes on, loaded into any layout.

    training   ──step──step──save──step──step──step──step──step──save──
                             │ copy to staging, milliseconds     │ waits, should the last one not be written yet
    background               └─ plan ─ pieces + checksums ─ fsync ─ manifest ─ rename ─ prune

The staging buffers are allocated once and reused; they are page-locked where the tensors live on an accelerator. A state is flat:
"model.<path>" and "optimizer.<path>.<name>" to tensors, Placed ones or DTensors; what is no tensor must be plain JSON data.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from plait.errors import CheckpointError
from plait.replica.placed import Placed
from plait.train import manifest

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from plait.train.pieces import PieceWriter

State = dict[str, Any]
OnSaved = Callable[[int, Path, int, float, float], None]
OnFailed = Callable[[int, str], None]
ASIDE = "sync."
"""What begins so is loaded where it is wanted, and left where it is not: it belongs to how replicas agreed, not to the model."""
_NICENESS = 10  # the writer yields the cores to training
_SHOWN = 8  # names listed before "and n more"


class Checkpoints:
    """Writes checkpoints of a run into `folder`, keeping the `keep` newest.

    on_saved(step, path, bytes, seconds, stalled) and on_failed(step, why) are called in the writer's thread, on the group's first
    rank alone. A save that fails removes what it wrote and leaves the older checkpoints as they are; training goes on. One of a state that
    is not finite fails: what is kept can be gone on from.

    process_group: the ranks that hold the state together; None where one process holds all of it. It must be used by nothing else and
    speak CPU tensors (gloo), since the writer's thread talks in it while training talks in others.
    """

    def __init__(self, folder: Path, keep: int, on_saved: OnSaved, on_failed: OnFailed, process_group: ProcessGroup | None = None) -> None:
        self._folder, self._keep = folder, keep
        self._on_saved, self._on_failed = on_saved, on_failed
        self._group = process_group
        self._staging: dict[str, Tensor] = {}
        self._writer: threading.Thread | None = None

    def save(self, step: int, state: State, about: dict[str, Any]) -> None:
        """Copy the state and return; a thread writes it. A save still being written is waited for first.

        Never raises for what goes wrong in writing. `about` is plain JSON data, told again by `load` and `manifest.about`.
        """
        began = time.perf_counter()
        self.wait()
        if self._first():
            with suppress(OSError):  # what stays is replaced once its step comes again
                manifest.remove_later(self._folder, step)
        tensors = {name: value for name, value in state.items() if _is_tensor(value)}
        scalars = _plain({name: value for name, value in state.items() if name not in tensors})
        staged = self._stage(tensors)
        stalled = time.perf_counter() - began
        job = (step, tensors, staged, scalars, _plain(about), stalled)
        self._writer = threading.Thread(target=self._write, args=job, name=f"checkpoint {step}", daemon=True)
        self._writer.start()

    def wait(self) -> None:
        """Until the save under way, if any, is complete or has failed."""
        if self._writer is not None:
            self._writer.join()
            self._writer = None

    def _stage(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Copies of this rank's parts, in buffers of the last save where they still fit."""
        buffers = {}
        with torch.no_grad():
            for name, tensor in tensors.items():
                part = _local(tensor)
                buffer = self._staging.get(name)
                if buffer is None or buffer.shape != part.shape or buffer.dtype != part.dtype:
                    buffer = torch.empty(part.shape, dtype=part.dtype, pin_memory=part.device.type != "cpu")
                buffers[name] = buffer.copy_(part, non_blocking=True)
        if any(_local(tensor).device.type != "cpu" for tensor in tensors.values()):
            torch.accelerator.current_stream().synchronize()
        self._staging = buffers
        return buffers

    def _write(
        self, step: int, tensors: dict[str, Tensor], staged: dict[str, Tensor], scalars: State, about: dict[str, Any], stalled: float
    ) -> None:
        began = time.perf_counter()
        _be_nice()
        from torch.distributed.checkpoint.api import CheckpointException

        from plait.train.pieces import PieceWriter

        writer = PieceWriter(self._folder, step, about, scalars)
        try:
            self._write_pieces(writer, tensors, staged)
        except (Exception, CheckpointException) as error:  # torch's is a BaseException
            if writer.partial is not None:
                shutil.rmtree(writer.partial, ignore_errors=True)
            if self._first():
                self._on_failed(step, f"{self._folder / manifest.name(step)}: {_cause(error)}")
            return
        if writer.written is not None:
            whole, path = writer.written
            with suppress(OSError):  # what could not be removed is tried again after the next save
                manifest.prune(self._folder, step, self._keep)
            self._on_saved(step, path, whole.bytes, time.perf_counter() - began, stalled)

    def _write_pieces(self, writer: PieceWriter, tensors: dict[str, Tensor], staged: dict[str, Tensor]) -> None:
        from torch.distributed.checkpoint.state_dict_saver import save

        from plait.train.pieces import StagedPlanner

        with torch.no_grad():
            save(
                tensors,
                storage_writer=writer,
                planner=StagedPlanner(tensors, staged),
                process_group=self._group,
                no_dist=self._group is None,
            )

    def _first(self) -> bool:
        return self._group is None or self._group.rank() == 0


def load(path: Path, state: State, only: str = "", elsewhere: Collection[str] = ()) -> dict[str, Any]:
    """Load a checkpoint into the state's tensors, in place, whatever layout either has; returns what was told `about` it.

    only: compare and load the names with this prefix alone ("model." to evaluate). elsewhere: paths of parameters that other ranks
    hold, which are no matter here. Entries of the state that are no tensors are
    replaced in the dict. Each rank reads for itself what its parts overlap; no rank waits for another.
    Raises CheckpointError: no complete checkpoint, tensors missing or left over (listed), shapes or dtypes that differ (both named), a
    damaged file (named). Checksums are compared before the first value is copied.
    """
    from torch.distributed.checkpoint import state_dict_loader
    from torch.distributed.checkpoint.api import CheckpointException

    from plait.train.pieces import PieceReader, PlacedPlanner

    whole = manifest.read(path)
    wanted = {name: value for name, value in state.items() if name.startswith(only)}
    there = {name for name in names(whole) if name.startswith(only) and not _of(name, elsewhere)}
    _compare(path, whole, wanted, {name for name in there if name in wanted or not name.startswith(ASIDE)})
    tensors = {name: value for name, value in wanted.items() if _is_tensor(value)}
    try:
        state_dict_loader.load(tensors, storage_reader=PieceReader(path, whole), planner=PlacedPlanner(), no_dist=True)
    except CheckpointException as error:
        cause = next(iter(error.failures.values()))[0]
        raise cause if isinstance(cause, CheckpointError) else CheckpointError(f"{path}: cannot be loaded: {cause}") from cause
    state.update({name: whole.scalars[name] for name in wanted if name not in tensors})
    return whole.about


def _compare(path: Path, whole: manifest.Manifest, state: State, there: set[str]) -> None:
    wrong = [
        f"{name}: {_kind(entry.shape, entry.dtype)} there, {_kind(state[name].shape, str(state[name].dtype))} here"
        for name, entry in whole.tensors.items()
        if _is_tensor(state.get(name)) and _kind(entry.shape, entry.dtype) != _kind(state[name].shape, str(state[name].dtype))
    ]
    wrong += [f"{name}: a tensor in one and plain data in the other" for name in there & state.keys() if _differs(whole, name, state[name])]
    wrong += _listed("missing there", state.keys() - there) + _listed("there, but not here", there - state.keys())
    if wrong:
        raise CheckpointError(f"{path}: is a checkpoint of another model:\n  " + "\n  ".join(wrong[: _SHOWN * 2]))


def names(whole: manifest.Manifest) -> set[str]:
    """Of all that a checkpoint holds."""
    return {*whole.tensors, *whole.scalars}


def _of(name: str, paths: Collection[str]) -> bool:
    """Whether a name is a parameter of these paths or its optimizer state: "model.<path>", "optimizer.<path>.<name>"."""
    kind, _, rest = name.partition(".")
    return (rest if kind == "model" else rest.rpartition(".")[0]) in paths


def _listed(what: str, names: set[str]) -> list[str]:
    shown = ", ".join(sorted(names)[:_SHOWN])
    return [f"{what}: {shown}" + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")] if names else []


def _differs(whole: manifest.Manifest, name: str, value: Any) -> bool:
    return _is_tensor(value) != (name in whole.tensors)


def _kind(shape: Any, dtype: str) -> str:
    return f"{list(shape)} {dtype.removeprefix('torch.')}"


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor | Placed)


def _local(tensor: Tensor) -> Tensor:
    """This rank's part: DTensors are told by their method, since importing their class is slow."""
    to_local: Callable[[], Tensor] | None = getattr(tensor, "to_local", None)
    return tensor if to_local is None else to_local()


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """A copy that later changes do not reach. Raises TypeError for what JSON cannot hold."""
    copied: dict[str, Any] = json.loads(json.dumps(values))
    return copied


def _be_nice() -> None:
    if sys.platform == "linux":  # only there has each thread a priority of its own
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)


def _cause(error: BaseException) -> str:
    """What went wrong, out of torch's wrapping: the error of the first rank that failed."""
    failures = getattr(error, "failures", {})
    first = next(iter(failures.values()))[0] if failures else error
    return str(first) if isinstance(first, OSError | CheckpointError) else f"{type(first).__name__}: {first}"
