"""A run to watch."""

import pytest

from plait import spec


@pytest.fixture
def run():
    return spec.parse({"data": {"corpus": ["a.txt"]}, "train": {"duration": "400 steps"}})
