"""plait verify faults: failures that are survived, and one that is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tomli_w
from typer.testing import CliRunner

from plait import cli
from plait.cluster.faults import Fault
from plait.cluster.nursery import Nursery
from plait.errors import RunFileError
from plait.proof import faults as proof
from plait.proof.faults import Scenario, scenarios, verify_faults
from tests.runs import tiny


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of the failures, so that a test takes seconds; tests/tasks/test_elastic.py has them all."""
    chosen = [Scenario("a death", [Fault("reducing", 4, 0)]), Scenario("an error", [Fault("computing", 4, 1, action="raise")])]
    monkeypatch.setattr(proof, "scenarios", lambda run, steps: chosen)


def test_failures_are_compared_with_the_undisturbed_curve(corpus: Path, prepared: Path, nursery: Nursery, few: None) -> None:
    """Under the run's own balance."""
    settings = {"layout__replicas": 3, "balance__policy": "dynamic", "model__dropout": 0.1}
    report = verify_faults(tiny(corpus, prepared, **settings), 6, nursery=nursery)
    assert report.ok
    death, error = report.survived
    assert (death.lost, error.lost) == ([(0, 0)], [(1, 0)])
    assert max(death.compared.loss, death.compared.params) < 1e-12
    assert death.seconds is not None
    json.dumps(report.as_dict())


@pytest.mark.slow
def test_a_flipped_bit_is_survived_too(corpus: Path, prepared: Path, nursery: Nursery, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tiny(corpus, prepared, layout__replicas=3, model__dropout=0.1)
    chosen = [scenario for scenario in scenarios(run, 8) if "flips" in scenario.what]
    monkeypatch.setattr(proof, "scenarios", lambda run, steps: chosen)
    (flipped,) = verify_faults(run, 8, nursery=nursery).survived
    assert flipped.ok
    assert flipped.corrupted == 1


@pytest.mark.slow
def test_the_command_exits_3_where_a_failure_is_not_survived(
    corpus: Path, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few: None
) -> None:
    """Its dropout is torch's, drawn from a generator that belongs to a process: who computes a sample shows."""
    run_file = tmp_path / "run.toml"
    settings = {"model__family": "tests.wrong:Forgetful", "model__kv_heads": None, "layout__replicas": 2}
    run_file.write_text(tomli_w.dumps(tiny(corpus, prepared, **settings).resolved()))
    result = CliRunner().invoke(cli.app, ["verify", "faults", str(run_file), "--steps", "6", "--json", str(tmp_path / "proof.json")])
    assert getattr(result.exception, "exit_code", None) == 3
    assert "FAIL" in result.output
    assert not json.loads((tmp_path / "proof.json").read_text())["ok"]


def test_what_happens_follows_the_layout(corpus: Path, prepared: Path) -> None:
    alone, three = ([scenario.what for scenario in scenarios(tiny(corpus, prepared, layout__replicas=replicas), 12)] for replicas in (1, 3))
    assert "kill -9 of two at once" in three
    assert "kill -9 of two at once" not in alone
    assert {"kill -9, voted", "kill -9 amid a save", "a hang", "an error"} <= set(alone)


def test_a_run_without_one_curve_is_refused(corpus: Path, prepared: Path) -> None:
    for changes in ({"sync__strategy": "local_sgd", "sync__every": "4 steps"}, {"sync__compress": "int8"}):
        with pytest.raises(RunFileError, match="the curve follows who is there"):
            verify_faults(tiny(corpus, prepared, layout__replicas=2, **changes))
