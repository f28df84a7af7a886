"""State that each replica has of its own: gathered for checkpoints, and dealt again where the number of replicas has changed.

    optimizer state of local steps     "sync.<replica>.optimizer.<path>.<name>"; the first replica's stands where it always does
    residuals of compression           "sync.<replica>.residual.<path>"

Where as many replicas go on as there were, each takes its own. Otherwise residuals are dealt so that their sum stays, since what
they hold back is owed to the sum of gradients; and optimizer state is the mean of all.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from plait.replica.optim import optimizer_state
from plait.replica.placed import local_values, placed
from plait.replica.replica import Replica
from plait.sync.exchange import losses
from plait.sync.peers import Peers
from plait.sync.reduce import Reducer
from plait.sync.strategy import State


class ByReplica:
    """State of each of the members of `peers`, which number themselves by their places."""

    def __init__(self, peers: Peers) -> None:
        self._peers = peers

    @property
    def replicas(self) -> int:
        return self._peers.size

    @property
    def _number(self) -> int:
        return self._peers.place

    @property
    def _group(self) -> ProcessGroup:
        assert self._peers.group is not None
        return self._peers.group

    def sum(self, value: Tensor) -> Tensor:
        """Over all replicas, as it is."""
        total = value.clone()
        if self.replicas > 1:
            with losses():
                self._group.allreduce([total]).wait()
        return total

    # --- optimizer state ---------------------------------------------------------------------------------------

    def optimizers(self, replica: Replica) -> State:
        """Of all replicas but the first."""
        return self._gather({f"optimizer.{name}": value for name, value in _optimizer(replica).items()}, replica, first=1)

    def optimizers_to_load(self, replica: Replica, names: Collection[str]) -> State:
        replicas = _replicas(names, "optimizer")
        wanted = {self._number} if replicas == self.replicas else set(range(replicas))
        return {
            f"sync.{number}.optimizer.{name}": placed(torch.zeros_like(value), _part(replica, name))
            for number in sorted(wanted - {0})
            for name, value in _optimizer(replica).items()
        }

    @torch.no_grad()
    def restore_optimizers(self, replica: Replica, state: State) -> None:
        """The first replica's state has been loaded into the optimizer already."""
        numbers = sorted({int(name.split(".")[1]) for name in state if ".optimizer." in name})
        for name, value in _optimizer(replica).items():
            others = [local_values(state[f"sync.{number}.optimizer.{name}"]) for number in numbers]
            if others and numbers == [self._number]:
                value.copy_(others[0])
            elif others:
                value.copy_((value + sum(others)) / (1 + len(others)))

    @torch.no_grad()
    def average_optimizers(self, replica: Replica) -> None:
        """The same for all replicas again: the mean of what they have."""
        values = [value for value in _optimizer(replica).values() if value.is_floating_point()]
        for value in values:
            value.copy_(self.sum(value.to(replica.device)) / self.replicas)

    # --- residuals -----------------------------------------------------------------------------------------------

    def residuals(self, replica: Replica, reducer: Reducer) -> State:
        held = self.held_back(replica, reducer)
        return self._gather({f"residual.{path}": value for path, value in held.items()}, replica)

    def residuals_to_load(self, replica: Replica, names: Collection[str]) -> State:
        replicas = _replicas(names, "residual")
        wanted = [self._number] if replicas == self.replicas else range(replicas)
        return {
            f"sync.{number}.residual.{path}": placed(torch.zeros_like(parameter), _part(replica, path))
            for number in wanted
            for path, parameter in replica.parameters.items()
        }

    def restore_residuals(self, replica: Replica, reducer: Reducer, state: State) -> None:
        numbers = sorted({int(name.split(".")[1]) for name in state if ".residual." in name})
        if not numbers:
            return
        share = 1.0 if numbers == [self._number] else 1.0 / self.replicas
        total = {
            path: share * sum(local_values(state[f"sync.{number}.residual.{path}"]) for number in numbers) for path in replica.parameters
        }
        reducer.residuals = by_bucket(replica, total)

    def held_back(self, replica: Replica, reducer: Reducer) -> dict[str, Tensor]:
        """By path, the same paths on all replicas: one who has sent nothing yet holds nothing back."""
        if not reducer.feeds_back or not (self.replicas > 1 or reducer.residuals):
            return {}
        return by_path(replica, reducer.residuals) or {path: torch.zeros_like(value) for path, value in replica.parameters.items()}

    # --- the wire --------------------------------------------------------------------------------------------------

    def _gather(self, own: dict[str, Tensor], replica: Replica, first: int = 0) -> State:
        """On the first replica, all replicas' values from the `first` on; elsewhere nothing, once they are sent."""
        gathered: State = {}
        for number in range(first, self.replicas):
            for name, value in own.items():
                if number == self._number == 0:
                    gathered[f"sync.0.{name}"] = placed(value, _part(replica, name.partition(".")[2]))
                elif number == self._number:
                    with losses():
                        self._group.send([value.to(replica.device).contiguous()], 0, 0).wait()
                elif self._number == 0:
                    there = torch.empty_like(value, device=replica.device)
                    with losses():
                        self._group.recv([there], number, 0).wait()
                    gathered[f"sync.{number}.{name}"] = placed(there, _part(replica, name.partition(".")[2]))
        return gathered


def by_bucket(replica: Replica, values: dict[str, Tensor]) -> dict[int, Tensor]:
    """Values by path, laid out as buckets are, by their keys."""
    gradients = replica.gradients
    return {
        key: torch.cat([values[path].reshape(-1) for path in paths]) for key, paths in zip(gradients.keys, gradients.paths, strict=True)
    }


def resize_buckets(replica: Replica, reducer: Reducer, bucket_bytes: int) -> None:
    """Between two units; what compression holds back moves along."""
    held = by_path(replica, reducer.residuals)
    replica.gradients.resize(bucket_bytes)
    if held:
        reducer.residuals = by_bucket(replica, held)


def by_path(replica: Replica, residuals: dict[int, Tensor]) -> dict[str, Tensor]:
    """Views of what is laid out as buckets are, by the parameters' paths; of nothing, nothing."""
    gradients, values = replica.gradients, {}
    for key, paths in zip(gradients.keys, gradients.paths, strict=True) if residuals else ():
        sizes = [replica.parameters[path].numel() for path in paths]
        for path, piece in zip(paths, residuals[key].split(sizes), strict=True):
            values[path] = piece.view_as(replica.parameters[path])
    return values


def _optimizer(replica: Replica) -> dict[str, Tensor]:
    """Tensors of the optimizer's state; plain numbers are the same on all replicas."""
    state = optimizer_state(replica.optimizer, replica.parameters.items())
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def _part(replica: Replica, name: str) -> Any:
    """Of a parameter's path, or of "<path>.<name>" of its optimizer state."""
    return replica.parts.get(name) or replica.parts[name.rpartition(".")[0]]


def _replicas(names: Collection[str], kind: str) -> int:
    """How many replicas wrote what a checkpoint has of a kind."""
    numbers = {int(parts[1]) for name in names if (parts := name.split("."))[0] == "sync" and parts[1].isdigit() and parts[2] == kind}
    return max(numbers) + 1 if numbers else 0
