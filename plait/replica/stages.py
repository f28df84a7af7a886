"""Stages: parts of a model, each consecutive layers, that compute one after the other.

    embed, blocks 0 1   x ─►   blocks 2 3, norm, head, loss       stages 0 and 1
    └──── rank 0 ────┘  ◄─ dx  └────────── rank 1 ──────────┘

x alone travels. What blocks are given beside it (rotary angles, masks, noise) each stage makes anew from the micro-batch, which every
rank reads itself. A stage keeps its parameters' paths in the whole model. A parameter that both ends compute with, a tied embedding, is
held by both: its gradient is a partial sum over the mesh's "ends", and the first end counts it.

Where a rank holds two stages they are r and r + P: against ZB-V's r and 2P - 1 - r the bubble is as small from 2P micro-batches on and
smaller below, and the ends stand on two ranks under every schedule.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import Parameter

from plait import spec
from plait.errors import RunFileError
from plait.plan import counts

if TYPE_CHECKING:
    from plait.replica.compute import Inputs

PROTOCOL = ("blocks", "around", "enter", "through", "leave")

Finish = Callable[[Tensor, "Inputs"], Tensor]
"""(logits_BLV, inputs) -> a scalar, the one that backward begins with."""

Context = Callable[[], AbstractContextManager[Any]]


def layers_of_stages(layers: int, layout: spec.Layout, head: float) -> list[int]:
    """How many layers each stage computes: `layout.stages`, or such that stages cost alike. head: its cost, in layers."""
    stages = spec.stages_of(layout)
    if layout.stages is not None:
        return list(layout.stages)
    counted, costs = [1] * stages, [1.0] * (stages - 1) + [1.0 + head]
    for _ in range(layers - stages):
        # A layer more for the cheapest stage; of equals the one whose rank has less, then the later one, which keeps fewer activations.
        of_ranks = [sum(costs[stage % layout.pipeline :: layout.pipeline]) for stage in range(stages)]
        cheapest = min(range(stages), key=lambda stage: (costs[stage], of_ranks[stage], -stage))
        counted[cheapest] += 1
        costs[cheapest] += 1.0
    return counted


def head_in_layers(model: spec.Model, vocabulary: int, sequence: int) -> float:
    """What the head costs, by its FLOPs, in layers; nothing for a user's own model, whose operations nobody has counted."""
    if model.family not in spec.Model.FAMILIES:
        return 0.0
    head = 6.0 * vocabulary * model.width
    return head / ((counts.flops_per_token(model, vocabulary, sequence) - head) / model.all_layers)


def stages_of_rank(rank: int, layout: spec.Layout) -> list[int]:
    """r, r + P, ..."""
    return list(range(rank, spec.stages_of(layout), layout.pipeline))


@dataclass(frozen=True)
class Stages:
    """What a rank holds of a model, under the paths of the whole.

    modules: its stages, in order. module: all of them at once, for whoever looks at parameters; it cannot be called. shared: paths of
    the parameters that the first and the last stage both hold; everywhere: of those that all do.
    """

    modules: list[nn.Module]
    module: nn.Module
    shared: frozenset[str]
    everywhere: frozenset[str]


def cut(model: nn.Module, layout: spec.Layout, place: int, head: float) -> Stages:
    """The stages that the rank at `place` along the pipeline holds. They share the model's modules. Raises RunFileError."""
    _check(model, layout)
    blocks = cast(nn.ModuleList, model.blocks)
    edges = [0, *accumulate(layers_of_stages(len(blocks), layout, head))]
    entering, leaving = _used_at_the_ends(model)
    outside = {path for path, _ in model.named_parameters() if not path.startswith("blocks.")}
    of_stage = {number: _Held(range(*span)) for number, span in enumerate(pairwise(edges))}
    everywhere = set(getattr(model, "everywhere", ()))
    for held in of_stage.values():
        held.paths |= everywhere
    last = len(of_stage) - 1
    of_stage[0].paths |= entering | (outside - leaving)  # what nothing computes with is the first one's
    of_stage[last].paths |= leaving
    mine = stages_of_rank(place, layout)
    module = _part(model, [of_stage[number] for number in mine])
    modules = [_stage(_part(model, [of_stage[number]]), number == 0, number == last, module) for number in mine]
    _check_ties(model, [_part(model, [held]) for held in of_stage.values()])
    shared = _paths(_part(model, [of_stage[0]])) & _paths(_part(model, [of_stage[last]]))
    return Stages(modules, module, frozenset(shared - everywhere), frozenset(everywhere))


