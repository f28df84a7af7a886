"""The shard axis: ranks compute different sequences, and each of S keeps 1/S of the rows of every parameter (ZeRO, FSDP).

            kept on each rank                            sent by a rank in a step, in sizes of the model
    zero    parameters    gradients    optimizer
    1       whole         whole        1/S               gradients, once; updated rows, once
    2       1/S, whole    1/S          1/S               rows, once; gradients, each micro-batch
            in a unit
    3       1/S           1/S          1/S               rows, twice each micro-batch; gradients, each micro-batch

Rows are cut along dim 0 as torch.chunk cuts them: ceil(rows / S) each, the last ranks less or nothing. Whatever the stage, the
optimizer, the gradients' buckets and checkpoints see plain tensors of this rank's rows.

Stages 2 and 3 are torch's FSDP2, told to sum. It gathers a block's rows before it computes, frees them behind, and adds the rows of the
summed gradient to that of a parameter of its own, the holder: a DTensor over the memory of the plain one. Stage 1 is written here.

Sources: Rajbhandari et al. 2020 (ZeRO); Zhao et al. 2023 (PyTorch FSDP).
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn import Parameter

from plait.replica.part import Part, chunk_span
from plait.replica.transport import POOL, Pool, gather_rows, sum_rows

# Of a head with biases logits are a view, which torch warns of at each step; nothing here changes them in place.
warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor", category=UserWarning)

Parts = dict[str, Part]


@dataclass(frozen=True)
class Sharded:
    """This rank's rows of a parameter. holder: what the model computes with, where that is a DTensor over the same memory."""

    parameter: Parameter
    part: Part
    holder: Parameter | None = None


class Shards(Protocol):
    """What the shard axis adds to a unit. What is not in `parameters` is whole on each rank, and its gradient a partial sum."""

    parameters: dict[str, Sharded]

    def begin(self) -> None:
        """A new unit: gradients are zero."""

    def final_pass(self) -> None:
        """The next backward is the unit's last."""

    def reduce(self) -> None:
        """The unit's gradients are computed: those of this rank's rows become sums over all ranks."""

    def publish(self) -> None:
        """Rows were changed, by the optimizer or by loading: whoever computes next sees them."""


class FullyShard:
    """Stages 2 and 3. `parts` are those before the shard axis cuts them. Values are unknown afterwards: the caller writes them.

    module: what will be called, on each rank equally often. Its `blocks`, where it has some, are gathered one by one; the rest at once.
    Of the parameters given only shapes and ties count, so that no rank need ever hold the whole model. uncut: paths of those that stay
    whole, since another module that is called holds them too.
    """

    def __init__(
        self,
        module: nn.Module,
        parts: Parts,
        devices: DeviceMesh,
        zero: int,
        offload: bool,
        dtype: torch.dtype,
        uncut: Collection[str] = (),
    ) -> None:
        self._keeps_whole = zero == 2
        device = _device(devices)
        _forget_values(module, parts, dtype)
        cut = {path: parameter for path, parameter in module.named_parameters() if parameter.ndim and path not in uncut}
        rest = set(module.parameters()) - set(cut.values())
        settings: dict[str, Any] = {"mesh": devices, "ignored_params": rest, "offload_policy": _policy(offload, device)}
        for block in _blocks(module):
            fully_shard(block, reshard_after_forward=zero == 3, **settings)
        self._root = fully_shard(module, reshard_after_forward=False, **settings)
        self._groups = [part for part in module.modules() if isinstance(part, FSDPModule)]
        self._tell(POOL)
        _allocate(module, torch.device("cpu") if offload else device)
        rows = ((path, holder) for path, holder in module.named_parameters() if path in cut)
        self.parameters = {path: _rows_of(holder, parts[path], devices) for path, holder in rows}

    def begin(self) -> None:
        if self._keeps_whole:
            self._root.set_reshard_after_backward(False)

    def final_pass(self) -> None:
        if self._keeps_whole:
            self._root.set_reshard_after_backward(True)

    def reduce(self) -> None:
        pass

    def publish(self) -> None:
        for group in self._groups:
            group.reshard()

    def _tell(self, pool: Pool) -> None:
        """Sums, not means; and through gloo the faster ways."""
        self._root.set_reduce_scatter_unused_params(True)  # what no token of this rank has reached, one of another's may have
        for group in self._groups:
            group.set_gradient_divide_factor(1.0)
            group.set_force_sum_reduction_for_comms(True)
            group.set_custom_all_gather(cast(Any, _AllGather(pool)))
            group.set_custom_reduce_scatter(cast(Any, _ReduceScatter(pool)))


