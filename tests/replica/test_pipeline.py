"""The pipeline axis: whatever the schedule and the share, the loss and the gradients of one process."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from torch import Tensor, nn

from plait import spec
from plait.data.batches import NO_TARGET, MicroBatch
from plait.model.build import build
from plait.model.loss import cross_entropy
from plait.model.noise import Noise
from plait.replica import device as devices
from plait.replica.compute import Inputs
from plait.replica.mesh import leave_mesh, make_mesh
from plait.replica.pipeline import Pipeline, count_taken
from plait.replica.stages import cut
from plait.testing.processes import ProcessesFailed, run_distributed
from tests.replica.test_stages import Own
from tests.runs import slow

SEED, VOCABULARY, SEQUENCE, DIVISOR = 3, 40, 12, 100
CPU = torch.device("cpu")
SCHEDULES = ["gpipe", "1f1b", "interleaved", "zero_bubble"]
LLAMA = {"family": "llama", "width": 16, "heads": 4, "kv_heads": 2, "hidden": 24, "dropout": 0.1}
GPT2 = {"family": "gpt2", "width": 16, "heads": 4, "dropout": 0.1}


def layout_of(pipeline: int, schedule: Any = "1f1b", stages: list[int] | None = None) -> spec.Layout:
    return spec.Layout(pipeline=pipeline, schedule=schedule, stages=stages)


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

    def __init__(self, rank: int, folder: str, layout: spec.Layout, model: dict[str, Any], precision: str = "fp64") -> None:
        self.mesh = make_mesh(layout, rank, torch.distributed.FileStore(f"{folder}/store", layout.ranks), CPU, loopback=True)
        settings = spec.Model(**{"layers": 4, **model})
        self.alone, spread = (build(settings, VOCABULARY, SEQUENCE, SEED, dtype=devices.dtype(precision)) for _ in range(2))
        self.stages = cut(spread, layout, self.mesh.place["pipeline"], head=0.0)
        self.context = partial(devices.autocast, CPU, precision)
        self.pipeline = Pipeline(self.stages.modules, layout, self.mesh, CPU, self.context)
        self.parameters = dict(self.stages.module.named_parameters())
        self.gradients = {path: torch.zeros_like(parameter) for path, parameter in self.parameters.items()}
        for path, parameter in self.parameters.items():
            parameter.grad = self.gradients[path]
        for parameter in self.alone.parameters():
            parameter.grad = torch.zeros_like(parameter)

    def learn(self, share: list[MicroBatch]) -> float:
        """Gradients of a unit, through the stages; the sum of losses, where the last stage is."""
        losses: list[float] = []

        def finish(logits_BLV: Tensor, inputs: Inputs) -> Tensor:
            loss = loss_of(logits_BLV, inputs)
            losses.append(float(loss.detach()))
            return loss / DIVISOR

        for gradient in self.gradients.values():
            gradient.zero_()
        self.pipeline.step([inputs_of(batch) for batch in self.pipeline.filled(share)], finish)
        self.sum_over_ends()
        return sum(losses)

    def sum_over_ends(self) -> None:
        for path in sorted(self.stages.shared & set(self.parameters)):
            torch.distributed.all_reduce(self.gradients[path], group=self.mesh.group("ends"))

    def learn_alone(self, share: list[MicroBatch]) -> float:
        """The same by the whole model, one micro-batch after the other."""
        self.alone.zero_grad(set_to_none=False)
        losses = []
        for batch in share:
            inputs = inputs_of(batch)
            with self.context():
                loss = loss_of(self.alone(*inputs.arguments), inputs)
            (loss / DIVISOR).backward()
            losses.append(float(loss.detach()))
        return sum(losses)

    def measure(self, share: list[MicroBatch]) -> float:
        losses: list[float] = []

        def finish(logits_BLV: Tensor, inputs: Inputs) -> Tensor:
            losses.append(float(loss_of(logits_BLV, inputs)))
            return logits_BLV.new_zeros(())

        self.pipeline.measure([inputs_of(batch, learning=False) for batch in self.pipeline.filled(share)], finish)
        return sum(losses)

    def gradient_error(self) -> float:
        """The largest difference of a gradient from that of one process, relative to the largest gradient of all."""
        whole = {path: cast(Tensor, parameter.grad) for path, parameter in self.alone.named_parameters()}
        largest = max(float(gradient.abs().max()) for gradient in whole.values()) or 1.0
        return max(float((self.gradients[path] - whole[path]).abs().max()) for path in self.gradients) / largest


def share_of(rows: list[int], step: int, documents: bool = False) -> list[MicroBatch]:
    return [micro_batch(each, 10 * step + number, documents) for number, each in enumerate(rows)]


def train(
    rank: int, size: int, _: Any, folder: str, layout: dict[str, Any], model: dict[str, Any], shares: list[list[int]], **others: Any
) -> dict[str, Any]:
    """Steps of AdamW on shares of micro-batches of so many rows; what differs from one process that takes the same ones."""
    documents = others.pop("documents", False)
    trainee = Trainee(rank, folder, layout_of(**layout), model, **others)
    spread, alone = (torch.optim.AdamW(p, lr=1e-2) for p in (trainee.parameters.values(), trainee.alone.parameters()))
    losses, gradients = [], []
    for step, rows in enumerate(shares, 1):
        share = share_of(rows, step, documents)
        losses.append([trainee.learn(share), trainee.learn_alone(share)])
        gradients.append(trainee.gradient_error())
        spread.step()
        alone.step()
    whole = dict(trainee.alone.named_parameters())
    parameters = max(float((parameter - whole[path]).detach().abs().max()) for path, parameter in trainee.parameters.items())
    in_place = all(parameter.grad is trainee.gradients[path] for path, parameter in trainee.parameters.items())
    seconds = trainee.pipeline.busy, trainee.pipeline.elapsed
    leave_mesh(trainee.mesh)
    return {"losses": losses, "gradients": gradients, "parameters": parameters, "in_place": in_place, "seconds": seconds}


def trained(folder: Path, layout: dict[str, Any], model: dict[str, Any], shares: list[list[int]], **others: Any) -> list[dict[str, Any]]:
    arguments: dict[str, Any] = {"folder": str(folder), "layout": layout, "model": model, "shares": shares, **others}
    return run_distributed("tests.replica.test_pipeline:train", layout["pipeline"], **arguments)


def assert_one_curve(results: list[dict[str, Any]]) -> None:
    """Losses, gradients of each step, and parameters behind the last are those of one process."""
    for by_rank in zip(*(result["losses"] for result in results), strict=True):
        assert sum(mine for mine, _ in by_rank) == pytest.approx(by_rank[0][1], rel=1e-12)
    assert max(error for result in results for error in result["gradients"]) <= 1e-10
    assert max(result["parameters"] for result in results) <= 1e-9
    assert all(result["in_place"] for result in results)


UNEQUAL = [[2, 2, 2, 2], [2, 2, 1], [1], [], [2, 2, 2, 2, 1]]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("model", [LLAMA, slow(GPT2)], ids=["llama", "gpt2"])
def test_unequal_and_empty_shares_have_the_gradients_of_one_process(tmp_path: Path, schedule: str, model: dict[str, Any]) -> None:
    results = trained(tmp_path, {"pipeline": 2, "schedule": schedule}, model, UNEQUAL, documents=model is GPT2)
    assert_one_curve(results)
    assert all(0.0 < busy < elapsed for busy, elapsed in (result["seconds"] for result in results))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layout", "model"),
    [
        ({"pipeline": 4, "schedule": "1f1b"}, GPT2),
        ({"pipeline": 3, "schedule": "gpipe", "stages": [1, 2, 1]}, GPT2),
        ({"pipeline": 3, "schedule": "interleaved"}, {**GPT2, "layers": 7}),
        ({"pipeline": 4, "schedule": "zero_bubble"}, {**LLAMA, "layers": 8}),
    ],
    ids=str,
)
def test_longer_pipelines(tmp_path: Path, layout: dict[str, Any], model: dict[str, Any]) -> None:
    assert_one_curve(trained(tmp_path, layout, model, [[2] * 9, [2, 1], [2] * 4]))


@pytest.mark.parametrize("schedule", ["1f1b", slow("zero_bubble")])
@pytest.mark.slow
def test_a_model_of_ones_own(tmp_path: Path, schedule: str) -> None:
    own = {"family": "tests.replica.test_stages:Own", "width": 16, "heads": 4}
    assert_one_curve(trained(tmp_path, {"pipeline": 2, "schedule": schedule}, own, [[2, 2, 1], [2, 2]]))


@pytest.mark.parametrize("schedule", [slow("1f1b"), "interleaved"])
def test_blocks_are_computed_again_with_the_same_dropout(tmp_path: Path, schedule: str) -> None:
    again = {**LLAMA, "recompute": "full"}
    assert_one_curve(trained(tmp_path, {"pipeline": 2, "schedule": schedule}, again, [[2, 2, 2], [2, 2]]))


def test_in_bf16_stages_send_the_residual_stream_unrounded(tmp_path: Path) -> None:
    """What one process keeps in fp32 between blocks crosses in fp32: nothing but sums of gradients is rounded otherwise."""
    [first, *_], [last, *_] = (result["losses"] for result in trained(tmp_path, {"pipeline": 2}, GPT2, [[2, 2, 2]], precision="bf16"))
    assert last[0] == first[1]


def ends_apart(rank: int, size: int, _: Any, folder: str) -> float:
    """As `train`, but what the two ends have of a tied embedding's gradient is not summed."""
    trainee = Trainee(rank, folder, layout_of(2), GPT2)
    trainee.sum_over_ends = lambda: None  # type: ignore[method-assign]
    share = share_of([2, 2], step=1)
    trainee.learn(share)
    trainee.learn_alone(share)
    leave_mesh(trainee.mesh)
    return trainee.gradient_error()


