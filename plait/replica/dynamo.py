"""Starting without torch._dynamo: importing it takes longer than importing the rest of torch.

torch wraps methods of optimizers so that a compiler does not trace them, and the wrappers import the compiler to say so,
compiled or not. plait compiles blocks of models, never optimizers: the methods are marked as dealt with, and a step runs
without gradients as its wrapper would have it.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch

_MARKED = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")
_STEPPING: tuple[Any, ...] = (torch.optim.Adam, torch.optim.SGD)  # AdamW's step is Adam's


def leave_out_of_optimizers() -> None:
    """Spare optimizers the import, once a process. Where torch has changed its wrappers nothing happens but the import."""
    for name in _MARKED:
        wrapped: Any = getattr(getattr(torch.optim.Optimizer, name), "__wrapped__", None)
        if wrapped is not None:
            wrapped.__dynamo_disable = wrapped
    for optimizer in _STEPPING:
        optimizer.step = torch.no_grad()(inspect.unwrap(optimizer.step))
