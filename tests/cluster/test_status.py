"""What a run's status file says while it lives, and when it is gone."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from plait import events
from plait.cluster import status as now
from plait.cluster.nursery import Nursery
from plait.cluster.status import Status
from plait.errors import CheckpointError
from plait.ledger.messages import Beat
from plait.tasks.pretrain import train
from plait.tasks.showing import status_table
from plait.testing.failures import SignalAt
from tests.runs import tiny


def step(number: int, shares: dict) -> events.Step:
    return events.Step(0.0, number, 2, 1.5, 1.0, 0.1, 100, 2.0, 50.0, None, shares, computed={"0": 1.0, "1": 1.75}, data={"1": 0.25})


def joined(replica: int) -> events.Joined:
    return events.Joined(0.0, replica, 0, "host", 100 + replica, "cpu")


def test_it_tells_who_is_here_what_they_do_and_how_fast(tmp_path: Path) -> None:
    status = Status(tmp_path)
    for event in (joined(0), joined(1), events.Started(0.0, "0", 2, 10, 9, "cpu"), step(3, {"0": [[0, 4]], "1": [[4, 8]]})):
        status.on(event)
    status.beat((1, 0), Beat("computes micro-batch 2 of step 4", "", 1.26, 4, 3, ""))
    status.on(events.Lost(0.0, 0, 0, "its process was killed by SIGKILL"))
    found = now.read(tmp_path)
    assert (found["state"], found["generation"], found["step"], found["steps"]) == ("training", 2, 3, 9)
    lost, here = found["workers"]
    assert (lost["state"], lost["doing"], lost["samples_per_s"]) == ("lost", "its process was killed by SIGKILL", None)
    assert (here["state"], here["doing"], here["seconds"]) == ("here", "computes micro-batch 2 of step 4", 1.3)
    assert (here["pid"], here["step"], here["samples_per_s"]) == (101, 3, 2.0)


def test_a_run_whose_process_is_gone_without_a_word_has_failed(tmp_path: Path) -> None:
    status = Status(tmp_path)
    status.on(events.Started(0.0, "0", 1, 10, 9, "cpu"))
    assert now.read(tmp_path)["state"] == "training"
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    written = json.loads((tmp_path / now.FILE).read_text())
    (tmp_path / now.FILE).write_text(json.dumps({**written, "pid": pid}))
    assert now.read(tmp_path)["state"] == "failed"


def test_a_run_writes_it(tmp_path: Path, corpus: Path, prepared: Path, nursery: Nursery, capsys: pytest.CaptureFixture[str]) -> None:
    run = tiny(corpus, prepared, layout__replicas=2, train__duration="8 steps")
    train(run, tmp_path / "out", nursery=nursery, quiet=True, listeners=[SignalAt(3, replica=1)])
    found = now.read(tmp_path / "out")
    assert (found["state"], found["step"], found["steps"], found["saved"]) == ("finished", 8, 8, 8)
    assert [(worker["replica"], worker["state"]) for worker in found["workers"]] == [(0, "left"), (1, "left")]
    status_table(found)
    shown = capsys.readouterr().out
    assert "finished, generation" in shown
    assert "replica 1 rank 0" in shown


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no run has been started here"):
        now.read(tmp_path)
