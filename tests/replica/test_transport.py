"""Rows sent from rank to rank, and the pool that they are sent from."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed
from torch.distributed import FileStore, ProcessGroup

from plait.replica.transport import Pool, gather_rows, sum_rows
from plait.testing.processes import run_distributed

CPU = torch.device("cpu")


def rows(rank: int, size: int, group: ProcessGroup, place: str) -> list[Any]:
    torch.distributed.init_process_group("gloo", store=FileStore(f"{place}/world", size), rank=rank, world_size=size)
    pool = Pool()
    mine_RN = torch.arange(size * 3, dtype=torch.float64).view(size, 3) * (rank + 1)
    gathered_RN = torch.full((size, 3), -1.0)
    gathered_RN[rank] = rank
    own_N = torch.empty(3, dtype=torch.float64)
    assert torch.distributed.group.WORLD is not None
    gather_rows(gathered_RN, torch.distributed.group.WORLD)
    sum_rows(mine_RN, own_N, torch.distributed.group.WORLD, pool)
    once = pool.size
    for _ in range(20):
        sum_rows(mine_RN, own_N, torch.distributed.group.WORLD, pool)
    torch.distributed.destroy_process_group()
    # gloo's threads may hold pieces a moment longer than their work takes: a few serve by turns, where 21 would if none came back.
    return [gathered_RN.tolist(), own_N.tolist(), pool.size <= 10 * once]


def test_every_rank_gets_all_rows_and_the_sum_of_its_own(tmp_path: Any) -> None:
    found = run_distributed("tests.replica.test_transport:rows", 3, place=str(tmp_path))
    for rank, (gathered, own, steady) in enumerate(found):
        assert gathered == [[0.0] * 3, [1.0] * 3, [2.0] * 3]
        assert own == [6.0 * (3 * rank + column) for column in range(3)]
        assert steady


def test_a_piece_is_handed_out_again_when_no_view_of_it_is_left() -> None:
    pool = Pool()
    first = pool.take((4, 2), torch.float32, CPU)
    address, view = first.data_ptr(), first[1:].view(-1)
    del first
    assert pool.take((8,), torch.float32, CPU).data_ptr() != address  # the view still needs it
    del view
    assert pool.take((2, 2), torch.float64, CPU).data_ptr() == address
    assert pool.size == 64


def test_the_smallest_free_piece_that_fits_is_taken() -> None:
    pool = Pool()
    sizes = {size: pool.take((size,), torch.uint8, CPU) for size in (300, 100, 200)}
    addresses = {size: piece.data_ptr() for size, piece in sizes.items()}
    sizes.clear()
    assert pool.take((150,), torch.uint8, CPU).data_ptr() == addresses[200]
