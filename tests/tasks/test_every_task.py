"""Every task under replicas and a product of axes, heads and pairs under every sync: the curve of one process where that is promised."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plait import events
from plait.cluster.nursery import Nursery
from plait.tasks.pretrain import train
from plait.tasks.shrink import Wish, shrink
from plait.testing.failures import SignalAt
from tests.curves import LOSS, Curves, assert_one_curve, spread
from tests.runs import T5_PAIRS, slow, tiny
from tests.sync.reference import local_steps
from tests.tasks.kinds import BERT, CHAT, GPT2, LABELLED, MASKED, SPANS

TUNED: dict[str, Any] = {"model": {"dropout": 0.1}, "model__dropout": 0.1, "data__tokenizer": None}
TASKS: dict[str, tuple[str, dict[str, Any]]] = {
    "causal": ("corpus", {}),
    "masked": ("corpus", MASKED),
    "spans": ("corpus", SPANS),
    "translate": ("pairs", T5_PAIRS),
    **{name: ("rows", {**BERT, "data__sequence": 32, **changes}) for name, changes in LABELLED.items()},
    "converse": ("conversations", CHAT),
    "adapters": ("corpus", {**TUNED, "finetune__lora": {"rank": 3, "dropout": 0.2}}),
    "prune": ("corpus", {"prune": {"sparsity": 0.8, "begin": "1 steps", "end": "3 steps", "every": "1 steps"}}),
    "smaller": ("corpus", TUNED),
}

Of = Callable[[str], Curves]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory, corpus: Path, prepared: Path, nursery: Nursery) -> Callable[[str], Path]:
    """What is tuned: a decoder, or one with half its heads and neurons."""
    folder = tmp_path_factory.mktemp("bases")

    def base(task: str) -> Path:
        if not folder.joinpath("smaller").exists():
            train(tiny(corpus, prepared, train__duration="3 steps", **GPT2), folder / "adapters", nursery=nursery, quiet=True)
            shrink(folder / "adapters", folder / "smaller", Wish({"heads": 2, "hidden": 48}, sequences=8), "cpu")
        return folder / task

    return base


@pytest.fixture
def of(request: pytest.FixtureRequest, curves: Callable[..., Curves], bases: Callable[[str], Path]) -> Of:
    """Trains a task."""

    def make(task: str) -> Curves:
        corpus, changes = TASKS[task]
        tuned = {"finetune__from": str(bases(task))} if "data__tokenizer" in changes and changes["data__tokenizer"] is None else {}
        settings = {"train__duration": "4 steps", "model__dropout": 0.1, **changes, **tuned}
        return curves(request.getfixturevalue(corpus), **settings)

    return make


@pytest.mark.parametrize("task", ["translate" if task == "translate" else slow(task) for task in TASKS])
def test_every_task_draws_one_curve_under_replicas_and_a_product(of: Of, task: str) -> None:
    curve = of(task)
    alone = curve("alone")
    assert_one_curve(alone, curve("replicas", layout__replicas=2, balance__capacity=[5.0, 3.0]))
    assert_one_curve(alone, curve("product", **spread({"replicas": 2, "tensor": 2})))


SERVED: dict[str, Any] = {"layout__replicas": 2, "sync__strategy": "server"}


@pytest.mark.parametrize("task", ["tag", slow("classify"), slow("regress"), slow("answer"), slow("translate")])
def test_it_draws_one_curve_through_a_server_and_through_a_death(of: Of, task: str) -> None:
    curve = of(task)
    alone = curve("alone")
    assert_one_curve(alone, curve("served", **SERVED))
    assert_one_curve(alone, curve("killed", SignalAt(2, replica=1), layout__replicas=2))
    assert [lost.replica for lost in curve.of("killed", events.Lost)] == [1]


@pytest.mark.slow
@pytest.mark.parametrize("task", ["classify", "regress", "tag", "answer", "translate"])
def test_local_steps_of_it_are_those_of_a_straight_reference(of: Of, task: str) -> None:
    """And one plain local step is all-reduce."""
    curve = of(task)
    shares = {"layout__replicas": 2, "balance__capacity": [5.0, 3.0]}
    for sync in ({"strategy": "diloco", "every": "2 steps"}, {"strategy": "local_sgd", "every": "3 steps"}):
        steps, expected = curve(str(sync), sync=sync, **shares), local_steps(curve.run(sync=sync, **shares))
        assert [step.loss for step in steps] == pytest.approx(expected, rel=LOSS)
    plain = {"train__optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.0}, "train__clip": 1e9}
    one, local = curve("plain", **plain), curve("local", **plain, **shares, sync={"strategy": "local_sgd", "every": "1 steps"})
    assert [step.loss for step in local] == pytest.approx([step.loss for step in one], rel=LOSS)


LEARNING: dict[str, Any] = {"train__duration": "40 steps", "model__dropout": 0.0, "layout__replicas": 2, "train__precision": "fp32"}
LOOSE: dict[str, dict[str, Any]] = {
    "asynchronous": {"strategy": "server", "update": "asynchronous"},
    "bounded": {"strategy": "server", "update": "bounded", "staleness": 2, "compress": "int8"},
    "int8": {"compress": "int8"},
    "topk": {"compress": "topk", "top_k": 0.1},
}


@pytest.mark.slow
@pytest.mark.parametrize("sync", LOOSE)
@pytest.mark.parametrize("task", ["classify", "translate"])
def test_it_learns_where_the_curve_is_another(of: Of, task: str, sync: str) -> None:
    """Each sample of each step once, and half of what one process has learned at least, whatever is told late, rounded or held back."""
    curve = of(task)
    steps = curve("out", **LEARNING, sync=LOOSE[sync])
    alone = curve("alone", **{**LEARNING, "layout__replicas": 1})
    late = [sum(step.loss for step in each[-8:]) / 8 for each in (steps, alone)]
    assert len(steps) == 40
    assert late[0] < alone[0].loss - 0.5 * (alone[0].loss - late[1])
