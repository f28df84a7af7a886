"""How a rank's buckets lie on parameter servers, and how state travels as a few flat tensors.

buckets of a rank     0    1    2    3    4          the largest first, each to the server that has least
server 0              0         2
server 1                   1         3    4
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def spread(sizes: Sequence[int], servers: int) -> list[list[int]]:
    """Indices of buckets by server, about the same number of values on each."""
    held: list[list[int]] = [[] for _ in range(servers)]
    filled = [0] * servers
    for index in sorted(range(len(sizes)), key=lambda index: (-sizes[index], index)):
        least = min(range(servers), key=lambda server: (filled[server], server))
        held[least].append(index)
        filled[least] += sizes[index]
    return [sorted(indices) for indices in held]


def flatten(tensors: Iterable[Tensor]) -> Tensor:
    """One after the other, on the host."""
    return torch.cat([tensor.detach().reshape(-1).cpu() for tensor in tensors])


def unflatten(flat: Tensor, like: Sequence[Tensor]) -> None:
    """Copy what `flatten` made of tensors of these shapes into them."""
    with torch.no_grad():
        for tensor, values in zip(like, flat.split([tensor.numel() for tensor in like]), strict=True):
            tensor.copy_(values.view_as(tensor))


def pack_state(state: Mapping[str, Any]) -> tuple[dict[str, Any], list[Tensor]]:
    """Optimizer state as plain data that says what there is, and one flat tensor for each dtype."""
    names: dict[str, list[Any]] = {}
    tensors: dict[str, list[Tensor]] = {}
    for name, value in state.items():
        if isinstance(value, Tensor):
            kind = str(value.dtype)
            names.setdefault(kind, []).append([name, list(value.shape)])
            tensors.setdefault(kind, []).append(value)
    plain = {name: value for name, value in state.items() if not isinstance(value, Tensor)}
    return {"names": list(names.values()), "plain": plain}, [flatten(values) for values in tensors.values()]


def unpack_state(said: dict[str, Any], flats: Sequence[Tensor]) -> dict[str, Any]:
    """What `pack_state` was given; tensors are views of the flat ones."""
    state: dict[str, Any] = dict(said["plain"])
    for names, flat in zip(said["names"], flats, strict=True):
        sizes = [torch.Size(shape).numel() for _, shape in names]
        for (name, shape), values in zip(names, flat.split(sizes), strict=True):
            state[name] = values.view(shape)
    return state
