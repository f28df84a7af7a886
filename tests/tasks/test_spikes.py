"""A document that is poison: its loss spikes, the run returns to its last checkpoint, leaves the data out, and draws the curve of a run
that had left it out from the beginning."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plait import events
from plait.errors import RunFileError
from plait.proof.coverage import verify_run
from plait.testing.failures import CutOff
from tests.curves import Curves, assert_one_curve
from tests.runs import history_of, write_corpus

STEPS = 28
POISON = "#~^`|\\" * 12
SPIKING = {"train__spike_norm": 8.0, "checkpoint__every": "8 steps"}


@pytest.fixture
def poisoned(curves: Callable[..., Curves], tmp_path: Path) -> Curves:
    """On a corpus in which one document is like no other."""
    corpus = write_corpus(tmp_path / "corpus")
    documents = corpus.read_text().split("\f")
    corpus.write_text("\f".join([*documents[:20], POISON, *documents[20:]]))
    settings = {"train__duration": f"{STEPS} steps", "train__seed": 1, "train__optimizer": {"name": "adamw", "lr": 1e-2}}
    return curves(corpus, **settings, model__dropout=0.1, data__split={"validation": 0.0, "test": 0.0})


def test_the_curve_is_that_of_a_run_that_left_the_data_out_from_the_beginning(poisoned: Curves) -> None:
    steps = poisoned("spikes", layout__replicas=2, **SPIKING)
    spiked = poisoned.of("spikes", events.Spiked)
    assert spiked
    assert all(event.what == "grad_norm" and event.value > event.bound > event.usual for event in spiked)
    assert_one_curve(poisoned("told", data__skip=spiked[-1].skipped), steps)
    assert verify_run(poisoned.folder / "spikes").left_out == spiked[-1].skipped
    assert max(step.grad_norm for step in steps[18:]) < spiked[0].bound


@pytest.mark.slow
def test_what_is_left_out_survives_a_death_before_the_next_checkpoint_and_another_layout(poisoned: Curves) -> None:
    whole = poisoned("whole", layout__replicas=2, **SPIKING)
    cut = poisoned.of("whole", events.Spiked)[0].step
    with pytest.raises(CutOff):
        poisoned("resumed", CutOffAfterSpike(), layout__replicas=2, **SPIKING)
    assert not any(isinstance(event, events.Finished) for event in history_of(poisoned.folder / "resumed"))
    resumed = poisoned("resumed", layout__replicas=3, **{**SPIKING, "train__spike_norm": None})
    told = poisoned("told", data__skip=poisoned.of("resumed", events.Spiked)[-1].skipped)
    assert_one_curve(told, resumed)
    assert_one_curve(whole[: cut - 2], resumed[: cut - 2])


class CutOffAfterSpike:
    """The launching process ends when the run has gone back."""

    def __init__(self) -> None:
        self._spiked = False

    def on(self, event: events.Event) -> None:
        self._spiked |= isinstance(event, events.Spiked)
        if self._spiked and isinstance(event, events.Step):
            raise CutOff

    def close(self) -> None:
        """Nothing is held."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "sync", [{"sync__strategy": "server"}, {"sync__strategy": "local_sgd", "sync__every": "4 steps"}, {"layout__tensor": 2}]
)
def test_other_ways_to_agree_and_layouts(poisoned: Curves, sync: dict[str, Any]) -> None:
    steps = poisoned("spikes", **{"layout__replicas": 2, **SPIKING, "train__spike_norm": 7.0, **sync})
    spiked = poisoned.of("spikes", events.Spiked)
    assert spiked
    assert_one_curve(poisoned("told", **{"layout__replicas": 2, **sync, "data__skip": spiked[-1].skipped}), steps)


def test_pushes_that_are_applied_as_they_come_are_not_judged_and_it_says_so(poisoned: Curves) -> None:
    with pytest.raises(RunFileError, match=r'train.spike_norm .* sync.update = "asynchronous"'):
        poisoned("run", sync__strategy="server", sync__update="asynchronous", **SPIKING)
