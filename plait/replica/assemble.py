"""From settings to this rank's part of the model: what is built, cut, given its values, and told how gradients add up.

    skeleton ─► stages ─► cut by tensor, expert ─► collectives put in ─► values drawn ─► leaves

A leaf is a parameter as the optimizer and the gradient's buckets see it: a plain local tensor that knows its part of the whole. Of
each mesh axis its gradient is one of three:

    split      ranks hold different values             in the norm: squares add up
    partial    ranks computed different tokens with    gradients add up, once, at the unit's end; counted once
               equal values
    alike      ranks computed the same                 nothing travels; counted once
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.nn import Parameter

from plait import spec
from plait.errors import RunFileError
from plait.model import lora
from plait.model.build import skeleton
from plait.model.encoder import Mean
from plait.model.init import InitialTable, initial_rows
from plait.model.sharding import Placement, ShardingTable, placement
from plait.replica import collectives, context, expert, tensor
from plait.replica import device as devices
from plait.replica.mesh import ALONE, Mesh
from plait.replica.part import Part, chunk_span
from plait.replica.placed import placed as as_placed

if TYPE_CHECKING:
    from plait.replica.shard import Shards
    from plait.replica.stages import Stages


@dataclass(frozen=True)
class Leaf:
    """A parameter of this rank.

    alike: axes along which ranks hold equal values; partial: those of them over which its gradient is a partial sum. counted: whether
    this rank counts it in the gradient's norm. holder: the parameter that the model computes with, where that is another (a DTensor over
    the same memory).
    """

    path: str
    parameter: Parameter
    part: Part
    partial: tuple[str, ...] = ()
    counted: bool = True
    holder: Parameter | None = None
    alike: tuple[str, ...] = ()

    @property
    def trained(self) -> bool:
        return self.parameter.requires_grad


@dataclass(frozen=True)
class Assembly:
    """module: this rank's. stages: what it consists of, where layers are spread over a pipeline; elsewhere: what of the model's state other
    stages hold. sequence_parallel: tensor ranks cut the residual stream by positions. outputs: logits at a position, of the vocabulary or
    of a task's head. first_entry: of them in this rank's logits, where the tensor axis spreads them; None where they are whole. left_out:
    paths that checkpoints leave to the base, which has them."""

    module: nn.Module
    leaves: list[Leaf]
    mesh: Mesh
    outputs: int
    shards: Shards | None = None
    sequence_parallel: bool = False
    first_entry: int | None = None
    stages: Sequence[nn.Module] = ()
    elsewhere: frozenset[str] = frozenset()
    left_out: frozenset[str] = frozenset()

    @property
    def trained(self) -> list[Leaf]:
        return [leaf for leaf in self.leaves if leaf.trained]


class Base(Protocol):
    """A model to go on from."""

    def lacks(self, path: str) -> bool:
        """Whether a parameter, of a head that the model has not, begins afresh."""
        ...

    def fill(self, state: dict[str, Any], elsewhere: Collection[str]) -> None:
        """Give the tensors of a state, "model.<path>", its values, in place; elsewhere: paths that other ranks hold."""


def assemble(run: spec.Run, vocabulary: int, device: torch.device, mesh: Mesh = ALONE, base: Base | None = None) -> Assembly:
    """Build what a rank of the mesh computes with. Raises RunFileError."""
    module = _planned(run, vocabulary)
    if run.prune is not None and (wrong := run.prune.misses([path for path, value in module.named_parameters() if value.ndim > 1])):
        raise RunFileError(wrong)
    whole = kept_paths(module)
    stages = _stages(module, run, vocabulary, mesh)
    module = module if stages is None else stages.module
    sequence_parallel = mesh.size("tensor") > 1 and hasattr(module, "around")
    placed = _placements(module)
    parts = {path: _part(path, parameter.shape, placed[path], mesh) for path, parameter in module.named_parameters(remove_duplicate=False)}
    spread = _insert(module, placed, parts, run, mesh, sequence_parallel)
    values, dtype = _values(module, run.train.seed), devices.dtype(run.train.precision)
    _move_buffers(module, dtype, device)
    shards = _shard(module, stages, parts, run, mesh, dtype, device)
    rows = shards.parameters if shards is not None else {}
    leaves = []
    for path, parameter in module.named_parameters():
        held = rows.get(path)
        alike, partial, counted = _sums(placed[path], mesh, sequence_parallel, path in rows)
        if stages is not None and path in stages.shared:
            alike, partial, counted = (*alike, "ends"), (*partial, "ends"), counted and mesh.place["pipeline"] == 0
        if stages is not None and path in stages.everywhere:
            alike, partial, counted = (*alike, "pipeline"), (*partial, "pipeline"), counted and mesh.place["pipeline"] == 0
        if held is None:
            leaves.append(Leaf(path, parameter, parts[path], partial, counted, alike=alike))
        else:
            leaves.append(Leaf(path, held.parameter, held.part, partial, counted, held.holder, alike))
    outputs = vocabulary if run.data.objective.head is None else run.data.objective.head.outputs
    first_entry = chunk_span(outputs, *mesh.of("tensor"))[0] if spread else None
    called, elsewhere = ((), whole - whole) if stages is None else (stages.modules, whole - kept_paths(module))
    left_out = frozenset(leaf.path for leaf in leaves if run.adapted and not leaf.trained)
    assembly = Assembly(module, leaves, mesh, outputs, shards, sequence_parallel, first_entry, called, elsewhere, left_out)
    if not assembly.trained:
        raise RunFileError(f"layout: what a rank holds at {mesh.place} is frozen as a whole; use a layout without such ranks")
    _fill(assembly, values, base)
    return assembly


def room(run: spec.Run, vocabulary: int, device: torch.device) -> nn.Module:
    """The whole model on one device, with memory for its values and no values."""
    module = _planned(run, vocabulary)
    dtype = devices.dtype(run.train.precision)
    _move_buffers(module, dtype, device)
    _materialise(module, {path: Part.whole(value.shape) for path, value in module.named_parameters(remove_duplicate=False)}, dtype, device)
    return module


def kept_paths(module: nn.Module) -> frozenset[str]:
    """Parameters and buffers that a checkpoint keeps; a parameter that is shown twice goes by its first path."""
    shown = {path for path, _ in module.named_parameters(remove_duplicate=False)}
    tied = shown - {path for path, _ in module.named_parameters()}
    return frozenset(module.state_dict()) - tied


def start_afresh(assembly: Assembly, run: spec.Run, vocabulary: int, base: Base | None) -> None:
    """Give every leaf and every kept buffer its initial value again."""
    fresh = _planned(run, vocabulary)
    kept = kept_paths(assembly.module)
    initial = dict(fresh.named_buffers())
    for path, buffer in assembly.module.named_buffers():
        if path in kept:
            buffer.copy_(initial[path])
    _fill(assembly, _values(fresh, run.train.seed), base)


def _planned(run: spec.Run, vocabulary: int) -> nn.Module:
    """The whole model before it is cut, and before it has values."""
    whole = skeleton(run.model, vocabulary, run.data.sequence, run.train.seed, run.data.objective.head)
    return lora.prepare(whole, run.finetune, run.train.seed)


@torch.no_grad()
def _fill(assembly: Assembly, values: Values, base: Base | None) -> None:
    """Initial values, and those of the base for all but adapters."""
    begun = [leaf for leaf in assembly.leaves if base is None or ".lora." in leaf.path or base.lacks(leaf.path)]
    for leaf in begun:
        leaf.parameter.copy_(values(leaf.path, leaf.part))
    if base is not None:
        new = {leaf.path for leaf in begun}
        state: dict[str, Any] = {
            f"model.{leaf.path}": as_placed(leaf.parameter, leaf.part) for leaf in assembly.leaves if leaf.path not in new
        }
        buffers, kept = dict(assembly.module.named_buffers()), kept_paths(assembly.module)
        state |= {f"model.{path}": buffer for path, buffer in buffers.items() if path in kept}
        base.fill(state, assembly.elsewhere)


def _placements(module: nn.Module) -> dict[str, Placement]:
    """By path; what is tied goes by the path that it is shown under first."""
    table: ShardingTable = getattr(module, "sharding", None) or {"*": "replicated"}
    first = {parameter: path for path, parameter in module.named_parameters()}
    return {path: placement(table, first[parameter]) for path, parameter in module.named_parameters(remove_duplicate=False)}


def _stages(module: nn.Module, run: spec.Run, vocabulary: int, mesh: Mesh) -> Stages | None:
    """What this rank holds of the model along the pipeline, where there is one."""
    if mesh.size("pipeline") == 1:
        return None
    from plait.replica import stages  # torch's pipelining takes its time to import

    head = run.data.objective.head
    cost = stages.head_in_layers(run.model, vocabulary if head is None else head.outputs, run.data.sequence)
    return stages.cut(module, run.layout, mesh.place["pipeline"], cost)


def _part(path: str, shape: torch.Size, placed: Placement, mesh: Mesh) -> Part:
    """Before the shard axis cuts it further."""
    try:
        return expert.expert_part(tensor.tensor_part(Part.whole(shape), placed, *mesh.of("tensor")), placed, *mesh.of("expert"))
    except ValueError as error:
        axis = "expert" if placed.kind == "expert" else "tensor"
        raise RunFileError(f"layout.{axis} = {mesh.size(axis)}: the sharding table cuts {path} by {placed.kind}, and {error}") from None


def _insert(
    module: nn.Module, placed: dict[str, Placement], parts: dict[str, Part], run: spec.Run, mesh: Mesh, sequence_parallel: bool
) -> bool:
    """Put in what travels between ranks when the module computes. Returns whether its logits are spread."""
    if (group := mesh.group("context")) is not None:
        context.insert(module, context.exchange(run.layout.context_by, group))
    if (group := mesh.group("expert")) is not None:
        expert.insert(module, group)
    cutting = [mesh.group("context"), mesh.group("tensor") if sequence_parallel else None]
    sharing = [group for group in cutting if group is not None]
    expert.share_sequences(module, sharing)
    _share_means(module, sharing)
    tensors = mesh.group("tensor")
    if tensors is not None and run.train.compile:
        collectives.hide_from_compilers()
    return tensors is not None and tensor.insert(module, placed, parts, tensors, sequence_parallel)


def _share_means(module: nn.Module, groups: list[ProcessGroup]) -> None:
    """The mean of a sample is over all who share its positions."""
    for mean in (part for part in module.modules() if groups and isinstance(part, Mean)):
        mean.total = lambda x: reduce(collectives.total, groups, x)


def _shard(
    module: nn.Module,
    stages: Stages | None,
    parts: dict[str, Part],
    run: spec.Run,
    mesh: Mesh,
    dtype: torch.dtype,
    device: torch.device,
) -> Shards | None:
    """Give parameters their memory: whole, or this rank's rows."""
    group, layout = mesh.group("shard"), run.layout
    if group is None or mesh.devices is None or layout.zero == 1:
        _materialise(module, parts, dtype, device)
    if group is None or mesh.devices is None:
        return None
    from plait.replica import shard  # FSDP2 takes its time to import

    if layout.zero == 1:
        return shard.OptimizerShards(module, parts, group, run.sync.bucket_bytes)
    called = [module] if stages is None else stages.modules
    uncut = stages.everywhere if stages is not None and len(called) > 1 else ()
    settings = (parts, mesh.devices["shard"], layout.zero, layout.offload, dtype, uncut)
    return shard.Several([shard.FullyShard(each, *settings) for each in called])


