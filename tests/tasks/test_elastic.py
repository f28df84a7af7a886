"""Replicas die, come and hang: the others go on, the curve is the undisturbed one, and each sample was used exactly once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from plait import events
from plait.cluster.faults import Fault
from plait.errors import WorkerFailed
from plait.ledger.messages import SERVING
from plait.testing.failures import SignalAt
from plait.train import manifest
from tests.curves import LOSS, Curves, assert_one_curve
from tests.runs import slow, steps_of

STEPS = 16
THREE = {"layout__replicas": 3}
POINTS = ("computing", "reducing", "reduced", "voted", "applying", "applied")


@pytest.fixture
def curve(curves: Callable[..., Curves], corpus: Path) -> Curves:
    return curves(corpus, train__duration=f"{STEPS} steps", model__dropout=0.1)


@pytest.fixture
def undisturbed(curve: Curves) -> list[events.Step]:
    return curve("undisturbed")


@pytest.mark.parametrize("point", POINTS)
def test_a_death_at_each_point_of_a_unit(curve: Curves, undisturbed: list[events.Step], point: Any) -> None:
    assert_one_curve(undisturbed, curve("killed", Fault(point, 4, 0), Fault(point, 9, 2), **THREE))
    assert curve.lost("killed") == [(0, 0), (2, 0)]
    assert not curve.of("killed", events.RolledBack)


@pytest.mark.slow
def test_two_deaths_at_once_and_all_deaths_at_once(curve: Curves, undisturbed: list[events.Step]) -> None:
    """Where nobody is left, all return to the last checkpoint."""
    all_at_once = [Fault("computing", 11, replica, attempt=1 if replica < 2 else 0) for replica in range(3)]
    killed = curve("killed", Fault("computing", 4, 0), Fault("computing", 4, 1), *all_at_once, checkpoint__every="5 steps", **THREE)
    assert_one_curve(undisturbed, killed)
    assert sorted(curve.lost("killed")) == [(0, 0), (0, 0), (1, 0), (1, 0), (2, 0)]
    (back,) = curve.of("killed", events.RolledBack)
    assert back.to_step in (0, 5, 10)


def test_deaths_amid_a_save_a_meeting_and_a_join(curve: Curves, undisturbed: list[events.Step]) -> None:
    faults = (
        Fault("saving", 0, 0),
        Fault("meeting", 0, 0, attempt=1),
        Fault("joining", 0, 0, attempt=2),
        Fault("voted", 12, 1),
    )
    assert_one_curve(undisturbed, curve("killed", *faults, checkpoint__every="3 steps", **THREE))
    assert curve.lost("killed") == [(0, 0), (0, 0), (0, 0), (1, 0)]
    assert STEPS in [event.step for event in curve.of("killed", events.Saved)]
    assert manifest.step_of(manifest.candidates(curve.folder / "killed" / "checkpoints")[0]) == STEPS


@pytest.mark.slow
def test_the_last_save_is_made_though_who_makes_it_dies(curve: Curves, undisturbed: list[events.Step]) -> None:
    assert_one_curve(undisturbed, curve("killed", Fault("saving", STEPS, 0), Fault("saving", STEPS, 1), **THREE))
    assert [event.step for event in curve.of("killed", events.Saved)] == [STEPS]


@pytest.mark.slow
def test_an_evaluation_is_whole_though_one_dies_before_its_part(curve: Curves) -> None:
    every = {"train__evaluate_every": "4 steps", **THREE}
    curve("whole", **every)
    curve("killed", Fault("applied", 8, 1), Fault("applied", 16, 2), **every)
    whole, killed = curve.of("whole", events.Evaluated), curve.of("killed", events.Evaluated)
    assert [event.tokens for event in killed] == [event.tokens for event in whole]
    assert [event.loss for event in killed] == pytest.approx([event.loss for event in whole], rel=LOSS)


def test_replicas_of_several_ranks(curve: Curves, undisturbed: list[events.Step]) -> None:
    faults = (Fault("reducing", 4, 0, rank=1), Fault("computing", 9, 2), Fault("voted", 12, 1, rank=1))
    assert_one_curve(undisturbed, curve("killed", *faults, layout__tensor=2, **THREE))
    assert curve.lost("killed") == [(0, 1), (2, 0), (1, 1)]


def test_a_synchronous_server(curve: Curves, undisturbed: list[events.Step]) -> None:
    faults = (Fault("computing", 4, 0), Fault("pushing", 9, 2), Fault("voted", 12, 1))
    assert_one_curve(undisturbed, curve("killed", *faults, sync__strategy="server", sync__servers=2, **THREE))
    assert curve.lost("killed") == [(0, 0), (2, 0), (1, 0)]


@pytest.mark.parametrize("strategy", [slow("local_sgd"), slow("diloco")])
def test_a_round_is_done_again_from_its_beginning(curve: Curves, strategy: str) -> None:
    """Whether a replica dies in the last step of a round or after it, the others begin where the round did."""
    settings = {"sync__strategy": strategy, "sync__every": "4 steps", **THREE}
    early, late = (curve(point, Fault(point, 8, 2), **settings) for point in ("computing", "reducing"))  # type: ignore[arg-type]
    assert set(late[4].shares) >= {"0", "1"}
    assert [step.loss for step in late[:8]] == pytest.approx([step.loss for step in early[:8]], rel=LOSS)
    assert curve.lost("computing") == curve.lost("reducing") == [(2, 0)]


@pytest.mark.slow
def test_compressed_sums_go_on_with_what_survivors_hold_back(curve: Curves) -> None:
    killed = curve("killed", Fault("reducing", 4, 0), Fault("reduced", 9, 2), sync__compress="topk", sync__top_k=0.3, **THREE)
    assert killed[-1].loss < killed[0].loss


@pytest.mark.slow
def test_below_the_fewest_the_run_waits_and_above_the_beginning_it_grows(curve: Curves, undisturbed: list[events.Step]) -> None:
    assert_one_curve(undisturbed, curve("waits", Fault("computing", 6, 1), elastic__replicas=[3, 3], **THREE))
    assert all(len(step.shares) == 3 for step in steps_of(curve.folder / "waits")), "nothing is committed by fewer"
    assert {(event.replicas, event.fewest) for event in curve.of("waits", events.Waiting)} <= {(2, 3)}, "unless the third was back at once"
    grown = curve("grows", elastic__replicas=[1, 3], layout__replicas=1, train__duration="60 steps")
    assert len(grown[0].shares) == 1
    assert len(grown[-1].shares) == 3


@pytest.mark.slow
def test_an_error_ends_a_replica_and_one_that_comes_again_the_run(curve: Curves, undisturbed: list[events.Step]) -> None:
    once = Fault("computing", 5, 1, action="raise")
    assert_one_curve(undisturbed, curve("once", once, **THREE))
    assert "told to fail" in curve.of("once", events.Lost)[0].why
    everywhere = [Fault("computing", 5, replica, action="raise") for replica in range(3)]
    with pytest.raises(WorkerFailed, match="told to fail"):
        curve("again", *everywhere, **THREE)


def test_hangs_are_named_and_the_workers_replaced(curve: Curves, undisturbed: list[events.Step]) -> None:
    """One loops for ever, one is stopped; the others wait for them in a sum meanwhile, and are not taken for them."""
    faults = Fault("computing", 5, 1, action="hang"), Fault("computing", 12, 2, action="stop")
    assert_one_curve(undisturbed, curve("hung", *faults, elastic__hang_after=3.0, **THREE))
    loops, stopped = curve.of("hung", events.Hung)
    assert (loops.replica, loops.rank, loops.step, loops.doing) == (1, 0, 5, "computes micro-batch 1 of step 5")
    assert "_strike" in loops.stack
    assert (stopped.replica, stopped.step, stopped.stack) == (2, 12, "it is stopped")
    assert curve.lost("hung") == [(1, 0), (2, 0)]
    time = {step.step: step.time for step in curve.of("hung", events.Step)}
    assert time[5] - time[4] < 3.0 + 2.0


LIVES = (
    (Fault("computing", 4, 0), Fault("voted", 19, 0, attempt=1), Fault("meeting", 0, 0, attempt=2), Fault("saving", 0, 0, attempt=3)),
    (Fault("reducing", 9, 1), Fault("applying", 24, 1, attempt=1), Fault("joining", 0, 1, attempt=2), Fault("computing", 48, 1, attempt=3)),
    (Fault("reduced", 14, 2), Fault("applied", 29, 2, attempt=1), Fault("computing", 48, 2, attempt=2)),
)
"""What ends each life of each replica. The last of all is a hang."""
HANG = Fault("computing", 54, 0, attempt=4, action="hang")
SERVED = (
    (Fault("computing", 4, 0), Fault("voted", 19, 0, attempt=1), Fault("saving", 0, 0, attempt=2)),
    (Fault("pushing", 9, 1), Fault("computing", 48, 1, attempt=1)),
    (Fault("reduced", 14, 2), Fault("computing", 48, 2, attempt=1)),
)


@pytest.mark.slow
@pytest.mark.parametrize("tensor", [1, 2])
def test_sixty_steps_with_everything_that_can_happen_to_three_replicas(curve: Curves, tensor: int) -> None:
    """Each kind of death, in lives that follow one another, of any rank of a replica; joins; two at once; a hang."""
    sixty = {"train__duration": "60 steps", "checkpoint__every": "20 steps"}
    alone = curve("alone", **sixty)
    last = [replace(fault, rank=tensor - 1) for life in LIVES for fault in life if fault.point not in ("saving", "joining")]
    first = [fault for life in LIVES for fault in life if fault.point in ("saving", "joining")]
    settings = {**sixty, **THREE, "layout__tensor": tensor, "elastic__hang_after": 5.0}
    assert_one_curve(alone, curve("struck", *last, *first, HANG, **settings))
    assert Counter(replica for replica, _ in curve.lost("struck")) == {0: 5, 1: 4, 2: 3}
    assert [(event.replica, event.step) for event in curve.of("struck", events.Hung)] == [(0, 54)]
    assert not curve.of("struck", events.RolledBack)


@pytest.mark.slow
def test_sixty_steps_with_everything_that_can_happen_under_a_synchronous_server(curve: Curves) -> None:
    sixty = {"train__duration": "60 steps", "checkpoint__every": "20 steps"}
    alone = curve("alone", **sixty)
    faults = [*(fault for life in SERVED for fault in life), replace(HANG, attempt=3)]
    settings = {**sixty, **THREE, "sync__strategy": "server", "sync__servers": 2, "elastic__hang_after": 5.0}
    server = SignalAt(30, replica=SERVING, rank=1)
    assert_one_curve(alone, curve("struck", *faults, server, **settings))
    assert (SERVING, 1) in curve.lost("struck")
    assert [(event.replica, event.step) for event in curve.of("struck", events.Hung)] == [(0, 54)]