def test_a_tied_embedding_that_is_not_summed_over_the_ends_is_seen(tmp_path: Path) -> None:
    assert min(run_distributed("tests.replica.test_pipeline:ends_apart", 2, folder=str(tmp_path))) > 1e-3


def measure_between(rank: int, size: int, _: Any, folder: str, schedule: str) -> dict[str, Any]:
    """Measures before, between and behind steps of other sizes, and counts how often each stage computes."""
    trainee = Trainee(rank, folder, layout_of(2, schedule), LLAMA)
    calls: list[int] = []
    for stage in trainee.stages.modules:
        stage.register_forward_pre_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        alone = sum(float(loss_of(trainee.alone(*inputs.arguments), inputs)) for inputs in map(partial(inputs_of, learning=False), SHARE))
    rounds = []
    for rows in ([2, 2, 2, 2], [2, 2], [2, 2, 2, 2]):
        measured = trainee.measure(SHARE)
        trainee.learn(share := share_of(rows, step=1))
        kept = {path: gradient.clone() for path, gradient in trainee.gradients.items()}
        calls.clear()
        again = trainee.measure(SHARE)
        untouched = all(torch.equal(gradient, kept[path]) for path, gradient in trainee.gradients.items())
        trainee.learn(share)
        trainee.learn_alone(share)
        rounds.append(([measured, again], untouched, len(calls) / len(trainee.stages.modules), trainee.gradient_error()))
    leave_mesh(trainee.mesh)
    return {"alone": alone, "rounds": rounds}


