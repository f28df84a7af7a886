"""Stages: which layers and which parameters are whose, and what cannot be cut."""

from __future__ import annotations

from itertools import combinations, pairwise
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from torch import Tensor, nn

from plait import spec
from plait.errors import RunFileError
from plait.model.build import skeleton
from plait.replica.stages import cut, head_in_layers, layers_of_stages, stages_of_rank


def layout_of(pipeline: int, schedule: Any = "1f1b", stages: list[int] | None = None) -> spec.Layout:
    return spec.Layout(pipeline=pipeline, schedule=schedule, stages=stages)


class Own(nn.Module):
    """A user's own: the head comes before the blocks, a parameter stands in no child, and one child serves both ends."""

    def __init__(self, model: spec.Model, vocabulary: int, sequence: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((model.width,), 3.0))
        self.head = nn.Linear(model.width, vocabulary)
        self.edge = nn.ParameterDict({"first": torch.rand(model.width), "last": torch.rand(model.width)})
        self.embed = nn.Embedding(vocabulary, model.width)
        self.blocks = nn.ModuleList(nn.Linear(model.width, model.width) for _ in range(model.layers))
        self.idle = nn.Linear(2, 2)

    def forward(self, tokens_BL: Tensor, documents_BL: Tensor | None = None, noise: Any = None) -> Tensor:
        around = self.around(tokens_BL.shape[1], documents_BL, noise)
        x_BLD = self.enter(tokens_BL, around)
        for block in self.blocks:
            x_BLD = self.through(block, x_BLD, around)
        return self.leave(x_BLD)

    def around(self, length: int, documents_BL: Tensor | None, noise: Any) -> Tensor:
        return torch.arange(length).cos()[:, None]

    def enter(self, tokens_BL: Tensor, around: Tensor) -> Tensor:
        return cast(Tensor, self.embed(tokens_BL) * self.scale + self.edge["first"])

    def through(self, block: nn.Module, x_BLD: Tensor, around: Tensor) -> Tensor:
        return cast(Tensor, x_BLD + block(x_BLD).tanh() * around)

    def leave(self, x_BLD: Tensor) -> Tensor:
        return cast(Tensor, self.head(x_BLD * self.edge["last"]))


class Shared(Own):
    """Blocks that are one and the same."""

    def __init__(self, model: spec.Model, vocabulary: int, sequence: int) -> None:
        super().__init__(model, vocabulary, sequence)
        self.blocks = nn.ModuleList([self.blocks[0]] * model.layers)


class Asking(Own):
    """Looks at values where there are none."""

    def leave(self, x_BLD: Tensor) -> Tensor:
        return super().leave(x_BLD / float(x_BLD.max()))


class Whole(nn.Module):
    """Nothing but a forward pass."""

    def __init__(self, model: spec.Model, vocabulary: int, sequence: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, vocabulary)

    def forward(self, tokens_BL: Tensor, documents_BL: Tensor | None = None, noise: Any = None) -> Tensor:
        return cast(Tensor, self.embed(tokens_BL))


def model_of(family: str, layers: int = 4, **settings: Any) -> nn.Module:
    return skeleton(spec.Model(family=family, layers=layers, width=16, heads=4, **settings), 40, 12, 0)


def own(kind: type) -> nn.Module:
    return model_of(f"tests.replica.test_stages:{kind.__name__}")


def paths_by_rank(model: nn.Module, layout: spec.Layout) -> list[set[str]]:
    return [{path for path, _ in cut(model, layout, rank, 0.0).module.named_parameters()} for rank in range(layout.pipeline)]


@given(some.integers(1, 4), some.booleans(), some.integers(0, 6), some.floats(0.0, 4.0))
def test_no_other_cut_has_a_cheaper_dearest_stage(pipeline: int, twice: bool, more: int, head: float) -> None:
    layout = layout_of(pipeline, "interleaved" if twice else "1f1b")
    stages = spec.stages_of(layout)
    layers = stages + more

    def dearest(counted: list[int]) -> float:
        return max([*counted[:-1], counted[-1] + head])

    counted = layers_of_stages(layers, layout, head)
    assert (len(counted), sum(counted)) == (stages, layers)
    assert min(counted) >= 1
    every = ([b - a for a, b in pairwise((0, *edges, layers))] for edges in combinations(range(1, layers), stages - 1))
    assert dearest(counted) <= min(map(dearest, every)) + 1e-9