class Several:
    """The shards of several modules that are called one by one: the stages of a rank."""

    def __init__(self, shards: Sequence[Shards]) -> None:
        self._shards = shards
        self.parameters = {path: rows for each in shards for path, rows in each.parameters.items()}

    def begin(self) -> None:
        for each in self._shards:
            each.begin()

    def final_pass(self) -> None:
        for each in self._shards:
            each.final_pass()

    def reduce(self) -> None:
        for each in self._shards:
            each.reduce()

    def publish(self) -> None:
        for each in self._shards:
            each.publish()


def hold_gradient(holder: Parameter, gradient: Tensor) -> None:
    """Have FSDP2 add what it sums to `gradient`, of this rank's rows: where a gradient stands already it adds in place."""
    like = cast(DTensor, holder)
    holder.grad = DTensor.from_local(gradient, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride())


class OptimizerShards:
    """Stage 1, of a module whose parameters have their values. Their whole gradients are summed here, once a unit.

    whole gradients      a0 a1 | b0 b1 | c0 c1        rows 0 and 1 of each, for two ranks
    sent, by rank        a0 b0 c0 | a1 b1 c1          and the updated rows back the same way
    """

    def __init__(self, module: nn.Module, parts: Parts, group: ProcessGroup, bucket_bytes: int) -> None:
        self._group = group
        wholes = {path: parameter for path, parameter in module.named_parameters() if parameter.ndim and parameter.requires_grad}
        spans = {path: chunk_span(len(whole), group.rank(), group.size()) for path, whole in wholes.items()}
        self.parameters = {
            path: Sharded(Parameter(whole.detach()[slice(*spans[path])]), parts[path].cut(0, [spans[path]]))
            for path, whole in wholes.items()
        }
        self._gradients = _give_gradients(wholes.values())
        pool = POOL
        self._loads = [
            _Load([wholes[path] for path in paths], [self.parameters[path].parameter for path in paths], group, pool)
            for paths in _loads(wholes, bucket_bytes)
        ]

    def begin(self) -> None:
        for gradients in self._gradients:
            gradients.zero_()

    def final_pass(self) -> None:
        pass

    def reduce(self) -> None:
        for load in self._loads:
            load.reduce()

    def publish(self) -> None:
        for load in self._loads:
            load.gather()


