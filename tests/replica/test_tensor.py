"""The tensor axis: matrices cut over ranks compute what whole ones do, and so do their gradients."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from plait import spec
from plait.data.batches import MicroBatch
from plait.model.loss import NO_TARGET
from plait.replica import collectives, tensor
from plait.replica.mesh import make_mesh
from plait.replica.replica import Replica
from plait.sync.group import local_store
from plait.testing.processes import ProcessesFailed, run_distributed
from tests.runs import slow

VOCABULARY, LENGTH, BATCH = 41, 12, 4


def run_of(**model: Any) -> spec.Run:
    settings = {"layers": 2, "width": 32, "heads": 4, "dropout": 0.1, **model}
    optimizer = {"name": "sgd", "lr": 0.1, "momentum": 0.0, "weight_decay": 0.0}
    train = {"duration": "1 steps", "precision": "fp64", "micro_batch": 4, "batch": 8, "optimizer": optimizer}
    return spec.parse({"model": settings, "data": {"corpus": ["x"], "sequence": LENGTH}, "train": train})


def micro_batch(documents: bool = False) -> MicroBatch:
    chance = np.random.default_rng(0)
    tokens = chance.integers(0, VOCABULARY, (BATCH, LENGTH))
    targets = np.where(chance.random((BATCH, LENGTH)) < 0.2, NO_TARGET, chance.integers(0, VOCABULARY, (BATCH, LENGTH)))
    borders = np.cumsum(chance.random((BATCH, LENGTH)) < 0.3, 1) if documents else None
    return MicroBatch(tokens, targets, np.arange(BATCH) + 5, borders, step=3)


def trained(replica: Replica, documents: bool) -> tuple[float, float]:
    """Loss and squared norm of one unit, whose step is then taken."""
    replica.begin(100, 1)
    replica.accumulate(micro_batch(documents))
    replica.finish()
    told = replica.loss_sum(), replica.gradients.squared_norm()
    replica.apply(0.0, 0.1)
    return told


def differences(rank: int, size: int, group: Any, model: dict[str, Any], documents: bool, wrong: str | None = None) -> dict[str, float]:
    run = run_of(**model)
    alone = Replica(run, VOCABULARY, torch.device("cpu"))
    expected = trained(alone, documents)
    if wrong == "copy":
        collectives._Copy.backward = staticmethod(lambda ctx, gradient: (gradient, None))
    if wrong == "scatter":
        collectives._Gather.backward = staticmethod(lambda ctx, gradient: (gradient.chunk(size, 1)[rank], None))
    with tempfile.TemporaryDirectory() as folder:
        mesh = make_mesh(spec.Layout(tensor=size), rank, local_store(Path(meeting(group, folder))), torch.device("cpu"), loopback=True)
        group.barrier(torch.distributed.BarrierOptions()).wait()  # who fails at once would break connections still being made
        spread = Replica(run, VOCABULARY, torch.device("cpu"), mesh)
        found = torch.tensor(trained(spread, documents), dtype=torch.float64)
        torch.distributed.all_reduce(found)
    parameters = max(
        float((leaf.parameter - leaf.part.take(alone.parameters[leaf.path])).detach().abs().max()) if leaf.parameter.numel() else 0.0
        for leaf in spread.assembly.leaves
    )
    return {
        "loss": abs(float(found[0]) / expected[0] - 1),
        "norm": abs(float(found[1]) / expected[1] - 1),
        "parameters": parameters,
    }


def meeting(group: Any, folder: str) -> str:
    """Rank 0's folder, for all."""
    name = torch.zeros(256, dtype=torch.uint8)
    if group.rank() == 0:
        name[: len(folder)] = torch.tensor(list(folder.encode()), dtype=torch.uint8)
    group.broadcast([name], torch.distributed.BroadcastOptions()).wait()
    return bytes(name.tolist()).rstrip(b"\0").decode()


GPT2, LLAMA = {"family": "gpt2"}, {"family": "llama", "kv_heads": 2}


@pytest.mark.parametrize(
    ("model", "ranks", "documents"),
    [(GPT2, 2, True), (LLAMA, 2, False), slow({**GPT2, "recompute": "full"}, 4, False), ({**LLAMA, "tied": True}, 2, True)],
    ids=["gpt2", "llama", "gpt2-recomputed-4", "llama-tied"],
)
def test_loss_norm_and_step_are_those_of_one_process(model: dict[str, Any], ranks: int, documents: bool) -> None:
    for found in run_distributed("tests.replica.test_tensor:differences", ranks, model=model, documents=documents):
        assert found["loss"] < 1e-12
        assert found["norm"] < 1e-12
        assert found["parameters"] < 1e-12


