"""A checkpoint of a replica spread over two processes: one manifest, loaded whole, or cut in another way."""

import errno
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from plait.testing.processes import run_distributed
from plait.train import manifest, pieces
from plait.train.checkpoint import Checkpoints, load

SHAPES = {"even": (4, 6), "uneven": (5, 3), "one_row": (1, 4), "scalar": ()}

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")  # plait ignores it; pytest does not know


def whole(seed):
    generator = torch.Generator().manual_seed(seed)
    values = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    return values | {"columns": values["even"].double(), "plain": values["uneven"].bfloat16(), "replicated": values["even"] * 2}


def spread(values, mesh, dims):
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    cut = {name: distribute_tensor(values[name], mesh, [Shard(dim)], src_data_rank=None) for name, dim in dims.items()}
    copied = distribute_tensor(values["replicated"], mesh, [Replicate()], src_data_rank=None)
    return {**values, **cut, "replicated": copied, "count": 3}


def two_ranks(rank, size, _, folder):
    folder = Path(folder)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=size)
    mesh = dist.init_device_mesh("cpu", (2,))
    told = []
    checkpoints = Checkpoints(
        folder / "checkpoints",
        2,
        lambda step, path, size, *_: told.append(("saved", step, size)),
        lambda step, why: told.append(("failed", step, why)),
        dist.new_group(backend="gloo"),
    )
    by_rows = {"even": 0, "uneven": 0, "one_row": 0, "columns": 1}
    checkpoints.save(7, spread(whole(1), mesh, by_rows), {"ranks": 2})
    checkpoints.wait()
    assert [kind for kind, *_ in told] == (["saved"] if rank == 0 else [])

    other = spread(whole(2), mesh, {"even": 1, "uneven": 1, "one_row": 1, "columns": 0})
    assert load(folder / "checkpoints" / manifest.name(7), other) == {"ranks": 2}
    for name, expected in whole(1).items():
        found = other[name].full_tensor() if hasattr(other[name], "full_tensor") else other[name]
        assert torch.equal(found, expected), name

    if rank == 1:
        pieces._write_all = full_disk
    checkpoints.save(9, spread(whole(2), mesh, by_rows), {})
    checkpoints.wait()
    if rank == 0:
        assert told[-1][:2] == ("failed", 9)
        assert "No space left" in told[-1][2]
    dist.destroy_process_group()


def full_disk(stream, block):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharded")
    run_distributed(f"{__name__}:two_ranks", 2, folder=str(folder))
    return folder / "checkpoints"


def test_one_process_loads_what_two_saved(folder):
    loaded = {**whole(2), "count": 0}
    assert load(manifest.latest(folder), loaded) == {"ranks": 2}
    assert all(torch.equal(loaded[name], value) for name, value in whole(1).items())
    assert loaded["count"] == 3


def test_both_ranks_wrote_and_nothing_was_written_twice(folder):
    found = manifest.read(folder / manifest.name(7))
    assert {file.split("-")[1] for file in found.pieces} == {"0000", "0001"}
    assert len(found.tensors["uneven"].chunks) == 2
    assert len(found.tensors["one_row"].chunks) == len(found.tensors["plain"].chunks) == len(found.tensors["replicated"].chunks) == 1
    values = sum(value.nbytes for value in whole(1).values())
    assert values < found.bytes < values + 2 * 2000


def test_a_save_that_one_rank_cannot_finish_leaves_only_the_older_checkpoint(folder):
    assert os.listdir(folder) == [manifest.name(7)]
