"""The device seam: the one place that asks what is computed on."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import sys
import time
from typing import Literal

import torch

from plait import spec
from plait.errors import UserError

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h


def choose(wanted: spec.Device, local_rank: int) -> torch.device:
    """The device of a worker. Raises UserError where there is none of the wanted kind."""
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError('cluster.device = "cuda", but torch sees no GPU here; use "auto" or "cpu"')
    if local_rank >= torch.cuda.device_count():
        raise UserError(f"this host has {torch.cuda.device_count()} GPUs and was given worker {local_rank}; lower layout.replicas")
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device


def backend(device: torch.device) -> Literal["gloo", "nccl"]:
    """The collectives that serve a device."""
    return "nccl" if device.type == "cuda" else "gloo"


def name(device: torch.device) -> str:
    """What `plan.hardware` knows a device by."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def set_threads(threads: int | None, workers_here: int) -> int:
    """Share the host's cores among its workers; OMP_NUM_THREADS, where it is set, was someone's choice. Returns the number."""
    if threads is None and "OMP_NUM_THREADS" in os.environ:
        return torch.get_num_threads()
    number = threads or max(1, len(os.sched_getaffinity(0)) // workers_here)
    torch.set_num_threads(number)
    return number


def keep_freed_memory() -> None:
    """Have glibc keep what is freed for the next step instead of giving it back to the system.

    Large tensors are otherwise mapped anew, page by page, in each step: thousands of faults, 4 to 8% of a step of a small model
    on a CPU. Other C libraries are left as they are.
    """
    with contextlib.suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)


def synchronize(device: torch.device) -> None:
    """Wait until what was launched is done, so that a clock read afterwards is true."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


Mark = float | torch.cuda.Event


def mark(device: torch.device) -> Mark:
    """A point in what a device does: on a GPU when it has come so far, as nobody waits for it."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def between(began: Mark, ended: Mark) -> float:
    """Seconds from one mark to a later one of the same device; waits for that."""
    if isinstance(began, float):
        assert isinstance(ended, float)
        return ended - began
    assert not isinstance(ended, float)
    ended.synchronize()
    return float(began.elapsed_time(ended)) / 1e3


def peak_memory(device: torch.device) -> int:
    """Peak bytes: of the allocator on a GPU, resident on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def free_memory(device: torch.device) -> int:
    """Bytes that can still be had."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[object]:
    """bf16 computes in bf16 on fp32 parameters; other precisions compute in what the parameters are."""
    if precision == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()


def dtype(precision: str) -> torch.dtype:
    """What parameters, gradients and optimizer state are kept in."""
    return torch.float64 if precision == "fp64" else torch.float32
