"""plait's public names are few, listed, importable, and cost nothing before they are used."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

import plait

NAMES = ["Interrupted", "PlaitError", "Run", "UserError", "__version__", "evaluate", "generate", "load", "prepare", "train"]


def test_the_list() -> None:
    assert sorted(plait.__all__) == NAMES == dir(plait)


@pytest.mark.parametrize("name", NAMES)
def test_each_can_be_imported(name: str) -> None:
    assert getattr(plait, name) is not None


def test_rooms_do_not_hide_functions() -> None:
    """There is a room called train, which Python would set as an attribute when it is first imported."""
    importlib.import_module("plait.train.manifest")
    assert plait.train is importlib.import_module("plait.tasks.pretrain").train


def test_another_name_is_refused() -> None:
    with pytest.raises(AttributeError, match="trian"):
        _ = plait.trian


def test_importing_plait_imports_nothing_heavy() -> None:
    code = "import sys, plait; sys.exit(bool({'torch', 'numpy', 'pydantic'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
