"""plait verify soak: random deaths of one run, which are survived, and a run that does not survive them unseen."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import tomli_w
from typer.testing import CliRunner

from plait import cli, events
from plait.cluster.nursery import Nursery
from plait.errors import RunFileError
from plait.ledger.messages import SERVING
from plait.proof.showing import soaked_lines
from plait.proof.soak import APART, Reaper, soak
from tests.runs import tiny


def test_random_deaths_leave_the_curve_as_it_is(corpus: Path, prepared: Path, nursery: Nursery) -> None:
    told: list[int] = []
    run = tiny(corpus, prepared, layout__replicas=3, model__dropout=0.1)
    soaked = soak(run, kills=4, seed=3, told=told.append, nursery=nursery)
    assert soaked.ok
    assert sum(soaked.killed.values()) == told[-1] == 4
    assert len([each for recovery in soaked.proof.recoveries for each in recovery.lost]) >= 4
    assert "4 processes killed" in soaked_lines(soaked)
    json.dumps(soaked.as_dict())


@pytest.mark.slow
def test_the_command_exits_3_where_a_death_shows_in_the_curve(corpus: Path, prepared: Path, tmp_path: Path) -> None:
    """Its dropout is torch's, drawn from a generator that belongs to a process."""
    run_file = tmp_path / "run.toml"
    settings = {"model__family": "tests.wrong:Forgetful", "model__kv_heads": None, "layout__replicas": 2}
    run_file.write_text(tomli_w.dumps(tiny(corpus, prepared, **settings).resolved()))
    result = CliRunner().invoke(cli.app, ["verify", "soak", str(run_file), "--kills", "1", "--json", str(tmp_path / "soak.json")])
    assert getattr(result.exception, "exit_code", None) == 3
    assert not json.loads((tmp_path / "soak.json").read_text())["ok"]


def test_a_run_without_one_curve_is_refused(corpus: Path, prepared: Path) -> None:
    with pytest.raises(RunFileError, match="the curve follows who is there"):
        soak(tiny(corpus, prepared, layout__replicas=2, sync__strategy="local_sgd", sync__every="4 steps"))


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"layout__tensor": 2}, {"sync__strategy": "server", "sync__servers": 2}])
def test_spread_replicas_and_servers_are_soaked_too(corpus: Path, prepared: Path, nursery: Nursery, settings: dict[str, object]) -> None:
    run = tiny(corpus, prepared, layout__replicas=2, model__dropout=0.1, **settings)
    soaked = soak(run, kills=12, seed=5, nursery=nursery)
    assert soaked.ok, soaked_lines(soaked)


class Killed:
    """In the place of os.kill."""

    def __init__(self) -> None:
        self.pids: list[int] = []

    def __call__(self, pid: int, number: int) -> None:
        assert number == signal.SIGKILL
        self.pids.append(pid)


def step(*replicas: int) -> events.Step:
    shares = {str(replica): [[0, 1]] for replica in replicas}
    return events.Step(0.0, 1, 1, 1.0, 1.0, 1e-3, 8, 0.0, 8.0, None, shares)


def test_no_replica_is_killed_a_third_time_before_it_has_done_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be given up, as it should."""
    killed = Killed()
    monkeypatch.setattr("os.kill", killed)
    reaper = Reaper(kills=1000, seed=0, told=lambda _: None)
    for pid in range(1, 9):
        reaper.on(events.Joined(0.0, 0, 0, "here", pid, "cpu"))
        reaper._strike()
        if pid in killed.pids:
            reaper.on(events.Lost(0.0, 0, 0, "killed"))
    assert killed.pids == [1, 2]
    reaper.on(step(0))
    reaper._strike()
    reaper.close()
    assert killed.pids[:2] == [1, 2]
    assert set(killed.pids[2:]) == {8}


def test_a_strike_follows_so_many_steps_and_stops_at_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    killed = Killed()
    monkeypatch.setattr("os.kill", killed)
    reaper = Reaper(kills=2, seed=0, told=lambda _: None)
    reaper.on(events.Joined(0.0, SERVING, 0, "here", 7, "cpu"))
    for _ in range(40 * APART):
        reaper.on(step(0))
        if reaper._timer is not None:
            reaper._timer.join()
    assert killed.pids == [7, 7]
    assert reaper.killed == {"server": 2}
