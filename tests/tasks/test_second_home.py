"""A run whose disk is lost, or lies, goes on from its second home, in any layout, and its curve is the undisturbed one."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from plait import events, spec
from plait.cluster.nursery import Nursery
from plait.errors import CheckpointError, Interrupted, RunFileError
from plait.tasks.pretrain import Result, train
from plait.testing.failures import SignalAt
from plait.train import manifest
from plait.train.home import Home
from plait.train.inventory import inventory
from tests.runs import differences, history_of, steps_of, tiny

LOSS, GRAD_NORM = 1e-9, 1e-7
RUN = {"train__duration": "12 steps", "model__dropout": 0.1, "checkpoint__every": "3 steps"}


class Trainer:
    def __init__(self, folder: Path, corpus: Path, prepared: Path, nursery: Nursery) -> None:
        self.folder = folder
        self._given = corpus, prepared
        self._nursery = nursery

    def run(self, **changes: Any) -> spec.Run:
        return tiny(*self._given, **{**RUN, **changes})

    def __call__(self, name: str, *listeners: Any, **changes: Any) -> Result:
        return train(self.run(**changes), self.folder / name, listeners=listeners, nursery=self._nursery, quiet=True)

    def of(self, name: str, kind: type) -> list[Any]:
        return [event for event in history_of(self.folder / name) if isinstance(event, kind)]


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory, corpus: Path, prepared: Path, nursery: Nursery) -> Trainer:
    return Trainer(tmp_path_factory.mktemp("runs"), corpus, prepared, nursery)


@pytest.fixture(scope="module")
def undisturbed(trainer: Trainer) -> list[events.Step]:
    trainer("undisturbed")
    return steps_of(trainer.folder / "undisturbed")


@pytest.fixture(scope="module")
def stopped(trainer: Trainer) -> tuple[Path, Path, int]:
    """A run that was stopped amid its way: its folder, its second home, and after which step."""
    out, there = trainer.folder / "stopped", trainer.folder / "there"
    with pytest.raises(Interrupted):
        trainer("stopped", SignalAt(7, signal.SIGTERM), checkpoint__copy=str(there))
    return out, there, trainer.of("stopped", events.Stopped)[0].step


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def assert_goes_on(undisturbed: list[events.Step], out: Path) -> None:
    """The steps since the resume are the undisturbed run's."""
    resumed = steps_of(out)
    first = resumed[0].step
    loss, grad_norm = differences(undisturbed[first - 1 :], resumed)
    assert loss <= LOSS
    assert grad_norm <= GRAD_NORM


@pytest.mark.parametrize(
    "layout",
    [
        pytest.param({}, id="the same layout", marks=pytest.mark.slow),
        pytest.param({"layout__replicas": 2, "layout__tensor": 2}, id="another layout"),
    ],
)
def test_a_run_whose_disk_is_lost_goes_on_from_its_second_home(
    trainer: Trainer, undisturbed: list[events.Step], stopped: tuple[Path, Path, int], tmp_path: Path, layout: dict[str, Any]
) -> None:
    _, there, step = stopped
    copy = shutil.copytree(there, tmp_path / "there")
    assert Home.at(str(copy)).steps()[0] == step
    name = f"new {len(layout)}"
    trainer(name, checkpoint__copy=str(copy), **layout)
    assert [event.step for event in trainer.of(name, events.Fetched)] == [step]
    assert trainer.of(name, events.Resumed)[0].from_step == step
    assert steps_of(trainer.folder / name)[0].step == 1, "the journal came along"
    assert_goes_on(undisturbed, trainer.folder / name)
    assert Home.at(str(copy)).steps()[0] == 12
    there_told, here_told = (copy / "events.jsonl").read_bytes(), (trainer.folder / name / "events.jsonl").read_bytes()
    assert here_told.startswith(there_told)
    assert b'"Saved"' in there_told[len((there / "events.jsonl").read_bytes()) :]


def test_a_disk_that_lies_is_found_out_and_the_second_home_asked(
    trainer: Trainer, undisturbed: list[events.Step], stopped: tuple[Path, Path, int]
) -> None:
    """Both homes damaged, in different steps; then damage is listed, a copy that was lost is made again, and strangers are refused."""
    before, there, step = stopped
    out = Path(shutil.copytree(before, trainer.folder / "damaged"))
    newest, older = manifest.saved(out / "checkpoints")
    Home.at(str(there)).copy(older)  # so quick a run may have had time for the newest alone
    flip(next(newest.glob("*.safetensors")))
    flip(there / newest.name / "piece-0000-000.safetensors")
    (older / manifest.FILE).unlink()
    trainer("damaged", checkpoint__copy=str(there))
    told = [(type(event).__name__, event.step) for event in history_of(out) if isinstance(event, events.Damaged | events.Fetched)]
    assert told == [("Damaged", step), ("Damaged", step), ("Damaged", 6), ("Fetched", 6)]
    assert_one_curve(undisturbed, steps_of(out))

    assert [held.wrong for held in inventory(out, check=True)] == [None] * 4
    shutil.rmtree(there)
    trainer("damaged", checkpoint__copy=str(there))
    assert Home.at(str(there)).steps() == [12]
    with pytest.raises(CheckpointError, match=r"there: holds checkpoints of another run.*\n  train\.seed: 7 there, 8 now"):
        trainer("stranger", checkpoint__copy=str(there), train__seed=8)
    assert not (trainer.folder / "stranger" / "run.toml").exists()
    with pytest.raises(RunFileError, match="in the run's own folder"):
        trainer("own", checkpoint__copy=str(trainer.folder / "own" / "checkpoints"))


def assert_one_curve(one: list[events.Step], other: list[events.Step]) -> None:
    loss, grad_norm = differences(one, other)
    assert loss <= LOSS
    assert grad_norm <= GRAD_NORM


@pytest.mark.slow
def test_a_second_home_that_cannot_be_written_holds_nothing_up(trainer: Trainer, undisturbed: list[events.Step]) -> None:
    there = trainer.folder / "full"

    class InTheWay:
        def on(self, event: events.Event) -> None:
            if isinstance(event, events.Started):
                there.write_text("a file, where a folder should be")

        def close(self) -> None: ...

    trainer("full run", InTheWay(), checkpoint__copy=str(there), checkpoint__copy_patience=0.5)
    assert_one_curve(undisturbed, steps_of(trainer.folder / "full run"))
    assert trainer.of("full run", events.CopyFailed)
    assert not trainer.of("full run", events.Copied)
