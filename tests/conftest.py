"""Fixtures that all rooms share."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from plait import events
from plait.cluster.nursery import Nursery
from plait.testing.processes import warm_nursery
from tests.runs import write_corpus
from tests.store.park import park

__all__ = ["corpus", "nursery", "park", "prepared"]

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run side by side: threads of tiny models would wait for one another, computing
settings.register_profile("crowded", deadline=None, suppress_health_check=[HealthCheck.too_slow])  # time says nothing where others compute
settings.load_profile("crowded")


@pytest.fixture(scope="session")
def nursery() -> Nursery:
    """A process with torch imported that forks workers in milliseconds."""
    return warm_nursery()


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where this session's token files are kept: prepared once, found again."""
    return tmp_path_factory.mktemp("prepared")


@pytest.fixture
def step() -> Callable[..., events.Step]:
    """Makes events of steps, of which tests name what matters to them."""

    def make(number: int, **changed: Any) -> events.Step:
        values = {"loss": 3.762, "grad_norm": 0.2823, "lr": 3e-4, "tokens": 4096, "seconds": 2.0, "tokens_per_s": 2048.0}
        values |= {"mfu": None, "shares": {"0": [[0, 32]]}, "time": 1.7e9 + number, "generation": 1}
        return events.Step(step=number, **(values | changed))

    return make