class Stage:
    """Laid over a model's own class: its forward pass computes one stage. `unit` is what is under way."""

    is_first: bool
    is_last: bool
    unit: Unit

    def forward(self, x: Tensor, number: Tensor) -> Tensor:
        """x: of the stage before; the first reads none. number: of the micro-batch in the unit. Returns x; the last stage a scalar."""
        model, inputs = cast(Any, self), self.unit.inputs[int(number)]
        with self.unit.context():
            around = model.around(inputs.tokens_BL.shape[1], inputs.documents_BL, inputs.noise, **inputs.keywords)
            if self.is_first:
                x = model.enter(inputs.tokens_BL, around)
            for block in model.blocks:
                x = model.through(block, x, around)
            return self.unit.finished(_left(model, x, around), inputs) if self.is_last else _learned(self.unit.checked(x))


@dataclass
class Unit:
    """The micro-batches that are under way, how their logits become a scalar, and around what forward passes run (autocast).

    like: shape of a row, and dtype, of what travels.
    """

    context: Context = nullcontext
    inputs: Sequence[Inputs] = ()
    finish: Finish | None = None
    like: tuple[torch.Size, torch.dtype] | None = None

    def finished(self, logits_BLV: Tensor, inputs: Inputs) -> Tensor:
        assert self.finish is not None
        return self.finish(logits_BLV, inputs)

    def checked(self, x: Tensor) -> Tensor:
        if self.like is not None and self.like != (x.shape[1:], x.dtype):
            raise RunFileError(
                f"layout.pipeline: x leaves a stage as {x.dtype} {list(x.shape[1:])} a sample, and the first one as {self.like[1]} "
                f"{list(self.like[0])}; what blocks return must have the shape and the dtype of what `enter` returns"
            )
        return x


def _left(model: Any, x: Tensor, around: Any) -> Tensor:
    """What a model tells; a head that pools or drops out looks at what blocks are given, too."""
    return cast(Tensor, model.leave(x, around) if getattr(model, "leaves_around", False) else model.leave(x))


def _learned(x: Tensor) -> Tensor:
    """What leaves a stage takes a gradient even where all that made it is frozen: the next stage sends one in any case."""
    return x if x.requires_grad or not torch.is_grad_enabled() else x.requires_grad_()


def _check(model: nn.Module, layout: spec.Layout) -> None:
    missing = [name for name in PROTOCOL if not hasattr(model, name)]
    if missing:
        raise RunFileError(
            f"layout.pipeline = {layout.pipeline} needs a model of blocks, and {type(model).__name__} has no {' and no '.join(missing)} "
            "(plait.model.decoder shows them); layout.shard, layout.tensor and layout.replicas do without"
        )
    layers, stages = len(cast(nn.ModuleList, model.blocks)), spec.stages_of(layout)
    if stages > layers:
        works = layers * layout.pipeline // stages
        raise RunFileError(
            f"layout.pipeline = {layout.pipeline} makes {stages} stages, and {type(model).__name__} has {layers} blocks; "
            + (f"layout.pipeline = {works} works" if works > 1 else "leave layout.pipeline out")
        )
    if layout.stages is not None and (len(layout.stages) != stages or sum(layout.stages) != layers):
        raise RunFileError(
            f"layout.stages = {layout.stages} names {len(layout.stages)} stages of {sum(layout.stages)} layers; "
            f"there are {stages} stages, and {type(model).__name__} has {layers} blocks"
        )


