"""The shard axis: gradients and steps are those of one process, whatever is cut, and memory stays where it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.distributed import FileStore, ProcessGroup
from torch.nn import Parameter, functional
from torch.utils._python_dispatch import TorchDispatchMode

from plait import spec
from plait.model.build import build, skeleton
from plait.model.init import InitialTable, initial_rows
from plait.model.loss import cross_entropy
from plait.model.noise import Noise
from plait.replica.mesh import Mesh, leave_mesh, make_mesh
from plait.replica.optim import build_optimizer
from plait.replica.part import Part
from plait.replica.shard import FullyShard, OptimizerShards, Parts, Shards, hold_gradient
from plait.testing.processes import run_distributed
from tests.runs import slow

VOCABULARY, LENGTH, STEPS, MICRO_BATCHES, TOKENS = 29, 5, 4, 2, 64.0
LLAMA = {"family": "llama", "layers": 2, "width": 8, "heads": 2, "recompute": "full"}
GPT2 = {"family": "gpt2", "layers": 2, "width": 6, "heads": 2, "dropout": 0.1}
ADAMW = {"name": "adamw", "lr": 1e-2}
SGD = {"name": "sgd", "lr": 1.0}

Loss = Callable[[nn.Module, int, int, int, int], Tensor]
"""(module, step, micro-batch, first sequence, end): the loss of these of the micro-batch's sequences."""


@contextmanager
def shard_mesh(place: str, rank: int, size: int) -> Iterator[Mesh]:
    layout = spec.Layout.model_construct(**{**spec.Layout().model_dump(), "shard": size})
    mesh = make_mesh(layout, rank, FileStore(f"{place}/mesh", size), torch.device("cpu"), loopback=True)
    yield mesh
    leave_mesh(mesh)


def whole_parts(module: nn.Module) -> Parts:
    return {path: Part.whole(parameter.shape) for path, parameter in module.named_parameters(remove_duplicate=False)}


def shard(module: nn.Module, mesh: Mesh, zero: int, parts: Parts | None = None, offload: bool = False) -> Shards:
    """Cut it, rows keeping the values they have, and give the rows gradients of zero."""
    assert mesh.devices is not None
    parts = parts or whole_parts(module)
    values = {path: parameter.detach().clone() for path, parameter in module.named_parameters()}
    shards: Shards
    if zero == 1:
        group = mesh.group("shard")
        assert group is not None
        shards = OptimizerShards(module, parts, group, 2**10)
    else:
        shards = FullyShard(module, parts, mesh.devices["shard"], zero, offload, torch.float64)
        for path, rows in shards.parameters.items():
            rows.parameter.data.copy_(local_rows(rows.part, parts[path], values[path]))
    for rows in shards.parameters.values():
        rows.parameter.grad = torch.zeros_like(rows.parameter)
        if rows.holder is not None:
            hold_gradient(rows.holder, rows.parameter.grad)
    return shards


def local_rows(part: Part, before: Part, values: Tensor) -> Tensor:
    """Of values of the part before the shard axis, those of the part behind it."""
    whole = torch.zeros(part.shape, dtype=values.dtype)
    before.put(values, whole)
    return part.take(whole)


def unit(shards: Shards, module: nn.Module, loss: Loss, step: int, rank: int) -> None:
    """Every rank computes two sequences of each micro-batch."""
    shards.begin()
    for rows in shards.parameters.values():
        assert rows.parameter.grad is not None
        rows.parameter.grad.zero_()
    for number in range(MICRO_BATCHES):
        if number == MICRO_BATCHES - 1:
            shards.final_pass()
        loss(module, step, number, 2 * rank, 2 * rank + 2).backward()
    shards.reduce()


def difference(shards: Shards, whole: nn.Module) -> list[float]:
    """The largest relative differences of gradients and of values."""
    gradients, values = [], []
    for path, parameter in whole.named_parameters():
        rows = shards.parameters[path]
        assert parameter.grad is not None
        assert rows.parameter.grad is not None
        gradients.append(relative(rows.parameter.grad, rows.part.take(parameter.grad), parameter.grad))
        values.append(relative(rows.parameter.detach(), rows.part.take(parameter.detach()), parameter.detach()))
    return [max(gradients), max(values)]


def relative(found: Tensor, wanted: Tensor, whole: Tensor) -> float:
    assert found.shape == wanted.shape
    return float(((found - wanted).abs().sum() / (whole.abs().mean() + 1e-12)).detach())


def addresses(shards: Shards) -> list[int]:
    found = []
    for rows in shards.parameters.values():
        assert rows.parameter.grad is not None
        found += [rows.parameter.data_ptr(), rows.parameter.grad.data_ptr()]
        if rows.holder is not None:
            held: Any = rows.holder.grad
            found += [rows.holder.detach().to_local().data_ptr(), held.to_local().data_ptr()]  # type: ignore[attr-defined]
    return found


