"""Starting without torch._dynamo: importing it takes longer than importing the rest of torch.

torch wraps methods of optimizers so that a compiler does not trace them, and the wrapper imports the compiler to say
so, compiled or not. plait compiles blocks of models, never optimizers: the methods are marked as dealt with.
"""

from __future__ import annotations

from typing import Any

import torch


def leave_out_of_optimizers() -> None:
    """Spare optimizers the import. Where torch has changed its wrapper nothing happens but the import."""
    optimizer = torch.optim.Optimizer
    methods: list[Any] = [optimizer.add_param_group, optimizer.zero_grad, optimizer.state_dict, optimizer.load_state_dict]
    for method in methods:
        wrapped = getattr(method, "__wrapped__", None)
        if wrapped is not None:
            wrapped.__dynamo_disable = wrapped
