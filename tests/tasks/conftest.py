"""Fixtures of tasks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from plait.cluster.nursery import Nursery
from tests.curves import Curves
from tests.runs import tiny, write_pairs
from tests.tasks import foreign, kinds


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> foreign.Saved:
    """Makes a folder of a random model of transformers'."""
    tokenizer = foreign.tokenizer_json()

    def save(name: str, **changes: Any) -> Path:
        return foreign.save(tmp_path_factory.mktemp("theirs") / name.replace(" ", "_"), name, tokenizer, **changes)

    return save


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts with labels, numbers, labelled words, questions and answers."""
    return kinds.write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl")


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sentences and their translations."""
    return write_pairs(tmp_path_factory.mktemp("pairs"))


@pytest.fixture(scope="session")
def conversations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return kinds.write_conversations(tmp_path_factory.mktemp("conversations") / "pairs.jsonl")


@pytest.fixture(scope="session")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where references are kept, which several tests compare with."""
    return tmp_path_factory.mktemp("kept")


@pytest.fixture
def curves(tmp_path: Path, kept: Path, prepared: Path, nursery: Nursery) -> Callable[..., Curves]:
    """Trains tiny runs on a corpus, all with these changes."""

    def make(corpus: Path, **settings: Any) -> Curves:
        return Curves(tmp_path, kept, nursery, partial(tiny, corpus, prepared), **settings)

    return make


@pytest.fixture
def curve(curves: Callable[..., Curves], corpus: Path) -> Curves:
    """Four steps with dropout."""
    return curves(corpus, train__duration="4 steps", model__dropout=0.1)
