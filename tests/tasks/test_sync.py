"""How replicas agree, in whole runs: one curve where it is promised, the paper's algorithm where not, and nobody's death loses work."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plait import events
from plait.errors import Interrupted
from plait.ledger.tuning import best_bucket
from plait.testing.failures import PauseAt, SignalAt
from tests.curves import LOSS, Curves, assert_one_curve
from tests.runs import slow
from tests.sync.reference import local_steps

STEPS = 20

SERVED = {"layout__replicas": 2, "sync__strategy": "server", "sync__servers": 2}
ASYNCHRONOUS = {**SERVED, "sync__update": "asynchronous"}
PLAIN_SGD = {"train__optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.0}, "train__clip": 1e9}


@pytest.fixture
def curve(curves: Callable[..., Curves], corpus: Path) -> Curves:
    return curves(corpus, train__duration=f"{STEPS} steps", model__dropout=0.1)


# --- one curve -------------------------------------------------------------------------------------------------


def test_a_synchronous_server_draws_the_curve_of_one_process(curve: Curves) -> None:
    alone = curve("alone")
    assert_one_curve(alone, curve("two", **SERVED))
    assert_one_curve(alone, curve("three", layout__replicas=3, sync__strategy="server", sync__push_every=2))
    assert_one_curve(alone, curve("one", sync__strategy="server", sync__servers=3))


@pytest.mark.slow
def test_a_synchronous_server_has_all_replicas_evaluate_their_share(curve: Curves) -> None:
    curve("alone", train__evaluate_every="10 steps")
    curve("served", train__evaluate_every="10 steps", **SERVED)
    one, other = (curve.of(name, events.Evaluated) for name in ("alone", "served"))
    assert [event.step for event in other] == [10, 20]
    assert [event.loss for event in other] == pytest.approx([event.loss for event in one], rel=LOSS)


@pytest.mark.slow
def test_a_synchronous_server_serves_replicas_that_are_spread(curve: Curves) -> None:
    spread = curve("tensor", layout={"replicas": 2, "tensor": 2}, sync__strategy="server", sync__servers=2)
    assert_one_curve(curve("alone"), spread)


def test_local_sgd_of_one_plain_step_is_all_reduce(curve: Curves) -> None:
    shares = {"layout__replicas": 2, "balance__capacity": [5.0, 3.0]}
    one = curve("allreduce", **PLAIN_SGD, **shares)
    other = curve("local", sync__strategy="local_sgd", sync__every="1 steps", **PLAIN_SGD, **shares)
    assert max(abs(a.loss - b.loss) / a.loss for a, b in zip(one, other, strict=True)) <= LOSS
    assert other[-1].loss < other[0].loss - 0.1


def test_phases_that_agree_step_by_step_draw_one_curve(curve: Curves) -> None:
    phases = [
        {"strategy": "server", "until": "5 steps"},
        {"strategy": "allreduce", "until": "9 steps"},
        {"strategy": "server", "push_every": 2, "until": "14 steps"},
        {"strategy": "allreduce"},
    ]
    switched = curve("phases", layout__replicas=2, sync={"strategy": "phases", "phases": phases, "servers": 2})
    assert_one_curve(curve("alone"), switched)
    assert [(event.step, event.sync) for event in curve.of("phases", events.Switched)] == [
        (5, "allreduce"),
        (9, "synchronous"),
        (14, "allreduce"),
    ]
    assert [step.sync for step in switched][4:6] == ["synchronous", "allreduce"]


# --- local steps -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sync",
    [
        {"strategy": "local_sgd", "every": "4 steps"},
        slow({"strategy": "diloco", "every": "4 steps"}),
        {"strategy": "diloco", "every": "7 steps", "outer_lr": 0.5, "outer_momentum": 0.8},
    ],
    ids=["local_sgd", "diloco", "diloco-7"],
)
def test_local_steps_are_those_of_a_straight_reference(curve: Curves, sync: dict[str, Any]) -> None:
    settings = {"layout__replicas": 3, "balance__capacity": [3.0, 1.0, 4.0], "sync": sync}
    steps = curve("out", **settings)
    expected = local_steps(curve.run(**settings))
    assert max(abs(step.loss - loss) / loss for step, loss in zip(steps, expected, strict=True)) <= LOSS


@pytest.mark.slow
def test_local_steps_work_over_a_spread_replica(curve: Curves) -> None:
    settings = {"sync": {"strategy": "diloco", "every": "4 steps"}}
    one = curve("plain", layout__replicas=2, **settings)
    other = curve("tensor", layout={"replicas": 2, "tensor": 2}, **settings)
    assert_one_curve(one, other)


@pytest.mark.parametrize("compress", [slow("none"), slow("int8"), "topk"])
@pytest.mark.slow
def test_a_round_that_is_stopped_and_goes_on_is_the_same(curve: Curves, compress: str) -> None:
    """The optimizer state of each replica, the outer momentum and what compression held back come out of the checkpoint."""
    settings = {"layout__replicas": 2, "sync": {"strategy": "diloco", "every": "4 steps", "compress": compress}}
    whole = curve("whole", **settings)
    with pytest.raises(Interrupted):
        curve("parts", SignalAt(7, signal.SIGTERM), **settings)
    assert curve("parts", **settings)[-1].loss == pytest.approx(whole[-1].loss, rel=1e-12)


# --- deaths ----------------------------------------------------------------------------------------------------


def test_a_killed_worker_is_replaced_and_the_curve_is_the_same(curve: Curves) -> None:
    killed = curve("killed", SignalAt(7, replica=1), SignalAt(12, replica=0), checkpoint__every="5 steps", **SERVED)
    assert_one_curve(curve("alone"), killed)
    assert [lost.replica for lost in curve.of("killed", events.Lost)] == [1, 0]
    assert not curve.of("killed", events.RolledBack)


@pytest.mark.parametrize("every", ["5 steps", None])
def test_a_killed_server_has_all_return_to_the_last_cut(curve: Curves, every: str | None) -> None:
    changes = {} if every is None else {"checkpoint__every": every}
    killed = curve("killed", SignalAt(9, replica=-1, rank=1), **changes, **SERVED)
    assert_one_curve(curve("alone"), killed)
    (back,) = curve.of("killed", events.RolledBack)
    assert back.to_step in ((5, 0) if every else (0,))  # the checkpoint of step 5 may not have been complete at step 9
    assert set(map(int, back.lost)) >= set(range(back.to_step + 1, 10))


@pytest.mark.slow
def test_workers_and_a_server_killed_at_once_lose_nothing(curve: Curves) -> None:
    killers = (SignalAt(9, replica=-1, rank=0), SignalAt(9, replica=0), SignalAt(9, replica=1))
    assert_one_curve(curve("alone"), curve("killed", *killers, checkpoint__every="4 steps", **SERVED))


@pytest.mark.slow
def test_a_rank_of_a_spread_replica_takes_its_replica_along_and_no_other(curve: Curves) -> None:
    killers = (SignalAt(5, replica=1, rank=1), SignalAt(11, replica=-1, rank=0))
    settings = {"layout": {"replicas": 2, "tensor": 2}, "sync__strategy": "server", "checkpoint__every": "4 steps"}
    assert_one_curve(curve("alone"), curve("killed", *killers, **settings))


@pytest.mark.parametrize("update", [{"sync__update": "asynchronous"}, {"sync__update": "bounded", "sync__staleness": 2}], ids=str)
def test_an_asynchronous_run_survives_deaths_with_exact_coverage(curve: Curves, update: dict[str, Any]) -> None:
    killers = (SignalAt(6, replica=1), SignalAt(12, replica=-1, rank=0))
    steps = curve("killed", *killers, checkpoint__every="5 steps", **SERVED, **update)
    assert len(steps) == STEPS
    (back,) = curve.of("killed", events.RolledBack)
    assert back.lost
    assert steps[-1].loss < steps[0].loss - 0.5


# --- asynchronous ----------------------------------------------------------------------------------------------


def test_an_asynchronous_server_uses_each_sample_once_and_evaluates_once(curve: Curves) -> None:
    steps = curve("out", train__evaluate_every="20 steps", sync__damping="inverse", **ASYNCHRONOUS)
    assert steps[-1].loss < steps[0].loss - 0.5
    assert len(curve.of("out", events.Evaluated)) == 1
    assert sum(sum(step.staleness.values()) for step in steps) == 4 * STEPS


@pytest.mark.slow
def test_an_asynchronous_server_stops_and_goes_on_with_nothing_twice(curve: Curves) -> None:
    with pytest.raises(Interrupted):
        curve("out", SignalAt(7, signal.SIGTERM), **ASYNCHRONOUS)
    assert len(curve("out", **ASYNCHRONOUS)) == STEPS


def test_staleness_is_never_exceeded_when_a_worker_stands_still(curve: Curves) -> None:
    settings = {"layout__replicas": 3, "sync": {"strategy": "server", "update": "bounded", "staleness": 3}}
    steps = curve("out", PauseAt(3, 0.4, replica=1), **settings)
    late = {int(late) for step in steps for late in step.staleness}
    assert max(late) == 3
    free = curve("free", PauseAt(3, 0.4, replica=1), layout__replicas=3, sync={"strategy": "server", "update": "asynchronous"})
    assert max(int(late) for step in free for late in step.staleness) > 3


# --- phases ----------------------------------------------------------------------------------------------------

ALL_KINDS = [
    {"strategy": "allreduce", "until": "4 steps"},
    {"strategy": "diloco", "every": "3 steps", "until": "8 steps"},
    {"strategy": "server", "update": "asynchronous", "until": "11 steps"},
    {"strategy": "local_sgd", "every": "2 steps", "until": "loss below 5.0"},
    {"strategy": "server"},
]


@pytest.mark.slow
def test_every_strategy_hands_over_to_every_other_and_resumes_in_any(curve: Curves) -> None:
    settings = {"layout__replicas": 2, "sync": {"strategy": "phases", "phases": ALL_KINDS}, "checkpoint__every": "2 steps"}
    for stop in (2, 6, 10, 13):
        with pytest.raises(Interrupted):
            curve("out", SignalAt(stop, signal.SIGTERM), **settings)
    steps = curve("out", **settings)
    assert len(steps) == STEPS
    order = [step.sync for step in steps]
    assert order[:11] == ["allreduce"] * 4 + ["diloco"] * 4 + ["asynchronous"] * 3
    assert order[11:] == sorted(order[11:], key=["local_sgd", "synchronous"].index)
    assert steps[-1].loss < steps[0].loss - 0.4


def test_what_compression_held_back_goes_into_the_next_phase(curve: Curves) -> None:
    """Ten percent of the values a step, whoever sends them: without what was held back a phase of a few steps would have learned little."""
    packed = {"compress": "topk", "top_k": 0.1}
    phases = [
        {"strategy": "allreduce", "until": "5 steps", **packed},
        {"strategy": "server", "until": "10 steps", **packed},
        {"strategy": "local_sgd", "every": "2 steps", "until": "15 steps", **packed},
        {"strategy": "allreduce"},
    ]
    steps = curve("out", layout__replicas=2, sync={"strategy": "phases", "phases": phases})
    assert [step.sync for step in steps[4:16:5]] == ["allreduce", "synchronous", "local_sgd"]
    assert steps[-1].loss < steps[0].loss - 0.4


# --- what is sent ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compress", ["bf16", "fp16", "int8"])
def test_compression_trains_and_sends_less(curve: Curves, compress: str) -> None:
    settings = {"layout__replicas": 2, "train__precision": "fp32"}
    plain = curve("plain", **settings)
    packed = curve("packed", sync__compress=compress, **settings)
    share = {"bf16": 0.51, "fp16": 0.51, "int8": 0.27}[compress]
    assert sum(packed[-1].sent.values()) <= share * sum(plain[-1].sent.values())
    assert packed[-1].loss == pytest.approx(plain[-1].loss, abs=0.02)


@pytest.mark.slow
def test_the_largest_values_alone_train_too_and_the_rest_is_not_lost(curve: Curves) -> None:
    settings = {"layout__replicas": 2, "sync__compress": "topk", "sync__top_k": 0.05, "train__duration": "40 steps"}
    steps = curve("out", **settings)
    plain = curve("plain", **{**settings, "sync__compress": "none", "sync__top_k": None})
    assert sum(steps[-1].sent.values()) <= 0.16 * sum(plain[-1].sent.values())
    assert steps[-1].loss < plain[12].loss


@pytest.mark.slow
def test_compressed_replicas_that_are_spread_stay_alike(curve: Curves) -> None:
    """Parameters that tensor ranks hold alike are updated from the same compressed values: otherwise curves fall apart."""
    settings = {"layout": {"replicas": 2, "tensor": 2}, "sync__compress": "topk", "sync__top_k": 0.2}
    steps = curve("out", **settings)
    assert steps[-1].loss < steps[0].loss - 0.2


@pytest.mark.slow
def test_what_compression_held_back_is_dealt_again_to_another_number_of_replicas(curve: Curves) -> None:
    settings = {"sync__compress": "topk", "sync__top_k": 0.05}
    with pytest.raises(Interrupted):
        curve("out", SignalAt(6, signal.SIGTERM), layout__replicas=3, **settings)
    assert len(curve("out", layout__replicas=2, **settings)) == STEPS


@pytest.mark.slow
def test_a_checkpoint_owes_nothing_of_what_pushes_held_back(curve: Curves) -> None:
    """One worker, so that what it holds back is the same each time: all that it had held back at the cut is in it."""
    settings = {"sync": {"strategy": "server", "compress": "topk", "top_k": 0.05}, "checkpoint__every": "3 steps"}
    undisturbed = curve("undisturbed", **settings)
    assert_one_curve(undisturbed, curve("killed", SignalAt(8, replica=-1, rank=0), **settings))
    assert undisturbed[7].sent["0"] < 0.7 * undisturbed[8].sent["0"], "pushes of a step that is saved come whole"


@pytest.mark.slow
def test_pushes_are_compressed_too(curve: Curves) -> None:
    plain = curve("plain", train__precision="fp32", **SERVED)
    packed = curve("packed", train__precision="fp32", sync__compress="int8", **SERVED)
    assert sum(packed[-1].sent.values()) < 0.8 * sum(plain[-1].sent.values())
    assert packed[-1].loss == pytest.approx(plain[-1].loss, abs=0.02)


def test_buckets_follow_the_link_and_the_curve_does_not(curve: Curves) -> None:
    tuned = curve("tuned", layout__replicas=2, sync__bucket_mib="auto")
    (linked,), (started,) = curve.of("tuned", events.Linked), curve.of("tuned", events.Started)
    best = best_bucket(4 * started.parameters, linked.latency, linked.bandwidth)
    assert curve.of("tuned", events.Retuned)[0].bucket_mib == pytest.approx(best / 2**20, abs=1e-3)
    assert_one_curve(curve("alone"), tuned)


def test_a_slow_link_is_emulated_and_says_so(curve: Curves) -> None:
    slow = curve("slow", layout__replicas=2, sync__link={"latency": 20.0}, train__duration="4 steps")
    assert curve.of("slow", events.Linked)[0].emulated
    assert all(step.waited["0"] >= 0.02 for step in slow)
