"""`micro_batch = "auto"`: the largest that fits, from the bytes that backward keeps for one sequence more."""

from __future__ import annotations

import torch
import torch.distributed
from torch import Tensor

from plait.data.batches import MicroBatch
from plait.replica import device as devices
from plait.replica.replica import Replica

HEADROOM = 0.8
"""Of the free memory that may be used: allocators round up, and others live on the host."""
TRANSIENT = 1.5
"""What forward and backward hold beside what is saved between them, as a factor."""


def largest_micro_batch(replica: Replica, sample: MicroBatch, most: int, workers_here: int) -> int:
    """The largest power of two of sequences up to `most` (or `most` itself) that fits in this worker's part of the memory.

    `sample` is one or two sequences, run forward once; gradients stay untouched.
    """
    sequences = len(sample.samples_B)
    per_sequence = saved_bytes(replica, sample) * TRANSIENT / sequences
    free = devices.free_memory(replica.device) * HEADROOM
    if replica.device.type == "cpu":
        free /= workers_here
    fitting = _least(max(1, int(free // per_sequence)), replica)
    return most if fitting >= most else 1 << (fitting.bit_length() - 1)


def _least(number: int, replica: Replica) -> int:
    """The least over the replica's ranks, which cut the same micro-batches."""
    if replica.mesh.ranks == 1:
        return number
    least = torch.tensor(number, device=replica.device)
    torch.distributed.all_reduce(least, torch.distributed.ReduceOp.MIN)
    return int(least)


def saved_bytes(replica: Replica, micro_batch: MicroBatch) -> int:
    """Bytes that autograd keeps between forward and backward of a micro-batch, each storage counted once, parameters left out."""
    kept: dict[int, int] = {}
    parameters = {leaf.parameter.untyped_storage().data_ptr() for leaf in replica.assembly.leaves}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = replica.compute.loss(micro_batch)
    del loss
    return sum(kept.values())
