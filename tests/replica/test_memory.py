"""Steady steps: what ranks send one another lies where it lay, and resident memory stays flat."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from plait import spec
from plait.replica import device as devices
from plait.replica.mesh import make_mesh
from plait.replica.replica import Replica
from plait.replica.transport import POOL
from plait.sync.group import local_store
from plait.testing.processes import run_distributed
from tests.replica.test_tensor import VOCABULARY, micro_batch, run_of

SETTLED, STEPS = 100, 300


def steady(rank: int, size: int, group: Any, place: str, layout: dict[str, int]) -> dict[str, float]:
    devices.keep_freed_memory()
    run = run_of(layers=2, width=64)
    mesh = make_mesh(spec.Layout(**layout), rank, local_store(Path(place)), torch.device("cpu"), loopback=True)
    replica = Replica(run.model_copy(update={"layout": spec.Layout(**layout)}), VOCABULARY, torch.device("cpu"), mesh)
    buckets = [bucket.data_ptr() for bucket in replica.gradients.buckets]
    before = (0, 0)
    for step in range(STEPS):
        replica.begin(100, 2)
        for _ in range(2):
            replica.accumulate(micro_batch())
        replica.finish()
        replica.apply(1.0, 1e-4)
        if step == SETTLED:
            before = resident(), POOL.size
    return {
        "resident": (resident() - before[0]) / before[0],
        "pool": POOL.size - before[1],
        "buckets": sum(was != bucket.data_ptr() for was, bucket in zip(buckets, replica.gradients.buckets, strict=True)),
        "of": POOL.size,
    }


def resident() -> int:
    return int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0]) * 1024


@pytest.mark.slow
@pytest.mark.parametrize("layout", [{"tensor": 2}, {"shard": 2}, {"context": 2}, {"pipeline": 2}], ids=str)
def test_memory_is_flat_over_steady_steps(tmp_path: Path, layout: dict[str, int]) -> None:
    for found in run_distributed("tests.replica.test_memory:steady", 2, place=str(tmp_path), layout=layout, timeout=120.0):
        assert found["buckets"] == 0
        assert found["pool"] <= found["of"] / 2  # gloo's thread may hold a piece a moment longer: a second one then serves by turns
        assert found["resident"] < 0.01  # seen: 0.1 to 0.6 %; the pool itself stays as it is
