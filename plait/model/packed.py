"""Linear layers applied to the few rows of a step of decoding, without a call of a module.

On a CPU, oneDNN multiplies 16 rows by a matrix that lies in its own order of blocks in half the time that `linear` takes, and one row in
two thirds, if the matrix is large enough for its call to count for little. So large matrices are copied into that order when decoding
begins, as inductor does for compiled models: the same values, at the cost of about three passes over them, and of their memory.
Shapes: B rows, I and O features.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from plait.model.blocks import Linear

VALUES = 2**17
"""Of the smallest matrix that is copied."""
BYTES = 2**30
"""Of the largest model that is."""
ROWS = 32
"""What oneDNN is told, from whose order fewer rows and more are read alike; for one row it would choose an order that others wait for."""


def is_worth_it(model: nn.Module) -> bool:
    """Whether decoding with this model should keep copies of its large matrices."""
    parameters = list(model.parameters())
    fit = all(parameter.device.type == "cpu" and parameter.dtype == torch.float32 for parameter in parameters)
    return fit and torch.backends.mkldnn.is_available() and sum(parameter.nbytes for parameter in parameters) <= BYTES


def applied(layer: nn.Module, pack: bool) -> Callable[[Tensor], Tensor]:
    """x_BI -> layer(x_BI)."""
    if type(layer) is not Linear:
        return cast(Callable[[Tensor], Tensor], layer.forward)
    weight_OI, bias = layer.weight, layer._parameters["bias"]
    if not pack or weight_OI.numel() < VALUES:
        return lambda x_BI: functional.linear(x_BI, weight_OI, bias)
    ordered, linear = _in_order(weight_OI), torch.ops.mkldnn._linear_pointwise.default
    return lambda x_BI: cast(Tensor, linear(x_BI, ordered, bias, "none", [], ""))


def added(layer: nn.Module, pack: bool) -> Callable[[Tensor, Tensor], Tensor]:
    """(residual_BO, x_BI) -> residual_BO + layer(x_BI)."""
    if not pack or type(layer) is not Linear or layer.weight.numel() < VALUES:
        plain = applied(layer, pack=False)
        return lambda residual_BO, x_BI: residual_BO + plain(x_BI)
    ordered, bias, linear = _in_order(layer.weight), layer._parameters["bias"], torch.ops.mkldnn._linear_pointwise.binary
    return lambda residual_BO, x_BI: cast(Tensor, linear(x_BI, residual_BO, ordered, bias, "add"))


def _in_order(weight_OI: Tensor) -> Tensor:
    return cast(Tensor, torch.ops.mkldnn._reorder_linear_weight(weight_OI.detach(), ROWS))
