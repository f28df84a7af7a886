"""The expert axis against one process: outputs, gradients and loads, however unevenly tokens and samples fall."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
from torch import nn
from torch.distributed import FileStore
from torch.nn import Parameter

from plait import spec
from plait.model.build import build
from plait.model.loss import NO_TARGET, cross_entropy
from plait.model.moe import Mixture, mixtures
from plait.model.noise import Noise
from plait.model.sharding import Placement, placement
from plait.replica import expert
from plait.replica.mesh import Mesh, make_mesh
from plait.replica.part import Part
from plait.testing.processes import run_distributed

EXPERTS, VOCABULARY, LENGTH, WIDTH = 8, 30, 8, 16
CLOSE = 1e-10


def join(store: str, rank: int, **axes: int) -> Mesh:
    layout = spec.Layout.model_construct(**axes)
    return make_mesh(layout, rank, FileStore(store, layout.ranks), torch.device("cpu"), loopback=True)


def hold_a_part(module: nn.Module, mesh: Mesh) -> dict[str, Part]:
    """Replace stacks of experts by this rank's; returns the parts that are none of the whole."""
    parts = {}
    for mixture in mixtures(module):
        for name, whole in list(mixture.experts.named_parameters()):
            part = expert.expert_part(Part.whole(whole.shape), Placement("expert"), *mesh.of("expert"))
            setattr(mixture.experts, name, Parameter(part.take(whole.detach())))
            parts[f"{name} {mixture.layer}"] = part
    return parts


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    assert one.shape == other.shape
    return (one - other).abs().max().item() if one.numel() else 0.0


# --- a decoder, samples and experts spread -----------------------------------------------------------------------------


def decoder(recompute: str) -> nn.Module:
    settings = spec.Model(
        family="moe", layers=3, width=WIDTH, heads=2, experts=EXPERTS, dense_layers=1, shared_experts=1, auxiliary=0.2, recompute=recompute
    )
    return build(settings, VOCABULARY, LENGTH, seed=0, dtype=torch.float64)


def learn(model: nn.Module, tokens_BL: torch.Tensor, divisor: int, counts: bool = True) -> torch.Tensor:
    """Logits; gradients and loads are left in the model. counts: false for samples that only stand in where a rank has none."""
    expert.begin(model, divisor)
    samples = len(tokens_BL)
    logits = model(tokens_BL, None, Noise(0, 1, torch.arange(samples), counted_B=torch.full((samples,), counts)))
    targets_BL = tokens_BL if counts else torch.full_like(tokens_BL, NO_TARGET)
    (cross_entropy(logits, targets_BL) / divisor).backward()
    return logits.detach()


def spread_decoder(rank: int, size: int, group: Any, store: str, lanes: list[int], shunned: list[int], recompute: str, broken: bool) -> Any:
    mesh = join(store, rank, expert=size)
    if broken:
        expert._by_expert = lambda counts_RE: torch.arange(int(counts_RE.sum()))
    tokens = torch.randint(0, VOCABULARY, (sum(lanes), LENGTH), generator=torch.Generator().manual_seed(1))
    first, divisor = sum(lanes[:rank]), tokens.numel()
    alone, model = decoder(recompute), decoder(recompute)
    for mixture in (*mixtures(alone), *mixtures(model)):
        mixture.router.bias[shunned] = -100.0
    parts = hold_a_part(model, mesh)
    expert.insert(model, mesh.group("expert"))
    calls = count_calls()
    here = slice(first, first + lanes[rank]) if lanes[rank] else slice(0, 1)
    logits = learn(model, tokens[here], divisor, counts=lanes[rank] > 0)
    calls = calls["all_to_all_single"]
    differences = {"logits": difference(logits, learn(alone, tokens, divisor)[here])}
    theirs = dict(alone.named_parameters())
    for path, parameter in model.named_parameters():
        if placement(model.sharding, path).kind == "expert":
            part = parts[f"{path.rpartition('.')[2]} {path.split('.')[1]}"]
            differences[path] = difference(parameter.grad, part.take(theirs[path].grad))
        else:
            torch.distributed.all_reduce(parameter.grad, group=mesh.group("expert"))
            differences[path] = difference(parameter.grad, theirs[path].grad)
    total = torch.tensor(expert.load(model)[1:])
    torch.distributed.all_reduce(total, group=mesh.group("expert"))
    assert total.tolist() == expert.load(alone)[1:]
    return {"differences": differences, "calls": calls, "load": total.tolist()}


def count_calls() -> dict[str, int]:
    """Counts all-to-alls from here on."""
    counts = {"all_to_all_single": 0}
    called = torch.distributed.all_to_all_single

    def counting(*given: Any, **named: Any) -> Any:
        counts["all_to_all_single"] += 1
        return called(*given, **named)

    torch.distributed.all_to_all_single = counting
    return counts


CASES = {
    "even": ([2, 2], []),
    "uneven": ([3, 1], [1]),
    "a rank without samples": ([3, 0], []),
    "a rank without tokens": ([2, 1], [4, 5, 6, 7]),
    "four ranks": ([2, 0, 1, 1], [2, 3]),
}


def spread(tmp_path: Path, case: str, recompute: str = "none", broken: bool = False) -> list[dict[str, Any]]:
    lanes, shunned = CASES[case]
    return run_distributed(
        "tests.replica.test_expert:spread_decoder",
        len(lanes),
        store=str(tmp_path / "store"),
        lanes=lanes,
        shunned=shunned,
        recompute=recompute,
        broken=broken,
    )


