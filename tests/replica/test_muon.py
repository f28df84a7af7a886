"""Muon over matrices of which ranks hold parts: the steps of one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed import FileStore, ProcessGroup
from torch.nn import Parameter

from plait import spec
from plait.replica import muon
from plait.replica.mesh import Mesh, leave_mesh, make_mesh
from plait.replica.muon import Joint, Muon
from plait.replica.part import Part, chunk_span, stacked_spans
from plait.testing.processes import run_distributed
from tests.runs import slow

STACKED, ROW, WHOLE, FLAT, SHORT = (12, 5), (6, 8), (7, 4), (4, 12), (3, 8)


def parts_of(mesh: Mesh) -> dict[tuple[int, int], Part]:
    """Cut by the tensor axis in each of its ways, or not at all; then by the shard axis: short matrices leave its last ranks nothing."""
    tensor = mesh.of("tensor")
    parts = {shape: Part.whole(torch.Size(shape)) for shape in (STACKED, ROW, WHOLE, FLAT, SHORT)}
    parts[STACKED] = parts[STACKED].cut(0, stacked_spans((4, 1, 1), 12, *tensor))
    parts[ROW] = parts[ROW].cut(1, stacked_spans((1,), 8, *tensor))
    parts[FLAT] = parts[FLAT].cut(0, stacked_spans((1,), 4, *tensor))
    return {shape: part.cut(0, [chunk_span(part.local_shape[0], *mesh.of("shard"))]) for shape, part in parts.items()}


def steps(rank: int, size: int, group: ProcessGroup, place: str, shard: int, tensor: int, bytes_at_once: int) -> list[float]:
    """The largest difference from one process after three steps, and how many parts are empty here."""
    muon.JOINED_BYTES = bytes_at_once
    layout = spec.Layout.model_construct(**{**spec.Layout().model_dump(), "shard": shard, "tensor": tensor})
    mesh = make_mesh(layout, rank, FileStore(f"{place}/mesh", size), torch.device("cpu"), loopback=True)
    parts = parts_of(mesh)
    chance = torch.Generator().manual_seed(0)
    wholes = {shape: Parameter(torch.randn(shape, dtype=torch.float64, generator=chance)) for shape in parts}
    locals_ = {shape: Parameter(parts[shape].take(whole.detach()).clone()) for shape, whole in wholes.items()}
    groups = [found for axis in ("shard", "tensor") if (found := mesh.group(axis)) is not None]
    joint = Joint({locals_[shape]: part for shape, part in parts.items()}, groups)
    alone = Muon([{"params": list(wholes.values()), "orthogonal": True}], lr=0.1)
    spread = Muon([{"params": list(locals_.values()), "orthogonal": True}], lr=0.1, joint=joint)
    for _ in range(3):
        for shape, whole in wholes.items():
            whole.grad = 1e-6 * torch.randn(shape, dtype=torch.float64, generator=chance)
            locals_[shape].grad = parts[shape].take(whole.grad)
        alone.step()
        spread.step()
    differences = [(locals_[shape] - parts[shape].take(whole)).detach().abs() for shape, whole in wholes.items()]
    leave_mesh(mesh)
    return [max(float(one.max()) for one in differences if one.numel()), sum(not one.numel() for one in differences)]


@pytest.mark.parametrize(("shard", "tensor"), [slow(2, 1), slow(1, 2), (4, 1), (2, 2)])
@pytest.mark.parametrize("bytes_at_once", [2**26, 1])
def test_parts_take_the_steps_of_the_whole(tmp_path: Path, shard: int, tensor: int, bytes_at_once: int) -> None:
    arguments: dict[str, Any] = {"place": str(tmp_path), "shard": shard, "tensor": tensor, "bytes_at_once": bytes_at_once}
    found = run_distributed("tests.replica.test_muon:steps", shard * tensor, **arguments)
    assert max(difference for difference, _ in found) < 1e-13
    assert (max(empty for _, empty in found) > 0) == (shard == 4)