class _Load:
    """Parameters that travel together. `owned`: this rank's rows of each of `wholes`."""

    def __init__(self, wholes: Sequence[Parameter], owned: Sequence[Parameter], group: ProcessGroup, pool: Pool) -> None:
        self._group, self._pool = group, pool
        self._owned = owned
        self._like = wholes[0].detach()
        self._widths = [-(-len(whole) // group.size()) * whole[0].numel() for whole in wholes]
        self._values = [_chunks(whole.detach(), group.size()) for whole in wholes]
        self._gradients = [_chunks(cast(Tensor, whole.grad), group.size()) for whole in wholes]

    def reduce(self) -> None:
        rows_RN, own_N = self._take(self._group.size(), sum(self._widths)), self._take(sum(self._widths))
        _copy(self._gradients, self._slots(rows_RN))
        sum_rows(rows_RN, own_N, self._group, self._pool)
        summed = [[cast(Tensor, parameter.grad).view(-1)] for parameter in self._owned]
        _copy(self._slots(own_N[None]), summed)

    def gather(self) -> None:
        rows_RN = self._take(self._group.size(), sum(self._widths))
        rank = self._group.rank()
        _copy([[parameter.detach().view(-1)] for parameter in self._owned], self._slots(rows_RN[rank : rank + 1]))
        gather_rows(rows_RN, self._group)
        _copy(self._slots(rows_RN), self._values)

    def _take(self, *shape: int) -> Tensor:
        return self._pool.take(shape, self._like.dtype, self._like.device)

    def _slots(self, rows_RN: Tensor) -> list[list[Tensor]]:
        """Where the rows of each parameter stand in what travels, by rank."""
        return [list(slot_Rn) for slot_Rn in rows_RN.split(self._widths, -1)]


class _AllGather:
    """FSDP2's seam: its input is a row of its output already."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return self._pool.take(size, dtype, device)

    def __call__(self, output_tensor: Tensor, input_tensor: Tensor, group: ProcessGroup, async_op: bool = False) -> None:
        gather_rows(output_tensor.view(group.size(), -1), group)


class _ReduceScatter(_AllGather):
    def __call__(  # type: ignore[override]
        self, output_tensor: Tensor, input_tensor: Tensor, group: ProcessGroup, op: Any, async_op: bool = False
    ) -> None:
        sum_rows(input_tensor.view(group.size(), -1), output_tensor, group, self._pool)


def _policy(offload: bool, device: torch.device) -> OffloadPolicy:
    """On a CPU offloading moves nothing: the host's memory is where rows rest already, and no GPU reads it."""
    return CPUOffloadPolicy(pin_memory=device.type != "cpu") if offload else OffloadPolicy()


def _blocks(module: nn.Module) -> list[nn.Module]:
    """What is gathered by itself. A block that shares a parameter with what is outside it is gathered with the rest."""
    shown = Counter(parameter for _, parameter in module.named_parameters(remove_duplicate=False))
    blocks = getattr(module, "blocks", None)
    children = blocks.children() if isinstance(blocks, nn.Module) else ()
    within = [(block, Counter(parameter for _, parameter in block.named_parameters(remove_duplicate=False))) for block in children]
    return [block for block, inside in within if inside and all(shown[parameter] == times for parameter, times in inside.items())]


def _forget_values(module: nn.Module, parts: Parts, dtype: torch.dtype) -> None:
    """Parameters become shapes alone; what was tied stays tied."""
    made: dict[Parameter, Parameter] = {}
    for path, old in list(module.named_parameters(remove_duplicate=False)):
        if old not in made:
            shape = torch.empty(parts[path].local_shape, dtype=dtype if old.is_floating_point() else old.dtype, device="meta")
            made[old] = Parameter(shape, requires_grad=old.requires_grad)
        owner, _, name = path.rpartition(".")
        setattr(module.get_submodule(owner), name, made[old])


def _allocate(module: nn.Module, device: torch.device) -> None:
    """Give this rank's rows their memory; buffers keep theirs."""
    buffers = list(module.named_buffers(remove_duplicate=False))
    module.to_empty(device=device)
    for path, buffer in buffers:
        owner, _, name = path.rpartition(".")
        module.get_submodule(owner)._buffers[name] = buffer


def _rows_of(holder: Parameter, part: Part, devices: DeviceMesh) -> Sharded:
    local = cast(DTensor, holder.detach()).to_local()
    rows = part.cut(0, [chunk_span(part.local_shape[0], devices.get_local_rank(), devices.size())])
    assert local.shape == rows.local_shape, (local.shape, rows)
    return Sharded(Parameter(local, requires_grad=holder.requires_grad), rows, holder)


def _device(devices: DeviceMesh) -> torch.device:
    kind = devices.device_type
    return torch.device(kind) if kind == "cpu" else torch.device(kind, torch.accelerator.current_device_index())


def _give_gradients(wholes: Iterable[Parameter]) -> list[Tensor]:
    """Zeros, a tensor for each dtype, and in them the gradient of each parameter."""
    kinds: dict[torch.dtype, list[Parameter]] = {}
    for whole in wholes:
        kinds.setdefault(whole.dtype, []).append(whole)
    flats = []
    for dtype, alike in kinds.items():
        flats.append(torch.zeros(sum(whole.numel() for whole in alike), dtype=dtype, device=alike[0].device))
        for whole, gradient in zip(alike, flats[-1].split([whole.numel() for whole in alike]), strict=True):
            whole.grad = gradient.view_as(whole)
    return flats


def _loads(wholes: dict[str, Parameter], load_bytes: int) -> Iterator[list[str]]:
    """Paths of neighbours of one dtype, up to `load_bytes` together."""
    load: list[str] = []
    filled = 0
    for path, whole in wholes.items():
        if load and (filled + whole.nbytes > load_bytes or wholes[load[0]].dtype != whole.dtype):
            yield load
            load, filled = [], 0
        load.append(path)
        filled += whole.nbytes
    if load:
        yield load


def _chunks(whole: Tensor, ranks: int) -> list[Tensor]:
    """The rows of each rank, flat."""
    return [whole[slice(*chunk_span(len(whole), rank, ranks))].view(-1) for rank in range(ranks)]


def _copy(source: list[list[Tensor]], target: list[list[Tensor]]) -> None:
    """Flat tensors one by one; of unequal ones as much as both have."""
    pairs = [pair for several in zip(source, target, strict=True) for pair in zip(*several, strict=True)]
    sizes = [min(one.numel(), other.numel()) for one, other in pairs]
    filled = [(one[:size], other[:size]) for (one, other), size in zip(pairs, sizes, strict=True) if size]
    if filled:
        torch._foreach_copy_([other for _, other in filled], [one for one, _ in filled])
