"""The mesh: the ranks of one replica, and the only place that makes groups of them.

    rank = (((pipeline * S + shard) * C + context) * T + tensor) * E + expert

    pipeline 2 x tensor 2      tensor 0   tensor 1
              stage 0           rank 0     rank 1        groups "tensor": (0 1), (2 3)
              stage 1           rank 2     rank 3        groups "pipeline": (0 2), (1 3)

A replica is a torch.distributed world of its own: FSDP2, pipelining and checkpoints hold nothing else, and never notice how
many replicas there are.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, cast

import torch
import torch.distributed
from torch.distributed import ProcessGroup, Store

from plait import spec
from plait.replica.device import backend

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

AXES = spec.Layout.INNER
TIMEOUT = timedelta(minutes=30)


@dataclass(frozen=True)
class Mesh:
    """This rank's place: `sizes` and `place` by axis.

    writers: all ranks, once more, for the thread that writes checkpoints: it talks while training does (gloo). ends: the first and the
    last rank of this one's pipeline, where it is one of them. `devices` and `writers` are None for a replica of one rank.
    """

    sizes: dict[str, int]
    place: dict[str, int]
    devices: DeviceMesh | None = None
    writers: ProcessGroup | None = None
    ends: ProcessGroup | None = None

    @property
    def ranks(self) -> int:
        return math.prod(self.sizes.values())

    @property
    def rank(self) -> int:
        number = 0
        for axis in AXES:
            number = number * self.sizes[axis] + self.place[axis]
        return number

    def size(self, axis: str) -> int:
        return self.sizes[axis]

    def group(self, axis: str) -> ProcessGroup | None:
        """The ranks that differ from this one along `axis` alone, or "ends" of the pipeline among them; None where there is no other."""
        if axis == "ends":
            return self.ends
        if self.sizes[axis] == 1 or self.devices is None:
            return None
        return self.devices.get_group(axis)

    @property
    def lane(self) -> tuple[int, int]:
        """(this rank's, how many): ranks of other lanes compute other sequences of a micro-batch."""
        return self.place["shard"] * self.sizes["expert"] + self.place["expert"], self.sizes["shard"] * self.sizes["expert"]

    def of(self, axis: str) -> tuple[int, int]:
        """(this rank's place along the axis, its length)."""
        return self.place[axis], self.sizes[axis]


ALONE = Mesh(dict.fromkeys(AXES, 1), dict.fromkeys(AXES, 0))


def make_mesh(layout: spec.Layout, rank: int, store: Store, device: torch.device, loopback: bool) -> Mesh:
    """Join the replica's world as `rank` and make its groups. `store` is this replica's own. For a replica of one rank: nothing to do."""
    sizes = {axis: getattr(layout, axis) for axis in AXES}
    if layout.ranks == 1:
        return ALONE
    from torch.distributed.device_mesh import init_device_mesh

    if loopback:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    # What is offloaded rests on the host, where gloo alone can sum it.
    serving = "cpu:gloo,cuda:nccl" if layout.offload and device.type == "cuda" else backend(device)
    torch.distributed.init_process_group(serving, store=store, rank=rank, world_size=layout.ranks, timeout=TIMEOUT)
    devices = init_device_mesh(device.type, tuple(sizes.values()), mesh_dim_names=AXES)
    writers = torch.distributed.new_group(backend="gloo")
    return Mesh(sizes, spec.place_of(rank, sizes), devices, writers, _make_ends(layout) if layout.pipeline > 1 else None)


def leave_mesh(mesh: Mesh) -> None:
    """Close the replica's world."""
    if mesh.devices is not None:
        torch.distributed.destroy_process_group()


def _make_ends(layout: spec.Layout) -> ProcessGroup | None:
    """Ranks of one stage are neighbours: the first of a pipeline is one of the first so many, the last of the last."""
    of_stage = layout.ranks // layout.pipeline
    pairs = [[rank, rank + layout.ranks - of_stage] for rank in range(of_stage)]
    mine, _ = torch.distributed.new_subgroups_by_enumeration(pairs)
    return cast("ProcessGroup | None", mine)
