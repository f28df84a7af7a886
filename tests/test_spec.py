"""The run file: strict, typed, and its errors name what would be right."""

from __future__ import annotations

from pathlib import Path

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from plait import spec
from plait.errors import RunFileError

LEAST = {"data": {"corpus": ["x.txt"]}, "train": {"duration": "4 steps"}}
EXAMPLE = Path(__file__).parent.parent / "examples" / "austen.toml"


def test_the_example_reads_and_survives_a_round_trip(tmp_path: Path) -> None:
    run = spec.load(EXAMPLE)
    (tmp_path / "again.toml").write_text(tomli_w.dumps(run.resolved()))
    assert spec.load(tmp_path / "again.toml") == run


def test_files_come_before_overrides_and_defaults_before_both() -> None:
    assert spec.parse(LEAST).train.optimizer.lr == 1e-3
    assert spec.load(EXAMPLE).train.optimizer.lr == 2e-3
    run = spec.load(EXAMPLE, ["train.optimizer.lr=3e-4", "model.family=gpt2", "data.corpus=['a','b']", "layout.replicas=3"])
    assert (run.train.optimizer.lr, run.model.family, run.data.corpus, run.layout.replicas) == (3e-4, "gpt2", ["a", "b"], 3)


@pytest.mark.parametrize(
    ("text", "amount", "unit"),
    [
        ("400 steps", 400, "steps"),
        ("1 step", 1, "steps"),
        ("2.5M tokens", 2.5e6, "tokens"),
        ("3 epochs", 3, "epochs"),
        ("1_000 steps", 1000, "steps"),
    ],
)
def test_durations(text: str, amount: float, unit: str) -> None:
    duration = spec.Duration(text)
    assert (duration.amount, duration.unit) == (amount, unit)


@given(st.text(max_size=12))
def test_no_text_breaks_a_duration(text: str) -> None:
    try:
        amount = spec.parse({**LEAST, "train": {"duration": text}}).train.duration.amount
    except RunFileError as error:
        told = str(error)
    else:
        told = ""
        assert amount >= 0
    assert told == "" or "train.duration" in told


def test_every_mistake_is_told_at_once() -> None:
    with pytest.raises(RunFileError) as error:
        spec.parse({**LEAST, "model": {"layers": 0, "widht": 3}, "layout": {"replicas": "two"}})
    lines = str(error.value).splitlines()
    assert [line.split(": ")[1] for line in lines] == ["model.layers", "model.widht", "layout.replicas"]
    assert "did you mean model.width?" in lines[1]


def test_what_may_change_between_starts_is_not_part_of_the_identity() -> None:
    run, other = spec.parse(LEAST), spec.parse({**LEAST, "layout": {"replicas": 2}, "checkpoint": {"every": "5 steps"}})
    assert run.identity() == other.identity()
    changed = spec.parse({**LEAST, "train": {"duration": "4 steps", "seed": 1}})
    assert run.identity() != changed.identity()


def test_it_can_be_built_in_python() -> None:
    run = spec.Run(data=spec.Data(corpus=["x.txt"]), train=spec.Train(duration="4 steps"), layout=spec.Layout(replicas=2))
    assert run.train.duration.amount == 4
    assert run == spec.parse({**LEAST, "layout": {"replicas": 2}})


@pytest.mark.parametrize("path", sorted(EXAMPLE.parent.glob("*.toml")), ids=lambda path: path.name)
def test_every_example_is_a_run_file(path: Path) -> None:
    assert spec.load(path).train.duration.amount > 0
