"""Promise 1 with mixtures of experts: choices, balance and all follow no replica, no micro-batch, no axis and no restart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plait import events
from plait.errors import RunFileError
from plait.testing.failures import CutOff, CutOffAt
from tests import curves as tests_curves
from tests.curves import Curves, spread
from tests.runs import differences, slow, tiny

STEPS = 9
MOE = {"family": "moe", "layers": 4, "width": 32, "heads": 4, "kv_heads": 2, "dropout": 0.1, "experts": 4, "dense_layers": 1}
BIAS = {**MOE, "bias_rate": 0.02, "auxiliary": 0.01, "shared_experts": 1}


@pytest.fixture
def curve(curves: Callable[..., Curves], corpus: Path) -> Curves:
    return curves(corpus, model=BIAS, train__duration=f"{STEPS} steps")


@pytest.fixture
def alone(curve: Curves) -> list[events.Step]:
    """The curve of one process."""
    return curve("alone")


def assert_one_curve(one: list[events.Step], other: list[events.Step]) -> None:
    """And one load of experts."""
    tests_curves.assert_one_curve(one, other)
    assert [step.load for step in one] == [step.load for step in other]


@pytest.mark.parametrize(
    "changes",
    [
        {"layout__replicas": 2},
        {"layout__replicas": 3, "balance__capacity": [5.0, 0.0, 3.0]},
        {"train__micro_batch": 5, "model": {**BIAS, "recompute": "full"}},
    ],
    ids=["equal shares", "unequal shares", "other micro-batches"],
)
def test_shares_and_micro_batches_draw_one_curve_and_tell_one_load(
    curve: Curves, alone: list[events.Step], changes: dict[str, Any]
) -> None:
    assert_one_curve(alone, curve("shared", **changes))


def test_all_choices_of_a_global_batch_are_counted(alone: list[events.Step]) -> None:
    assert [len(layer) for layer in alone[0].load] == [0, 4, 4, 4]
    assert all(sum(layer) == 8 * 16 * 2 for step in alone for layer in step.load[1:])


@pytest.mark.slow
def test_a_loss_that_balances_draws_one_curve(curve: Curves) -> None:
    model = {**MOE, "balance": "auxiliary", "auxiliary": 0.1, "experts_per_token": 1}
    assert_one_curve(curve("one", model=model), curve("two", model=model, layout__replicas=2))


@pytest.mark.parametrize("layout", [{"expert": 2, "replicas": 2}, slow({"expert": 4})], ids=str)
def test_experts_on_several_ranks_draw_the_curve_of_one_process(curve: Curves, alone: list[events.Step], layout: dict[str, int]) -> None:
    assert_one_curve(alone, curve("spread", **spread(layout)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "layout",
    [
        {"expert": 2, "tensor": 2},
        {"expert": 2, "context": 2},
        {"expert": 2, "shard": 2},
        {"expert": 2, "pipeline": 2},
        {"pipeline": 2, "schedule": "zero_bubble"},
    ],
    ids=str,
)
def test_experts_beside_other_axes_draw_the_curve_of_one_process(curve: Curves, alone: list[events.Step], layout: dict[str, Any]) -> None:
    assert_one_curve(alone, curve("spread", **spread(layout)))


def test_biases_are_kept_and_the_curve_goes_on_in_another_layout(curve: Curves, alone: list[events.Step]) -> None:
    every = {"checkpoint__every": "3 steps"}
    with pytest.raises(CutOff):
        curve("moved", CutOffAt(6, kind=events.Saved), layout__expert=2, **every)
    assert_one_curve(alone, curve("moved", **every))


def test_a_bias_that_stays_is_seen(curve: Curves, alone: list[events.Step]) -> None:
    """The checks above are able to fail: other biases choose others."""
    still = curve("still", model={**BIAS, "bias_rate": 1e-9})
    assert differences(alone[:1], still[:1])[0] == 0
    assert differences(alone, still)[0] > 1e-6
    assert alone[-1].load != still[-1].load


def test_an_asynchronous_server_refuses_biases_and_takes_a_loss(curve: Curves, corpus: Path, prepared: Path) -> None:
    with pytest.raises(RunFileError, match=r'model.balance = "bias" follows the load of a whole global batch'):
        tiny(corpus, prepared, model=BIAS, sync__strategy="server")
    steps = curve("server", model={**MOE, "balance": "auxiliary"}, sync__strategy="server", layout__replicas=2)
    assert all(sum(layer) == 8 * 16 * 2 for step in steps for layer in step.load[1:])