def language(sequences: int) -> Loss:
    """Made-up tokens, `sequences` in each micro-batch; dropout's noise by the sequence's number."""
    chance = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, VOCABULARY, (STEPS, MICRO_BATCHES, sequences, LENGTH + 1), generator=chance)

    def loss(module: nn.Module, step: int, number: int, first: int, end: int) -> Tensor:
        mine_BL = tokens[step, number, first:end]
        noise = Noise(1, step, torch.arange(first, end) + 100 * number)
        return cross_entropy(module(mine_BL[:, :-1], None, noise), mine_BL[:, 1:]) / TOKENS

    return loss


def training(rank: int, size: int, group: ProcessGroup, place: str, zero: int, model: dict[str, Any], optimizer: dict[str, Any]) -> Any:
    """Largest differences from one process over the steps, whether addresses stayed, and how many of this rank's parts are empty."""
    settings, loss = spec.Model(**model), language(2 * size)
    whole, module = (build(settings, VOCABULARY, LENGTH, seed=3, dtype=torch.float64) for _ in range(2))
    with shard_mesh(place, rank, size) as mesh:
        shards = shard(module, mesh, zero, offload=zero == 3)
        alone = build_optimizer(spec.Optimizer(**optimizer), whole.named_parameters(), "cpu")
        spread = build_optimizer(spec.Optimizer(**optimizer), ((path, rows.parameter) for path, rows in shards.parameters.items()), "cpu")
        before, worst = addresses(shards), []
        for step in range(STEPS):
            alone.zero_grad()
            for number in range(MICRO_BATCHES):
                loss(whole, step, number, 0, 2 * size).backward()
            unit(shards, module, loss, step, rank)
            worst.append(difference(shards, whole))
            alone.step()
            spread.step()
            shards.publish()
        empty = sum(not rows.parameter.numel() for rows in shards.parameters.values())
        return [max(map(max, worst)), before == addresses(shards), empty]


@pytest.mark.parametrize("zero", [1, 2, 3])
@pytest.mark.parametrize(("size", "model", "optimizer"), [(2, LLAMA, ADAMW), slow(3, GPT2, SGD), slow(4, GPT2, ADAMW)], ids=["2", "3", "4"])
def test_gradients_and_steps_are_those_of_one_process(
    tmp_path: Path, zero: int, size: int, model: dict[str, Any], optimizer: dict[str, Any]
) -> None:
    found = run_distributed("tests.replica.test_shard:training", size, place=str(tmp_path), zero=zero, model=model, optimizer=optimizer)
    assert max(worst for worst, _, _ in found) < 1e-10
    assert all(steady for _, steady, _ in found)
    if size == 4:
        assert found[3][2] > 0  # positions have 5 rows: 2, 2, 1 and none


class Odd(nn.Module):
    """What users write: a scalar, a block that is called twice, one whose weight is the head's too, a layer that few tokens reach."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.scale = Parameter(torch.tensor(0.5))
        self.blocks = nn.ModuleList(nn.Linear(6, 6) for _ in range(4))
        self.blocks[1] = self.blocks[0]
        self.head = nn.Linear(6, 6, bias=False)
        self.head.weight = cast(nn.Linear, self.blocks[2]).weight
        self.rare = nn.Linear(6, 6)
        self.frozen = Parameter(torch.ones(3), requires_grad=False)
        self.double()

    def forward(self, x_ND: Tensor, reached: bool) -> Tensor:
        for block in self.blocks:
            x_ND = x_ND + functional.tanh(block(x_ND))
        if reached:
            x_ND = x_ND + self.rare(x_ND)
        return cast(Tensor, self.head(x_ND) * self.scale * self.frozen.sum())


def odd_loss(module: nn.Module, step: int, number: int, first: int, end: int) -> Tensor:
    x_ND = torch.randn(8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(10 * step + number))[first:end]
    return cast(Tensor, module(x_ND, reached=first == 0).square().sum())


def odd_module(rank: int, size: int, group: ProcessGroup, place: str, zero: int) -> Any:
    """Differences of gradients, the paths that stay whole, the scalar's gradient, and that of one process."""
    whole, module = Odd(), Odd()
    with shard_mesh(place, rank, size) as mesh:
        shards = shard(module, mesh, zero)
        module.scale.data.fill_(0.5)  # what stays whole has its value from the caller too
        for number in range(MICRO_BATCHES):
            for first in range(0, 2 * size, 2):
                odd_loss(whole, 0, number, first, first + 2).backward()
        whole.frozen.grad = torch.zeros(3, dtype=torch.float64)
        unit(shards, module, odd_loss, 0, rank)
        kept = {path for path, _ in whole.named_parameters()} - set(shards.parameters)
        found = [relative_of(shards, path, parameter) for path, parameter in whole.named_parameters() if path not in kept]
        assert module.scale.grad is not None
        assert whole.scale.grad is not None
        return [max(found), sorted(kept), float(module.scale.grad), float(whole.scale.grad)]


