"""plait trains language models in parallel. Its public names, loaded when they are first used."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from plait.errors import Interrupted as Interrupted
    from plait.errors import PlaitError as PlaitError
    from plait.errors import UserError as UserError
    from plait.spec import Run as Run
    from plait.tasks.evaluate import evaluate as evaluate
    from plait.tasks.generate import generate as generate
    from plait.tasks.pretrain import prepare as prepare
    from plait.tasks.pretrain import train as train
    from plait.tasks.trained import load as load

_HOMES = {
    "Interrupted": "plait.errors",
    "PlaitError": "plait.errors",
    "Run": "plait.spec",
    "UserError": "plait.errors",
    "evaluate": "plait.tasks.evaluate",
    "generate": "plait.tasks.generate",
    "load": "plait.tasks.trained",
    "prepare": "plait.tasks.pretrain",
    "train": "plait.tasks.pretrain",
}
__all__ = ["Interrupted", "PlaitError", "Run", "UserError", "__version__", "evaluate", "generate", "load", "prepare", "train"]


class _Package(ModuleType):
    """`plait.train` is the function: importing the room of that name must not put the room in its place."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'plait' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