@pytest.mark.parametrize("case", CASES)
def test_experts_on_several_ranks_compute_what_one_process_does(tmp_path: Path, case: str) -> None:
    found = spread(tmp_path, case)
    for rank in found:
        assert max(rank["differences"].values()) <= CLOSE, rank["differences"]
        assert rank["calls"] == 2 * (3 + 2)  # two mixtures: counts, there and back; back and there again
    lanes, shunned = CASES[case]
    assert all(sum(layer) == 2 * LENGTH * sum(lanes) and not any(layer[index] for index in shunned) for layer in found[0]["load"])


@pytest.mark.parametrize("recompute", ["selective", "full"])
def test_recomputing_sends_again_and_counts_once(tmp_path: Path, recompute: str) -> None:
    for rank in spread(tmp_path, "uneven", recompute=recompute):
        assert max(rank["differences"].values()) <= CLOSE, rank["differences"]
        assert rank["calls"] == 2 * (3 + 3 + 2)


def test_rows_that_meet_another_expert_are_seen(tmp_path: Path) -> None:
    """The check above is able to fail: here rows stay as they arrived, by rank and not by expert."""
    found = spread(tmp_path, "even", broken=True)
    assert max(max(rank["differences"].values()) for rank in found) > 1e-4


# --- a mixture, experts, samples and positions spread ----------------------------------------------------------------------


def mixture() -> Mixture:
    module = Mixture(WIDTH, spec.Mixture(EXPERTS, 3, 0, 8, "sigmoid", "auxiliary", 0.5, 0.1), 0).double()
    chance = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=chance) * 0.4)
    return module


def spread_mixture(rank: int, size: int, group: Any, store: str, axes: dict[str, int], told: bool = True, last: bool = False) -> Any:
    """Samples are cut over the expert axis, positions over context and tensor. last: the last rank has all samples."""
    mesh = join(store, rank, **axes)
    chance = torch.Generator().manual_seed(3)
    x, g = (torch.randn(4, LENGTH, WIDTH, generator=chance, dtype=torch.float64) for _ in range(2))
    alone, module = mixture(), mixture()
    [part_up, part_down] = hold_a_part(module, mesh).values()
    if (expert_group := mesh.group("expert")) is not None:
        expert.insert(module, expert_group)
    cutting = [found for axis in ("context", "tensor") if (found := mesh.group(axis)) is not None]
    if told:
        expert.share_sequences(module, cutting)
    place = mesh.place["context"] * mesh.size("tensor") + mesh.place["tensor"]
    positions = torch.arange(LENGTH).chunk(mesh.size("context") * mesh.size("tensor"))[place]
    lanes = [0] * (mesh.size("expert") - 1) + [4] if last else [4 // mesh.size("expert")] * mesh.size("expert")
    samples = torch.arange(4).split(lanes)[mesh.place["expert"]]
    (module(x[samples][:, positions]) * g[samples][:, positions]).sum().backward()
    (alone(x) * g).sum().backward()
    for found in cutting:
        for parameter in module.parameters():
            torch.distributed.all_reduce(parameter.grad, group=found)
    if expert_group is not None:
        torch.distributed.all_reduce(module.router.weight.grad, group=expert_group)
    return [
        difference(module.router.weight.grad, alone.router.weight.grad),
        difference(module.experts.gate_up.grad, part_up.take(alone.experts.gate_up.grad)),
        difference(module.experts.down.grad, part_down.take(alone.experts.down.grad)),
    ]


@pytest.mark.parametrize("axes", [{"context": 2}, {"context": 2, "expert": 2}, {"tensor": 2, "context": 2}], ids=str)
def test_a_sequence_that_ranks_share_is_balanced_as_one(tmp_path: Path, axes: dict[str, int]) -> None:
    size = spec.Layout.model_construct(**axes).ranks
    found = run_distributed("tests.replica.test_expert:spread_mixture", size, store=str(tmp_path / "store"), axes=axes)
    assert max(max(rank) for rank in found) <= CLOSE, found


def test_a_rank_without_a_single_row_takes_part(tmp_path: Path) -> None:
    found = run_distributed("tests.replica.test_expert:spread_mixture", 4, store=str(tmp_path / "store"), axes={"expert": 4}, last=True)
    assert max(max(rank) for rank in found) <= CLOSE, found


def test_choices_that_are_not_summed_over_a_sequence_are_seen(tmp_path: Path) -> None:
    found = run_distributed("tests.replica.test_expert:spread_mixture", 2, store=str(tmp_path / "store"), axes={"context": 2}, told=False)
    assert min(rank[0] for rank in found) > 1e-4


# --- parts and bookkeeping ---------------------------------------------------------------------------------------------------


def test_experts_are_shared_out_evenly_or_not_at_all() -> None:
    whole = Part.whole(torch.Size((6, 4, 2)))
    assert expert.expert_part(whole, Placement("expert"), 1, 3).spans[0] == ((2, 4),)
    assert expert.expert_part(whole, Placement("replicated"), 1, 3) is whole
    with pytest.raises(ValueError, match="6 experts cannot be shared out among 4 ranks"):
        expert.expert_part(whole, Placement("expert"), 0, 4)


def test_loads_and_biases_go_by_layer() -> None:
    model = decoder("none")
    learn(model, torch.zeros(2, LENGTH, dtype=torch.int64), 1)
    found = expert.load(model)
    assert [len(layer) for layer in found] == [0, EXPERTS, EXPERTS]
    expert.follow(model, [[], [2] * EXPERTS, [9, *[1] * (EXPERTS - 1)]])
    first, second = (found.router.bias for found in mixtures(model))
    assert not first.any()
    torch.testing.assert_close(second, 1e-3 * torch.tensor([-1.0, *[1.0] * (EXPERTS - 1)], dtype=torch.float64))
    expert.begin(model, 4)
    assert mixtures(model)[0].router.auxiliary_scale == 0.25
    assert not any(map(any, expert.load(model)))
    assert expert.load(nn.Linear(2, 2)) == []
