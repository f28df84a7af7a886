"""Bare groups between processes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from plait.testing.processes import ProcessesFailed, run_distributed


def sum_of_ranks(rank: int, size: int, group: Any, length: int) -> list[float]:
    values = torch.full((length,), float(rank + 1))
    group.allreduce([values]).wait()
    return values.tolist()


def second_rank_raises(rank: int, size: int, group: Any) -> None:
    if rank == 1:
        raise ValueError("rank one was told to fail")


def test_sums_reach_every_rank() -> None:
    assert run_distributed("tests.sync.test_group:sum_of_ranks", 3, length=4) == [[6.0] * 4] * 3


def test_a_failure_names_its_rank() -> None:
    with pytest.raises(ProcessesFailed, match=r"rank 1:[\s\S]*told to fail"):
        run_distributed("tests.sync.test_group:second_rank_raises", 2)
