"""A user's own model, loss, optimizer or listener, named in the run file as "package.module:Name"."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from typing import Any

from plait.errors import RunFileError


def load_object(reference: str, setting: str) -> Any:
    """The object "package.module:Name" names; modules are found where Python finds them, and in the working directory.

    Raises RunFileError naming `setting`: malformed reference, module that is missing or fails, no such name in it.
    """
    module_name, colon, name = reference.partition(":")
    if not colon or not module_name or not name:
        raise RunFileError(f'{setting} = "{reference}": write "package.module:Name"')
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever the user's module raises is the answer
        raise RunFileError(f'{setting} = "{reference}": {_why(module_name, error)}') from error
    if not hasattr(module, name):
        named = ", ".join(sorted(key for key, value in vars(module).items() if getattr(value, "__module__", None) == module_name))
        raise RunFileError(f'{setting} = "{reference}": {module_name} has no {name}; it has: {named or "nothing of its own"}')
    return getattr(module, name)


def check_call(target: Any, reference: str, setting: str, *arguments: Any, **keywords: Any) -> None:
    """Raises RunFileError where `target` cannot be called so."""
    if not callable(target):
        raise RunFileError(f'{setting} = "{reference}": is no class and no function, but {type(target).__name__}')
    try:
        inspect.signature(target).bind(*arguments, **keywords)
    except TypeError as error:
        raise RunFileError(f'{setting} = "{reference}": its signature is {inspect.signature(target)}: {error}') from None
    except ValueError:
        return  # built-ins do not tell their signature


def _why(module_name: str, error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name is not None and (module_name + ".").startswith(error.name + "."):
        return f"there is no module {error.name}, neither installed nor in {os.getcwd()}"
    return f"importing {module_name} fails: {type(error).__name__}: {error}"
