"""Python in pages runs, smoke-sized; TOML in pages is a run file."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch

from plait import spec
from tests.docs.pages import PAGES, blocks, name

NEEDED = {"data": {"corpus": ["corpus.txt"]}, "train": {"duration": "1 steps", "batch": 64}}


@pytest.mark.usefixtures("demo", "examples", "smoke")
@pytest.mark.parametrize("page", [page for page in PAGES if list(blocks(page, "python"))], ids=name)
def test_python(page: Path, tmp_path: Path) -> None:
    """The blocks of a page run in order and share their names."""
    given: dict[str, Any] = {"folder": tmp_path / "folder", "weight": torch.zeros(3), "run": spec.load("examples/austen.toml")}
    for block in blocks(page, "python"):
        exec(compile(block, name(page), "exec"), given)


@pytest.mark.parametrize("page", [page for page in PAGES if list(blocks(page, "toml"))], ids=name)
def test_toml(page: Path) -> None:
    for block in blocks(page, "toml"):
        table = tomllib.loads(block)
        spec.parse({**table, **{section: {**needed, **table.get(section, {})} for section, needed in NEEDED.items()}}, name(page))
