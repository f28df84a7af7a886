"""Fixtures that all rooms share."""

from __future__ import annotations

import pytest

from plait.cluster.nursery import Nursery
from plait.testing.processes import warm_nursery


@pytest.fixture(scope="session")
def nursery() -> Nursery:
    """A process with torch imported that forks workers in milliseconds."""
    return warm_nursery()
