"""Bare process groups between replicas: one per inner coordinate, remade in each generation.

They are no part of torch.distributed's global world, so that what lives inside a replica never notices them.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from torch.distributed import FileStore, ProcessGroup, Store, TCPStore

from plait.replica.device import backend

TIMEOUT = timedelta(minutes=30)


def local_store(folder: Path, name: str = "store") -> Store:
    """A meeting place for the processes of one host: a file."""
    return FileStore(str(folder / name), -1)


def network_store(host: str, port: int, serving: bool) -> Store:
    """A meeting place for the processes of several hosts."""
    return TCPStore(host, port, None, serving, timeout=TIMEOUT, wait_for_workers=False)


def make_group(store: Store, rank: int, size: int, device: torch.device, loopback: bool) -> ProcessGroup:
    """The group of all replicas. gloo listens on the loopback interface alone where all its members are on one host."""
    make = _nccl if backend(device) == "nccl" else _gloo
    group: ProcessGroup = make(store, rank, size, loopback)
    return group


def _nccl(store: Store, rank: int, size: int, loopback: bool) -> Any:
    return torch.distributed.ProcessGroupNCCL(store, rank, size, torch.distributed.ProcessGroupNCCL.Options())


def _gloo(store: Store, rank: int, size: int, loopback: bool) -> Any:
    gloo: Any = torch.distributed.ProcessGroupGloo
    options = gloo._Options()
    options._timeout = TIMEOUT
    options._threads = 1
    options._devices = [gloo.create_device(hostname="127.0.0.1") if loopback else gloo.create_default_device()]
    return gloo(store, rank, size, options)