SHARE = share_of([2, 2, 1], step=7)


@pytest.mark.parametrize("schedule", [SCHEDULES[0], *map(slow, SCHEDULES[1:])])
def test_measuring_and_learning_take_turns(tmp_path: Path, schedule: str) -> None:
    first, last = run_distributed("tests.replica.test_pipeline:measure_between", 2, folder=str(tmp_path), schedule=schedule)
    measured_at_once = count_taken(layout_of(2, schedule), len(SHARE))
    for number, steps_size in enumerate((4, 2, 4)):
        sums, untouched, calls, error = last["rounds"][number]
        assert sums == pytest.approx([last["alone"]] * 2, rel=1e-12)
        assert first["rounds"][number][0] == [0.0, 0.0]
        assert untouched
        assert calls == measured_at_once + steps_size  # not one to find out what travels
        assert error <= 1e-10


@given(some.integers(1, 64), some.integers(2, 8))
def test_as_few_micro_batches_are_added_as_make_rounds_equal(micro_batches: int, pipeline: int) -> None:
    assert (
        count_taken(layout_of(pipeline, "gpipe"), micro_batches) == count_taken(layout_of(pipeline, "1f1b"), micro_batches) == micro_batches
    )
    taken = count_taken(layout_of(pipeline, "interleaved"), micro_batches)
    fits = [count % max(1, count // pipeline) == 0 for count in range(micro_batches, taken + 1)]
    assert fits == [False] * (taken - micro_batches) + [True]
    assert taken < micro_batches + pipeline or taken < micro_batches + micro_batches // pipeline


class Widening(Own):
    """The last of its blocks returns another dtype than it is given."""

    def through(self, block: nn.Module, x_BLD: Tensor, around: Tensor) -> Tensor:
        x_BLD = super().through(block, x_BLD, around)
        return x_BLD.float() if block is self.blocks[-1] and x_BLD.requires_grad else x_BLD


def widen(rank: int, size: int, _: Any, folder: str) -> None:
    model = {"family": "tests.replica.test_pipeline:Widening", "width": 16, "heads": 4}
    Trainee(rank, folder, layout_of(2), model).learn(share_of([2, 2], step=1))


def test_x_that_changes_from_stage_to_stage_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ProcessesFailed, match=r"x leaves a stage as torch.float32 \[12, 16\] a sample, and the first one as torch.float64"):
        run_distributed("tests.replica.test_pipeline:widen", 2, folder=str(tmp_path))
