"""What this machine has, and what of plait will and will not work on it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from plait import __version__
from plait.cluster import environment
from plait.errors import UserError

State = Literal["ok", "limited", "missing"]
_EXTRAS = {
    "pyarrow": ("Parquet corpora", "parquet"),
    "sentencepiece": ("SentencePiece tokenizers", "sentencepiece"),
    "tiktoken": ("tiktoken tokenizers", "tiktoken"),
    "wandb": ("Weights & Biases", "wandb"),
    "mlflow": ("MLflow", "mlflow"),
}
_ENOUGH_DISK = 5 * 2**30


@dataclass(frozen=True)
class Finding:
    topic: str
    found: str
    state: State
    meaning: str


def examine(folder: Path) -> list[Finding]:
    """One finding for each thing that a run may need; `folder` is where runs would be kept."""
    return [_versions(), _cores(), _memory(), _disk(folder), *_devices(), *_backends(), _loopback(), _launcher(), *_extras()]


def _versions() -> Finding:
    found = f"plait {__version__}, Python {platform.python_version()}, torch {torch.__version__}"
    return Finding("versions", found, "ok", f"{platform.system()} {platform.machine()}")


def _cores() -> Finding:
    cores = len(os.sched_getaffinity(0))
    fast = [name for name in ("avx512_bf16", "amx_bf16") if name in _cpu_flags()]
    meaning = f"bf16 in hardware ({', '.join(fast)})" if fast else "no bf16 in hardware: fp32 is faster here"
    return Finding("cores", str(cores), "ok", f"up to {cores} replicas on this host; {meaning}")


def _memory() -> Finding:
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Finding("memory", f"{total / 2**30:.1f} GiB", "ok", f"{free / 2**30:.1f} GiB free")


def _disk(folder: Path) -> Finding:
    there = next(path for path in (folder, *folder.resolve().parents) if path.exists())
    free = shutil.disk_usage(there).free
    if not os.access(there, os.W_OK):
        return Finding("disk", str(there), "missing", "cannot be written: choose another --out")
    state: State = "ok" if free >= _ENOUGH_DISK else "limited"
    return Finding("disk", f"{free / 2**30:.1f} GiB free", state, f"in {there}" if state == "ok" else "room for small models only")


def _devices() -> list[Finding]:
    if not torch.cuda.is_available():
        return [Finding("GPU", "none", "limited", "training on CPU; models above some 100M parameters will be slow")]
    return [
        Finding(
            "GPU",
            torch.cuda.get_device_name(index),
            "ok" if torch.cuda.is_bf16_supported() else "limited",
            f"{torch.cuda.get_device_properties(index).total_memory / 2**30:.0f} GiB"
            + ("" if torch.cuda.is_bf16_supported() else "; no bf16: use fp32"),
        )
        for index in range(torch.cuda.device_count())
    ]


def _backends() -> list[Finding]:
    distributed = torch.distributed
    gloo = distributed.is_available() and distributed.is_gloo_available()
    nccl = distributed.is_available() and distributed.is_nccl_available()
    return [
        Finding("gloo", "built in" if gloo else "not in this torch", "ok" if gloo else "missing", "replicas on CPUs"),
        Finding(
            "NCCL",
            "built in" if nccl else "not in this torch",
            "limited" if nccl else "missing",
            "replicas on GPUs; written, not yet tested on several GPUs" if nccl else "replicas on GPUs need a CUDA build of torch",
        ),
    ]


def _loopback() -> Finding:
    try:
        with socket.create_server(("127.0.0.1", 0)):
            return Finding("loopback", "127.0.0.1", "ok", "replicas on this host can meet")
    except OSError as error:
        return Finding("loopback", str(error.strerror), "missing", "more than one replica cannot work here")


def _launcher() -> Finding:
    try:
        world = environment.read()
    except UserError as error:
        return Finding("launcher", "half set", "missing", str(error))
    if world is None:
        found = [name for name in ("torchrun", "srun", "mpirun") if shutil.which(name)]
        return Finding("launcher", "local", "ok", "this host; also found: " + (", ".join(found) or "none"))
    return Finding("launcher", world.launcher, "ok", f"process {world.rank} of {world.size}")


def _extras() -> list[Finding]:
    return [_extra(module, what, extra) for module, (what, extra) in _EXTRAS.items()]


def _extra(module: str, what: str, extra: str) -> Finding:
    if importlib.util.find_spec(module) is None:
        return Finding(module, "not installed", "limited", f"{what}: pip install 'plait[{extra}]'")
    return Finding(module, _version_of(module), "ok", what)


def _version_of(module: str) -> str:
    distributions = importlib.metadata.packages_distributions().get(module, [module])
    return importlib.metadata.version(distributions[0])


def _cpu_flags() -> str:
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""