def _sums(placed: Placement, mesh: Mesh, sequence_parallel: bool, rows: bool) -> tuple[tuple[str, ...], tuple[str, ...], bool]:
    """The axes along which a parameter is alike, those over which its gradient is partial, and whether this rank counts it. rows: the
    shard axis cuts it."""
    split = {"expert" if placed.kind == "expert" else "tensor" if placed.dim is not None else None, "shard" if rows else None}
    different_tokens = {"shard", "context", "expert", *(["tensor"] if sequence_parallel else [])}
    axes = tuple(axis for axis in ("shard", "context", "tensor", "expert") if axis not in split and mesh.size(axis) > 1)
    return axes, tuple(axis for axis in axes if axis in different_tokens), all(mesh.place[axis] == 0 for axis in axes)


Values = Callable[[str, Part], Tensor]


def _values(module: nn.Module, seed: int) -> Values:
    """Initial values by (path, part): by the model's table of them, or those that a user's own model was built with."""
    table: InitialTable | None = getattr(module, "initial", None)
    if table is not None:
        return lambda path, part: _draw(table, seed, path, part)
    whole = {path: parameter.detach() for path, parameter in module.named_parameters(remove_duplicate=False)}
    return lambda path, part: part.take(whole[path])


def _draw(table: InitialTable, seed: int, path: str, part: Part) -> Tensor:
    """Only the blocks of rows that the part touches are drawn."""
    spans = part.spans[0] or ((0, 0),)
    rows = torch.cat([initial_rows(table, seed, path, part.shape, first, end) for first, end in spans])
    return replace(part, shape=rows.shape, spans=(((0, len(rows)),), *part.spans[1:])).take(rows)


@torch.no_grad()
def _materialise(module: nn.Module, parts: dict[str, Part], dtype: torch.dtype, device: torch.device) -> None:
    """Replace whole parameters by this rank's parts of them; what was tied stays tied."""
    made: dict[Parameter, Parameter] = {}
    for path, old in list(module.named_parameters(remove_duplicate=False)):
        if old not in made:
            kind = dtype if old.is_floating_point() else old.dtype
            empty = torch.empty(parts[path].local_shape, dtype=kind, device=device)
            made[old] = Parameter(empty, requires_grad=old.requires_grad)
        owner, _, name = path.rpartition(".")
        setattr(module.get_submodule(owner), name, made[old])


def _move_buffers(module: nn.Module, dtype: torch.dtype, device: torch.device) -> None:
    for path, buffer in list(module.named_buffers()):
        owner, _, name = path.rpartition(".")
        module.get_submodule(owner)._buffers[name] = buffer.to(device, dtype if buffer.is_floating_point() else buffer.dtype)