def test_a_gradient_that_is_not_summed_is_seen() -> None:
    """The check above is able to fail: here the gathered positions' gradients stay apart."""
    found = run_distributed("tests.replica.test_tensor:differences", 2, model=LLAMA, documents=False, wrong="scatter")
    assert found[0]["loss"] < 1e-12
    assert found[0]["norm"] > 1e-3


def test_a_model_that_cannot_compute_a_part_of_the_positions_keeps_them_whole() -> None:
    for found in run_distributed(
        "tests.replica.test_tensor:differences", 2, model={"family": "tests.replica.test_tensor:Plain"}, documents=False
    ):
        assert max(found.values()) < 1e-12


class Plain(nn.Module):
    """One's own: no `around`, separate matrices, a column and a row with biases, vocabulary cut, embedding and head tied."""

    sharding = {"embed.weight": "vocabulary", "up.*": "column", "down.weight": "row", "*": "replicated"}  # noqa: RUF012

    def __init__(self, model: spec.Model, vocabulary: int, sequence: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, model.width)
        self.up, self.down = nn.Linear(model.width, 64), nn.Linear(64, model.width)
        self.head = nn.Linear(model.width, vocabulary, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens_BL: torch.Tensor, documents_BL: Any = None, noise: Any = None) -> torch.Tensor:
        x_BLD = self.embed(tokens_BL)
        return self.head(x_BLD + self.down(functional.gelu(self.up(x_BLD).cumsum(1))))


def spread_loss(rank: int, size: int, group: Any, smoothing: float) -> list[float]:
    """Largest differences of loss, gradient and guesses between spread logits and whole ones; a vocabulary of 5 over 4 ranks."""
    torch.distributed.init_process_group("gloo", store=local_store(Path(meeting(group, tempfile.mkdtemp()))), rank=rank, world_size=size)
    from plait.model.loss import cross_entropy
    from plait.replica.part import chunk_span

    generator = torch.Generator().manual_seed(0)
    whole = (torch.randn(3, 7, 5, generator=generator, dtype=torch.float64) * 30).requires_grad_()
    targets = torch.randint(0, 5, (3, 7), generator=generator)
    targets[0, :3] = NO_TARGET
    first, end = chunk_span(5, rank, size)
    part = whole.detach()[..., first:end].clone().requires_grad_()
    world = torch.distributed.group.WORLD
    one, other = cross_entropy(whole, targets, smoothing), tensor.cross_entropy(part, targets, first, world, 5, smoothing)
    one.backward()
    other.backward()
    guesses = tensor.guesses(part.detach(), first, world)
    difference = (part.grad - whole.grad[..., first:end]).abs()
    return [
        abs(float(one.detach() - other.detach())),
        float(difference.max()) if difference.numel() else 0.0,
        float((guesses != whole.argmax(-1)).sum()),
    ]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_loss_of_spread_logits_is_that_of_whole_ones_though_some_ranks_hold_none(smoothing: float) -> None:
    for loss, gradient, guesses in run_distributed("tests.replica.test_tensor:spread_loss", 4, smoothing=smoothing):
        assert loss < 1e-10
        assert gradient < 1e-12
        assert guesses == 0


def test_a_cut_parameter_of_a_strange_layer_is_refused() -> None:
    with pytest.raises(ProcessesFailed, match=r"cuts conv, which is no nn.Linear and no nn.Embedding"):
        run_distributed("tests.replica.test_tensor:differences", 2, model={"family": "tests.replica.test_tensor:Strange"}, documents=False)


class Strange(nn.Module):
    sharding = {"conv.weight": "column", "*": "replicated"}  # noqa: RUF012

    def __init__(self, model: spec.Model, vocabulary: int, sequence: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, model.width)
        self.conv = nn.Conv1d(model.width, 64, 1)

    def forward(self, tokens_BL: torch.Tensor, documents_BL: Any = None, noise: Any = None) -> torch.Tensor:
        return self.conv(self.embed(tokens_BL).transpose(1, 2)).transpose(1, 2)
