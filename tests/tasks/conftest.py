"""Fixtures of tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.tasks import foreign


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> foreign.Saved:
    """Makes a folder of a random model of transformers'."""
    tokenizer = foreign.tokenizer_json()

    def save(name: str, **changes: Any) -> Path:
        return foreign.save(tmp_path_factory.mktemp("theirs") / name.replace(" ", "_"), name, tokenizer, **changes)

    return save