@pytest.mark.parametrize(
    ("layers", "layout", "head", "expected"),
    [
        (8, layout_of(2), 0.0, [4, 4]),
        (8, layout_of(2), 2.0, [5, 3]),
        (4, layout_of(2), 9.0, [3, 1]),
        (5, layout_of(2), 0.0, [2, 3]),
        (7, layout_of(2, "interleaved"), 1.0, [2, 2, 2, 1]),
        (5, layout_of(2, stages=[1, 4]), 0.0, [1, 4]),
    ],
)
def test_stages_cost_alike_unless_they_are_written(layers: int, layout: spec.Layout, head: float, expected: list[int]) -> None:
    assert layers_of_stages(layers, layout, head) == expected


def test_the_head_counts_as_the_layers_that_its_flops_make() -> None:
    model = spec.Model(family="gpt2", layers=3, width=64, heads=4)
    block = 12 * 64**2 + 2 * 64 * 100  # matrices, and attention's two products of the whole square
    assert head_in_layers(model, 5000, 100) == pytest.approx(5000 * 64 / block)
    assert head_in_layers(spec.Model(family="a.b:C"), 5000, 100) == 0.0


def test_ranks_take_turns() -> None:
    assert [stages_of_rank(rank, layout_of(3)) for rank in range(3)] == [[0], [1], [2]]
    assert [stages_of_rank(rank, layout_of(3, "zero_bubble")) for rank in range(3)] == [[0, 3], [1, 4], [2, 5]]


@pytest.mark.parametrize("schedule", ["1f1b", "interleaved"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "moe", "tests.replica.test_stages:Own"])
def test_every_parameter_is_held_once_but_for_what_the_ends_share(family: str, schedule: str) -> None:
    model, layout = model_of(family), layout_of(2, schedule)
    first, last = paths_by_rank(model, layout)
    assert first | last == {path for path, _ in model.named_parameters()}
    shared = {"gpt2": {"embed.weight"}, "tests.replica.test_stages:Own": {"edge.first", "edge.last"}}.get(family, set())
    assert first & last == cut(model, layout, 0, 0.0).shared == shared


def test_what_an_end_computes_with_is_found_wherever_it_stands() -> None:
    first, last = paths_by_rank(own(Own), layout_of(2, stages=[1, 3]))
    assert first == {"scale", "embed.weight", "blocks.0.weight", "blocks.0.bias", "edge.first", "edge.last", "idle.weight", "idle.bias"}
    assert {path for path in last if not path.startswith("blocks")} == {"head.weight", "head.bias", "edge.first", "edge.last"}


def test_a_parameter_that_is_replaced_in_the_module_is_replaced_in_its_stage() -> None:
    stages = cut(own(Own), layout_of(2, "interleaved"), 0, 0.0)
    for path in ("scale", "embed.weight", "blocks.2.bias"):
        owner, _, name = path.rpartition(".")
        setattr(stages.module.get_submodule(owner), name, new := nn.Parameter(torch.ones(3)))
        assert any(parameter is new for stage in stages.modules for parameter in stage.parameters())


def test_a_hook_on_one_stage_is_on_no_other() -> None:
    first, second = cut(own(Own), layout_of(2, "interleaved"), 0, 0.0).modules
    first.register_forward_pre_hook(lambda *_: None)
    assert not second._forward_pre_hooks


@pytest.mark.parametrize(
    ("model", "layout", "message"),
    [
        (Own, layout_of(5), "makes 5 stages, and Own has 4 blocks; layout.pipeline = 4 works"),
        (Own, layout_of(3, "zero_bubble"), "makes 6 stages, and Own has 4 blocks; layout.pipeline = 2 works"),
        (Own, layout_of(2, stages=[2, 3]), "layout.stages = [2, 3] names 2 stages of 5 layers; there are 2 stages, and Own has 4 blocks"),
        (Whole, layout_of(2), "Whole has no blocks and no around and no enter"),
        (Shared, layout_of(2), "blocks.2.weight is blocks.0.weight on another stage"),
        (Asking, layout_of(2), "Asking computing on tensors without data"),
    ],
    ids=str,
)
def test_what_cannot_be_cut_is_told(model: type, layout: spec.Layout, message: str) -> None:
    with pytest.raises(RunFileError) as caught:
        cut(own(model), layout, 0, 0.0)
    assert message in str(caught.value)
