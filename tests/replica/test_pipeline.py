"""The pipeline axis: whatever the schedule and the share, the loss and the gradients of one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from plait import spec
from plait.data.batches import NO_TARGET, MicroBatch
from plait.model.build import build
from plait.model.loss import cross_entropy
from plait.model.noise import Noise
from plait.replica.compute import Inputs
from plait.replica.mesh import leave_mesh, make_mesh
from plait.replica.pipeline import Pipeline
from plait.replica.stages import cut
from plait.testing.processes import run_distributed

SEED, VOCABULARY, SEQUENCE = 3, 40, 12
CPU = torch.device("cpu")
SCHEDULES = ["gpipe", "1f1b", "interleaved", "zero_bubble"]
LLAMA = {"family": "llama", "width": 16, "heads": 4, "kv_heads": 2, "hidden": 24, "dropout": 0.1}
GPT2 = {"family": "gpt2", "width": 16, "heads": 4, "dropout": 0.1}


def layout_of(pipeline: int, schedule: str = "1f1b", **others: Any) -> spec.Layout:
    return spec.Layout.model_construct(pipeline=pipeline, schedule=schedule, **others)


def micro_batch(rows: int, step: int, documents: bool = False) -> MicroBatch:
    """Random rows, of which every third target does not count."""
    chance = np.random.default_rng([rows, step])
    tokens_BL, targets_BL = chance.integers(0, VOCABULARY, (2, rows, SEQUENCE))
    targets_BL[:, ::3] = NO_TARGET
    documents_BL = chance.integers(0, 2, (rows, SEQUENCE)).cumsum(1) if documents else None
    return MicroBatch(tokens_BL, targets_BL, chance.integers(0, 1000, rows), documents_BL, step)


def inputs_of(batch: MicroBatch, learning: bool = True) -> Inputs:
    tokens_BL, targets_BL = torch.from_numpy(batch.tokens_BL), torch.from_numpy(batch.targets_BL)
    documents_BL = None if batch.documents_BL is None else torch.from_numpy(batch.documents_BL)
    noise = Noise(SEED, batch.step, torch.from_numpy(batch.samples_B)) if learning else None
    return Inputs(tokens_BL, targets_BL, documents_BL, noise, None)


def loss_of(logits_BLV: Tensor, inputs: Inputs) -> Tensor:
    return cross_entropy(logits_BLV, inputs.targets_BL)


class Trainee:
    """This rank's stages of a tiny model, with gradients in memory of their own, beside the whole model in one piece."""

    def __init__(self, rank: int, folder: str, layout: spec.Layout, model: dict[str, Any]) -> None:
        settings = spec.Model(**{"layers": 4, **model})
        store = torch.distributed.FileStore(f"{folder}/store", layout.ranks)
        self.mesh = make_mesh(layout, rank, store, CPU, loopback=True)
        self.alone, spread = (build(settings, VOCABULARY, SEQUENCE, SEED, dtype=torch.float64) for _ in range(2))
        stages = cut(spread, layout, self.mesh.place["pipeline"], head=0.0)
        self.parameters = {path: parameter for stage in stages.modules for path, parameter in stage.named_parameters()}
        self.shared = stages.shared & set(self.parameters)
        self.gradients = {path: torch.zeros_like(parameter) for path, parameter in self.parameters.items()}
        for path, parameter in self.parameters.items():
            parameter.grad = self.gradients[path]
        self.pipeline = Pipeline(stages.modules, layout, self.mesh, CPU)

    def learn(self, share: list[MicroBatch], divisor: int = 100) -> float:
        def finish(logits_BLV: Tensor, inputs: Inputs) -> Tensor:
            loss = loss_of(logits_BLV, inputs)
            losses.append(float(loss.detach()))
            return loss / divisor

        losses: list[float] = []
        for gradient in self.gradients.values():
            gradient.zero_()
        self.pipeline.step([inputs_of(batch) for batch in self.pipeline.filled(share)], finish)
        for path in sorted(self.shared):
            torch.distributed.all_reduce(self.gradients[path], group=self.mesh.group("ends"))
        return sum(losses)

    def learn_alone(self, share: list[MicroBatch], divisor: int = 100) -> float:
        for parameter in self.alone.parameters():
            parameter.grad = torch.zeros_like(parameter)
        losses = []
        for batch in share:
            inputs = inputs_of(batch)
            loss = loss_of(self.alone(*inputs.arguments), inputs)
            (loss / divisor).backward()
            losses.append(float(loss.detach()))
        return sum(losses)

    def gradient_error(self) -> float:
        """The largest difference of a gradient from that of one process, relative to the largest gradient of all."""
        whole = {path: cast(Tensor, parameter.grad) for path, parameter in self.alone.named_parameters()}
        largest = max(float(gradient.abs().max()) for gradient in whole.values()) or 1.0
        return max(float((self.gradients[path] - whole[path]).abs().max()) for path in self.gradients) / largest


def train(
    rank: int, size: int, _: Any, folder: str, layout: dict[str, Any], model: dict[str, Any], shares: list[list[int]], documents: bool
) -> dict[str, Any]:
    """Steps of AdamW on shares of micro-batches of so many rows; what differs from one process that takes the same ones."""
    trainee = Trainee(rank, folder, layout_of(**layout), model)
    spread, alone = (torch.optim.AdamW(p, lr=1e-2) for p in (trainee.parameters.values(), trainee.alone.parameters()))
    losses, gradients = [], []
    for step, rows in enumerate(shares, 1):
        share = [micro_batch(each, 10 * step + number, documents) for number, each in enumerate(rows)]
        losses.append([trainee.learn(share), trainee.learn_alone(share)])
        gradients.append(trainee.gradient_error())
        spread.step()
        alone.step()
    whole = dict(trainee.alone.named_parameters())
    parameters = max(float((parameter - whole[path]).detach().abs().max()) for path, parameter in trainee.parameters.items())
    in_place = all(parameter.grad is trainee.gradients[path] for path, parameter in trainee.parameters.items())
    leave_mesh(trainee.mesh)
    return {"losses": losses, "gradients": gradients, "parameters": parameters, "in_place": in_place, "paths": sorted(trainee.parameters)}


def spread(tmp_path: Path, layout: dict[str, Any], model: dict[str, Any], shares: list[list[int]], documents: bool = False) -> list[Any]:
    """Trains so, and checks all that one process has: losses, gradients of each step, parameters behind the last."""
    arguments: dict[str, Any] = {"folder": str(tmp_path), "layout": layout, "model": model, "shares": shares, "documents": documents}
    results = run_distributed("tests.replica.test_pipeline:train", layout["pipeline"], **arguments)
    for step in range(len(shares)):
        loss = sum(result["losses"][step][0] for result in results)
        assert loss == pytest.approx(results[0]["losses"][step][1], rel=1e-12)
    assert max(error for result in results for error in result["gradients"]) <= 1e-10
    assert max(result["parameters"] for result in results) <= 1e-9
    assert all(result["in_place"] for result in results)
    return results


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("model", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_each_schedule_has_the_losses_and_gradients_of_one_process(tmp_path: Path, schedule: str, model: dict[str, Any]) -> None:
    shares = [[2, 2, 2, 2], [2, 2, 1], [1], [], [2, 2, 2, 2, 1]]
    spread(tmp_path, {"pipeline": 2, "schedule": schedule}, model, shares, documents=model is GPT2)
