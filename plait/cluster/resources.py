"""What this host, or the world that a launcher made, has to train on; without torch."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass

from plait import spec
from plait.cluster.environment import World


@dataclass(frozen=True)
class Resources:
    """workers: processes that a run may take. memory: bytes for each."""

    workers: int
    memory: int


def here(cluster: spec.Cluster, world: World | None = None) -> Resources:
    """One worker a GPU, or a core where there is none; under a launcher as many as it started."""
    gpus = [] if cluster.device == "cpu" else _gpu_memory()
    if gpus:
        return Resources(len(gpus) if world is None else world.size, min(gpus))
    cores = len(os.sched_getaffinity(0))
    here = cores if world is None else world.local_size
    return Resources(cores if world is None else world.size, _free_memory() // here)


def _gpu_memory() -> list[int]:
    """Bytes of each GPU that torch would see here."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    chosen = [] if visible is None else ["-i", visible]
    command = ["nvidia-smi", *chosen, "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
        return [int(line) * 2**20 for line in told.split()]
    except (OSError, ValueError, subprocess.SubprocessError):
        return []


def _free_memory() -> int:
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
