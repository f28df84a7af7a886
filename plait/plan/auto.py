"""`layout = "auto"`: a first simple rule, without torch. What fits in memory, and of that what sends least.

    replicas alone             gradients travel once a step, behind backward
    shard within replicas      parameters travel too, each micro-batch
    shard over all workers     when a replica needs them all

Counted are parameters, gradients and optimizer state; a fifth of the memory is left to activations and everything else.
"""

from __future__ import annotations

from dataclasses import dataclass

from plait import spec
from plait.errors import RunFileError
from plait.plan import counts

LEFT = 0.8
"""Of a worker's memory, for the state."""
VALUES = {"adamw": 4, "adam": 4, "muon": 4, "sgd": 3}
"""Kept for each parameter by optimizer: itself, its gradient, and what the optimizer remembers."""


@dataclass(frozen=True)
class Choice:
    """layout, and why, for the log."""

    layout: spec.Layout
    why: str


def choose(run: spec.Run, vocabulary: int, workers: int, memory: int) -> Choice:
    """A layout for `workers` processes with `memory` bytes each. Raises RunFileError where the state fits in none."""
    state = state_bytes(run, vocabulary)
    room = int(memory * LEFT)
    for shard in (size for size in range(1, workers + 1) if workers % size == 0):
        if state / shard <= room:
            replicas = min(workers // shard, run.train.largest_batch)
            layout = spec.Layout(replicas=replicas, shard=shard)
            return Choice(layout, _why(layout, state, memory))
    raise RunFileError(
        f'layout = "auto": parameters, gradients and optimizer state take {_gib(state)}, '
        f"and {workers} workers of {_gib(memory)} leave room for {_gib(room * workers)}; use more workers, or a smaller model"
    )


def state_bytes(run: spec.Run, vocabulary: int) -> int:
    """Bytes of parameters, gradients and optimizer state of one whole copy; 0 for a user's own model, which nobody has counted."""
    if run.model.family not in spec.Model.FAMILIES:
        return 0
    width = 8 if run.train.precision == "fp64" else 4
    return counts.parameters(run.model, vocabulary, run.data.sequence) * VALUES.get(run.train.optimizer.name, 4) * width


def _why(layout: spec.Layout, state: int, memory: int) -> str:
    replicas = "1 replica" if layout.replicas == 1 else f"{layout.replicas} replicas"
    spread = f" of shard {layout.shard}" if layout.shard > 1 else ""
    return f"layout auto: {replicas}{spread}; each worker keeps {_gib(state / layout.shard)} of state and has {_gib(memory)}"


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB"
