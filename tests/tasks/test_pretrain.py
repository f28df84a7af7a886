"""Training as a whole: failures that name their rank, signals, skipped steps, folders."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from plait import events
from plait.cluster.nursery import Nursery
from plait.errors import CheckpointError, Interrupted, UserError, WorkerFailed
from plait.tasks.pretrain import Result, train
from plait.testing.failures import CutOff, CutOffAt, SignalAt
from plait.train import manifest
from tests.runs import history_of, steps_of, tiny


class Trainer:
    """Trains tiny runs into folders of one test."""

    def __init__(self, folder: Path, corpus: Path, prepared: Path, nursery: Nursery) -> None:
        self.folder = folder
        self._given = corpus, prepared
        self._nursery = nursery

    def __call__(self, name: str, *listeners: Any, **changes: Any) -> Result:
        return train(tiny(*self._given, **changes), self.folder / name, listeners=listeners, nursery=self._nursery)

    def of(self, name: str, kind: type) -> list[Any]:
        return [event for event in history_of(self.folder / name) if isinstance(event, kind)]


@pytest.fixture
def trainer(tmp_path: Path, corpus: Path, prepared: Path, nursery: Nursery) -> Trainer:
    return Trainer(tmp_path, corpus, prepared, nursery)


def covered(steps: list[events.Step]) -> list[list[int]]:
    return [sorted(place for ranges in step.shares.values() for first, end in ranges for place in range(first, end)) for step in steps]


def test_an_exception_in_a_worker_shows_its_traceback_and_rank_once(trainer: Trainer) -> None:
    with pytest.raises(WorkerFailed) as failure:
        trainer("out", layout__replicas=2, balance__capacity=[0.0, 1.0], train__loss="tests.wrong:failing")
    assert str(failure.value).startswith("replica 1 rank 0: Traceback")
    assert str(failure.value).count("ArithmeticError: the fourth pass was told to fail") == 1
    assert [lost.replica for lost in trainer.of("out", events.Lost)] == [1]


def test_no_worker_survives_the_end_of_its_run(trainer: Trainer) -> None:
    with pytest.raises(CutOff):
        trainer("out", CutOffAt(2), layout__replicas=3, train__duration="500 steps")
    pids = [joined.pid for joined in trainer.of("out", events.Joined)]
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def test_sigterm_saves_stops_and_resumes_with_the_same_curve(trainer: Trainer) -> None:
    trainer("whole", train__duration="12 steps")
    with pytest.raises(Interrupted) as stopped:
        trainer("out", SignalAt(5, signal.SIGTERM), train__duration="12 steps")
    assert stopped.value.exit_code == 75
    at = trainer.of("out", events.Stopped)[0].step
    assert 5 <= at < 12
    assert trainer.of("out", events.Saved)[-1].step == at
    trainer("out", train__duration="12 steps")
    whole, resumed = steps_of(trainer.folder / "whole"), steps_of(trainer.folder / "out")
    assert [step.loss for step in whole] == [step.loss for step in resumed]  # bitwise: the same layout on one host


def test_a_signal_to_one_worker_stops_all(trainer: Trainer) -> None:
    with pytest.raises(Interrupted):
        trainer("out", SignalAt(3, signal.SIGTERM, replica=1), layout__replicas=2, train__duration="500 steps")
    assert trainer.of("out", events.Saved)


def test_sigusr1_saves_and_goes_on(trainer: Trainer) -> None:
    result = trainer("out", SignalAt(3, signal.SIGUSR1), train__duration="30 steps")
    assert result.step == 30
    assert [saved.step for saved in trainer.of("out", events.Saved)][-1] == 30
    assert len(trainer.of("out", events.Saved)) == 2


def test_two_sigints_stop_at_once(trainer: Trainer) -> None:
    class Twice:
        def on(self, event: events.Event) -> None:
            if isinstance(event, events.Step) and event.step == 2:
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGINT)

        def close(self) -> None: ...

    with pytest.raises(KeyboardInterrupt):
        trainer("out", Twice(), train__duration="500 steps")
    assert len(steps_of(trainer.folder / "out")) < 20


def test_a_step_that_is_not_finite_is_skipped_by_all(trainer: Trainer) -> None:
    trainer("out", layout__replicas=2, balance__capacity=[0.0, 1.0], train__loss="tests.wrong:once_not_finite")
    steps = steps_of(trainer.folder / "out")
    assert [step.step for step in steps if step.skipped] == [2]
    assert all(step.loss is not None for step in steps if not step.skipped)
    assert steps[1].loss is None


def test_steps_that_are_never_finite_roll_back_and_then_end_the_run(trainer: Trainer) -> None:
    settings = {"train__loss": "tests.wrong:never_finite", "train__nonfinite_limit": 2, "train__duration": "20 steps"}
    with pytest.raises(WorkerFailed, match="not finite"):
        trainer("out", layout__replicas=1, checkpoint__every="1 steps", **settings)
    assert trainer.of("out", events.RolledBack)
    assert manifest.latest(trainer.folder / "out" / "checkpoints") is not None


def test_a_finished_run_is_left_as_it_is(trainer: Trainer) -> None:
    first = trainer("out")
    again = trainer("out")
    assert first == again


def test_a_folder_of_another_run_is_refused_naming_what_differs(trainer: Trainer) -> None:
    trainer("out")
    with pytest.raises(CheckpointError, match=r"train.seed: 7 there, 8 now"):
        trainer("out", train__seed=8)
    assert len(steps_of(trainer.folder / "out")) == 6


def test_a_folder_of_something_else_is_refused(trainer: Trainer) -> None:
    (trainer.folder / "out").mkdir()
    (trainer.folder / "out" / "thesis.tex").write_text("precious")
    with pytest.raises(CheckpointError, match=r"thesis.tex, which is no run of plait"):
        trainer("out")


def test_two_trainings_in_one_folder_are_refused(trainer: Trainer) -> None:
    class Second:
        refused: str | None = None

        def on(self, event: events.Event) -> None:
            if isinstance(event, events.Started):
                try:
                    trainer("out")
                except CheckpointError as error:
                    self.refused = str(error)

        def close(self) -> None: ...

    second = Second()
    trainer("out", second)
    assert second.refused is not None
    assert "another plait train is at work here" in second.refused


@pytest.mark.slow
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_is_used(trainer: Trainer, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CutOff):
        trainer("out", CutOffAt(4, kind=events.Saved), checkpoint__every="2 steps", train__duration="60 steps")
    newest, before, *_ = manifest.candidates(trainer.folder / "out" / "checkpoints")
    piece = next(newest.glob("*.safetensors"))
    content = bytearray(piece.read_bytes())
    content[-1] ^= 1
    piece.write_bytes(content)
    trainer("out", checkpoint__every="2 steps", train__duration="60 steps")
    assert f"step 4  DAMAGED, passed over: {piece}: is corrupt" in capsys.readouterr().out
    assert [damaged.path for damaged in trainer.of("out", events.Damaged)] == [str(newest)]
    assert trainer.of("out", events.Resumed)[0].from_step == manifest.step_of(before)


def test_a_full_disk_is_told_and_training_goes_on(trainer: Trainer) -> None:
    """A file where the folder of checkpoints should be fails as a full disk does: each save, and nothing else."""

    class InTheWay:
        def on(self, event: events.Event) -> None:
            if isinstance(event, events.Started):
                (trainer.folder / "out" / "checkpoints").rmdir()
                (trainer.folder / "out" / "checkpoints").write_text("in the way")

        def close(self) -> None: ...

    result = trainer("out", InTheWay(), checkpoint__every="2 steps")
    assert result.step == 6
    assert trainer.of("out", events.SaveFailed)
    assert not trainer.of("out", events.Saved)


def test_evaluation_is_the_same_however_it_is_shared(trainer: Trainer) -> None:
    trainer("one", train__evaluate_every="3 steps")
    trainer("two", train__evaluate_every="3 steps", layout__replicas=2, balance__capacity=[1.0, 2.0])
    one, two = trainer.of("one", events.Evaluated), trainer.of("two", events.Evaluated)
    assert [evaluated.step for evaluated in one] == [3, 6] == [evaluated.step for evaluated in two]
    assert one[-1].loss == pytest.approx(two[-1].loss, rel=1e-9)
    assert (one[-1].tokens, one[-1].accuracy) == (two[-1].tokens, two[-1].accuracy)


def test_the_largest_micro_batch_is_found(trainer: Trainer) -> None:
    trainer("auto", train__micro_batch="auto")
    trainer("one", train__micro_batch=8)
    assert [step.loss for step in steps_of(trainer.folder / "auto")] == [step.loss for step in steps_of(trainer.folder / "one")]


def test_a_mistake_that_only_a_worker_can_see_is_the_users(trainer: Trainer) -> None:
    with pytest.raises(UserError, match=r"model.family"):
        trainer("out", model__family="nowhere.to.be:Found")