def relative_of(shards: Shards, path: str, parameter: Parameter) -> float:
    rows = shards.parameters[path]
    assert rows.parameter.grad is not None
    assert parameter.grad is not None
    return relative(rows.parameter.grad, rows.part.take(parameter.grad), parameter.grad)


@pytest.mark.parametrize("zero", [1, 2, 3])
def test_scalars_stay_whole_and_shared_blocks_and_unreached_layers_are_summed(tmp_path: Path, zero: int) -> None:
    found = run_distributed("tests.replica.test_shard:odd_module", 2, place=str(tmp_path), zero=zero)
    assert max(worst for worst, *_ in found) < 1e-12
    assert found[0][1] == (["frozen", "scale"] if zero == 1 else ["scale"])
    assert sum(scale for _, _, scale, _ in found) == pytest.approx(found[0][3])  # partial sums


def cut_by_hand(rank: int, size: int, group: ProcessGroup, place: str, zero: int) -> Any:
    """Of a [q | k] stack of 4 and 2 rows the second halves, as another axis would have cut it; then by the shard axis."""
    whole = torch.arange(24, dtype=torch.float64).view(6, 4)
    part = Part.whole(whole.shape).cut(0, [(2, 4), (5, 6)])
    module = nn.Linear(4, 6, bias=False).double()
    module.weight = Parameter(part.take(whole))
    with shard_mesh(place, rank, size) as mesh:
        shards = shard(module, mesh, zero, {"weight": part})
        unit(shards, module, lambda module, *_: module(torch.ones(1, 4, dtype=torch.float64)).sum(), 0, rank)
        rows = shards.parameters["weight"]
        assert rows.parameter.grad is not None
        spans, values = [list(span) for span in rows.part.spans[0]], rows.parameter.detach()
        return [spans, bool(torch.equal(values, rows.part.take(whole))), rows.parameter.grad.unique().tolist()]


@pytest.mark.parametrize("zero", [1, 3])
def test_what_another_axis_has_cut_is_cut_again(tmp_path: Path, zero: int) -> None:
    first, second = run_distributed("tests.replica.test_shard:cut_by_hand", 2, place=str(tmp_path), zero=zero)
    assert first == [[[2, 4]], True, [2.0 * MICRO_BATCHES]]
    assert second == [[[5, 6]], True, [2.0 * MICRO_BATCHES]]


def measured_between(rank: int, size: int, group: ProcessGroup, place: str, zero: int) -> list[float]:
    """Outputs without gradients: as built, after the rows were changed unsaid, and after it was said."""
    module = nn.Linear(3, 4, bias=False).double()
    nn.init.ones_(module.weight)
    x_D = torch.ones(3, dtype=torch.float64)
    with shard_mesh(place, rank, size) as mesh, torch.no_grad():
        shards = shard(module, mesh, zero)
        built = float(module(x_D).sum())
        shards.parameters["weight"].parameter.mul_(2.0)
        module(x_D)
        shards.publish()
        return [built, float(module(x_D).sum())]


@pytest.mark.parametrize("zero", [1, 2, 3])
def test_rows_that_were_changed_are_computed_with_once_published(tmp_path: Path, zero: int) -> None:
    assert run_distributed("tests.replica.test_shard:measured_between", 2, place=str(tmp_path), zero=zero) == [[12.0, 24.0]] * 2


class Largest(TorchDispatchMode):
    """The most values of a tensor that was made in real memory."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if type(result) in (Tensor, Parameter) and result.device.type != "meta":
            self.numel = max(self.numel, result.numel())
        return result


def built_in_rows(rank: int, size: int, group: ProcessGroup, place: str) -> list[int]:
    """Values of the largest tensor that building and drawing made, and of the largest parameter."""
    settings = spec.Model(family="llama", layers=1, width=8, heads=2)
    module = skeleton(settings, 16384, LENGTH, seed=3)
    parts, table = whole_parts(module), cast(InitialTable, module.initial)
    with shard_mesh(place, rank, size) as mesh:
        assert mesh.devices is not None
        with Largest() as largest:
            shards = FullyShard(module, parts, mesh.devices["shard"], 3, False, torch.float64)
            for path, rows in shards.parameters.items():
                if rows.part.spans[0]:
                    rows.parameter.data.copy_(initial_rows(table, 3, path, rows.part.shape, *rows.part.spans[0][0]))
    return [largest.numel, 16384 * 8]


@pytest.mark.slow
def test_no_rank_makes_whole_parameters(tmp_path: Path) -> None:
    for largest, whole in run_distributed("tests.replica.test_shard:built_in_rows", 4, place=str(tmp_path)):
        assert largest == whole // 4
