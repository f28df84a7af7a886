"""All of a replica's model on each of its ranks, for what one process does with it: texts that are written token by token.

    rank 0   a b . . . .     what it counts of a parameter, zeros elsewhere
    rank 1   . . c d . .                                                        summed ─► a b c d e f on each
    rank 2   . . . . e f

Each value is counted by one rank of a replica, whatever the layout, and zeros change no sum: values are the same to the bit.
"""

from __future__ import annotations

import torch
import torch.distributed
from torch import nn

from plait import spec
from plait.replica.assemble import Assembly, room


@torch.no_grad()
def gathered(run: spec.Run, assembly: Assembly, device: torch.device) -> nn.Module:
    """The whole model: the module itself where a rank has all of it, and otherwise a copy, parameter by parameter. All ranks of the replica
    call this together. Buffers are those of a model that learns nothing in them."""
    if assembly.mesh.ranks == 1:
        return assembly.module
    whole = room(run, assembly.outputs, device)
    counted = {leaf.path: leaf for leaf in assembly.leaves if leaf.counted}
    for path, parameter in whole.named_parameters():
        parameter.zero_()
        if path in counted:
            counted[path].part.put(counted[path].parameter, parameter)
        torch.distributed.all_reduce(parameter.detach())
    return whole