def _check_ties(model: nn.Module, views: Sequence[nn.Module]) -> None:
    """A parameter has one path: the ends share what stands outside the blocks, and no other stages share anything."""
    whole = {parameter: path for path, parameter in model.named_parameters()}
    for view in views:
        for path, parameter in view.named_parameters():
            if whole[parameter] != path:
                raise RunFileError(
                    f"layout.pipeline: {path} is {whole[parameter]} on another stage, and only the ends may share what they hold"
                )


def _used_at_the_ends(model: nn.Module) -> tuple[set[str], set[str]]:
    """Paths of the parameters that `enter`, and that `leave`, compute with: seen in the graphs of passes over tensors without data."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        ghost = cast(Any, _without_values(model))
        paths = {parameter: path for path, parameter in ghost.named_parameters()}
        try:
            around = ghost.around(1, None, None)
            x_BLD = ghost.enter(torch.zeros(1, 1, dtype=torch.int64), around)
            logits_BLV = _left(ghost, x_BLD.detach(), around)
        except Exception as error:  # whatever a user's model raises is the answer
            what = f"layout.pipeline: {type(model).__name__} computing on tensors without data (torch's FakeTensorMode)"
            raise RunFileError(f"{what}: {type(error).__name__}: {error}") from error
    return {paths[leaf] for leaf in _leaves(x_BLD)}, {paths[leaf] for leaf in _leaves(logits_BLV)}


def _without_values(model: nn.Module) -> nn.Module:
    """A copy whose parameters and buffers are new ones; what was tied is tied."""
    memo: dict[int, Any] = {id(buffer): _alike(buffer) for buffer in model.buffers()}
    memo |= {id(old): Parameter(_alike(old), requires_grad=old.is_floating_point()) for old in model.parameters()}
    return copy.deepcopy(model, memo)


def _alike(old: Tensor) -> Tensor:
    return torch.empty(old.shape, dtype=old.dtype, device=old.device)


def _leaves(y: Tensor) -> set[Parameter]:
    """The parameters in the graph of y."""
    waiting, seen, found = [y.grad_fn], set[Any](), set[Parameter]()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.add(node.variable)
        waiting += [parent for parent, _ in node.next_functions]
    return found


@dataclass
class _Held:
    """What a stage holds: layers, and paths of parameters outside the blocks."""

    layers: range
    paths: set[str] = field(default_factory=set)


def _part(model: nn.Module, stages: Sequence[_Held]) -> nn.Module:
    """The model with some of its children: the blocks of these stages, those that hold their parameters, and those without any."""
    part = cast(Any, copy.copy(model))
    for name in [name for name in vars(model) if "_hooks" in name]:  # FSDP2 gives each part its own
        setattr(part, name, copy.copy(getattr(model, name)))
    own = {parameter: path for path, parameter in model.named_parameters()}
    held = set[str]().union(*(stage.paths for stage in stages))

    def kept(parameters: Iterable[Parameter]) -> bool:
        paths = {own[parameter] for parameter in parameters}
        return not paths or not paths.isdisjoint(held)

    blocks = nn.ModuleList()
    for layer in (layer for stage in stages for layer in stage.layers):
        blocks.add_module(str(layer), cast(nn.ModuleList, model.blocks)[layer])
    children = {name: child for name, child in model._modules.items() if child is None or name == "blocks" or kept(child.parameters())}
    part._modules = children | {"blocks": blocks}
    part._parameters = {name: parameter for name, parameter in model._parameters.items() if parameter is None or kept([parameter])}
    part._buffers = dict(model._buffers)
    return cast(nn.Module, part)


def _stage(part: nn.Module, is_first: bool, is_last: bool, module: nn.Module) -> nn.Module:
    """A part that computes. What it holds itself, in no child, is in the very dict of `module`: replaced in one, it is in both."""
    stage = cast(Any, part)
    stage.__class__ = type(f"{type(part).__name__}Stage", (Stage, type(part)), {})
    stage.is_first, stage.is_last = is_first, is_last
    if is_first or is_last:
        stage._parameters = module._parameters
    stage._buffers = module._buffers
    return part


def _paths(module: nn.Module) -> set[str]:
    return {path for path, _ in module.named_parameters()}
