"""A bit flips in a replica that lives: it is found and named, and the curve is the undisturbed one; or it says that it is not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plait import events
from plait.cluster.faults import Action, Fault
from plait.errors import RunFileError
from plait.proof.coverage import verify_run
from tests.curves import Curves, assert_one_curve

EVERY = {"elastic__check_every": "2 steps", "layout__replicas": 3}
"""A flip when step 7 has been applied is found when step 8 has."""
SAVED = {"checkpoint__every": "5 steps", **EVERY}
FLIP: Action = "flip"


@pytest.fixture
def curve(curves: Callable[..., Curves], corpus: Path) -> Curves:
    return curves(corpus, train__duration="16 steps", model__dropout=0.1)


@pytest.fixture
def undisturbed(curve: Curves) -> list[events.Step]:
    return curve("undisturbed")


def flipped(action: Action = FLIP, replica: int = 1, rank: int = 0, step: int = 7) -> Fault:
    return Fault("applied", step, replica, rank, action=action)


def assert_rolled_back(trainer: Curves, name: str, replica: int | None, rank: int, differs: str, to: int = 5) -> None:
    (found,) = trainer.of(name, events.Corrupted)
    assert (found.step, found.replica, found.rank, found.since, found.repaired) == (8, replica, rank, 6, "rolled back")
    assert any(each.startswith(differs) for each in found.differs)
    assert [event.to_step for event in trainer.of(name, events.RolledBack)] == [to]
    assert not trainer.lost(name)


@pytest.mark.parametrize(("action", "differs"), [("flip", "model."), pytest.param("flip_optimizer", "optimizer.", marks=pytest.mark.slow)])
def test_the_odd_one_is_named_and_all_return_to_the_last_checkpoint(
    curve: Curves,
    undisturbed: list[events.Step],
    action: Any,
    differs: str,
) -> None:
    assert_one_curve(undisturbed, curve("flipped", flipped(action), **SAVED))
    assert_rolled_back(curve, "flipped", 1, 0, differs)


@pytest.mark.slow
def test_without_a_checkpoint_the_odd_one_takes_the_others_state_and_the_touched_steps_are_told(
    curve: Curves,
    undisturbed: list[events.Step],
) -> None:
    steps = curve("flipped", flipped(), **EVERY)
    assert_one_curve(undisturbed[:7], steps[:7])
    (found,) = curve.of("flipped", events.Corrupted)
    assert (found.replica, found.since, found.step, found.repaired) == (1, 6, 8, "healed")
    assert not curve.of("flipped", events.RolledBack)
    assert steps[-1].loss == pytest.approx(undisturbed[-1].loss, rel=1e-3)
    assert verify_run(curve.folder / "flipped").touched == [[7, 8]]


@pytest.mark.slow
def test_of_two_that_differ_nobody_can_tell_and_both_return(curve: Curves, undisturbed: list[events.Step]) -> None:
    """To the beginning, where there is no checkpoint."""
    assert_one_curve(undisturbed, curve("flipped", flipped(), **{**EVERY, "layout__replicas": 2}))
    assert_rolled_back(curve, "flipped", None, 0, "model.", to=0)


@pytest.mark.slow
@pytest.mark.parametrize("layout", [{"layout__tensor": 2}, {"layout__shard": 2, "layout__zero": 3}, {"layout__pipeline": 2}])
def test_ranks_of_spread_replicas_are_compared_one_by_one(
    curve: Curves,
    undisturbed: list[events.Step],
    layout: dict[str, int],
) -> None:
    for action, differs in (("flip", "model."), ("flip_optimizer", "optimizer.")):
        name = f"{action}"
        assert_one_curve(undisturbed, curve(name, flipped(action, replica=2, rank=1), **SAVED, **layout))  # type: ignore[arg-type]
        assert_rolled_back(curve, name, 2, 1, differs)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["local_sgd", "diloco"])
@pytest.mark.parametrize("saves", [True, False])
def test_averages_are_compared(curve: Curves, strategy: str, saves: bool) -> None:
    """A flip after the average, when the next round begins from it: step 8 is the last of the second round."""
    settings = {**EVERY, "sync__strategy": strategy, "sync__every": "4 steps", "elastic__check_every": "4 steps"}
    settings |= {"checkpoint__every": "4 steps"} if saves else {}
    true = curve("true", **settings)
    assert not curve.of("true", events.Corrupted)
    found = curve("flipped", Fault("averaged", 8, 1, action="flip"), **settings)
    (event,) = curve.of("flipped", events.Corrupted)
    assert (event.step, event.replica, event.since) == (8, 1, 4)
    assert event.repaired == ("rolled back" if saves else "healed")
    assert [step.loss for step in found] == pytest.approx([step.loss for step in true], rel=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["int8", "topk", "bf16"])
def test_compressed_sums_leave_replicas_alike(curve: Curves, how: str) -> None:
    curve("run", sync__compress=how, **SAVED)
    assert not curve.of("run", events.Corrupted)


@pytest.mark.slow
def test_who_comes_is_compared_and_deaths_meanwhile_change_nothing(
    curve: Curves,
    undisturbed: list[events.Step],
) -> None:
    faults = (Fault("applied", 4, 0), flipped(replica=2), Fault("comparing", 8, 1))
    assert_one_curve(undisturbed, curve("flipped", *faults, **SAVED))
    assert curve.of("flipped", events.Corrupted)
    assert sorted(curve.lost("flipped")) == [(0, 0), (1, 0)]


def test_with_a_server_there_is_nothing_to_compare_and_it_says_so(curve: Curves) -> None:
    with pytest.raises(RunFileError, match=r'elastic.check_every .* sync.strategy = "server"'):
        curve("run", sync__strategy="server", **EVERY)
