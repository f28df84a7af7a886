"""Fixtures that all rooms share."""

from __future__ import annotations

from pathlib import Path

import pytest

from plait.cluster.nursery import Nursery
from plait.testing.processes import warm_nursery
from tests.runs import write_corpus


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
