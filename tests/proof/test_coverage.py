"""plait verify run: a journal proves that each sample of each committed step was used exactly once, or names what was not."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plait import events, spec
from plait.cluster.nursery import Nursery
from plait.errors import CheckpointError
from plait.events import Event, Ranges
from plait.ledger import shares
from plait.proof.coverage import verify_run
from plait.proof.showing import coverage
from plait.tasks import pretrain
from plait.testing.failures import CutOff, CutOffAt, SignalAt
from tests.runs import tiny

Write = Callable[..., Path]
BATCH = 8


@pytest.fixture
def write(tmp_path: Path, corpus: Path, prepared: Path) -> Write:
    """A folder with a run file and the journal given."""

    def folder(*history: Event, **changes: Any) -> Path:
        run = tiny(corpus, prepared, train__batch=BATCH, **changes)
        (tmp_path / "run.toml").write_text(_toml(run))
        (tmp_path / "about.json").write_text(json.dumps({"identity": {}}))
        (tmp_path / "events.jsonl").write_text("".join(event.to_json() + "\n" for event in history))
        return tmp_path

    return folder


def _toml(run: spec.Run) -> str:
    import tomli_w

    return tomli_w.dumps(run.resolved())


def step(number: int, time: float = 0.0, generation: int = 1, **shares_: Ranges) -> events.Step:
    used = {name.removeprefix("r"): ranges for name, ranges in shares_.items()} or {"0": [[0, 5]], "1": [[5, BATCH]]}
    return events.Step(time, number, generation, 1.0, 1.0, 0.1, 100, 0.1, 1000.0, None, used)


STARTED = events.Started(0.0, "0", 2, 10, 3, "cpu")


def test_a_run_with_a_kill_and_a_resume_is_covered_and_told(tmp_path: Path, corpus: Path, prepared: Path, nursery: Nursery) -> None:
    run = tiny(corpus, prepared, layout__replicas=2, train__duration="8 steps", checkpoint__every="2 steps")
    with pytest.raises(CutOff):
        pretrain.train(run, tmp_path / "out", nursery=nursery, quiet=True, listeners=[SignalAt(4, replica=1), CutOffAt(6)])
    pretrain.train(run, tmp_path / "out", nursery=nursery, quiet=True)
    proof = verify_run(tmp_path / "out")
    assert proof.ok
    assert (proof.steps, proof.planned, proof.samples, proof.finished, proof.resumed) == (8, 8, 64, True, 1)
    (recovery,) = proof.recoveries
    assert (1, 0) in recovery.lost
    assert recovery.seconds is not None
    assert "each sample of each committed step was used exactly once" in coverage(proof)
    json.dumps(proof.as_dict())


@pytest.mark.parametrize(
    ("history", "fault"),
    [
        ([step(1), step(3)], "step 3 stands where step 2 should"),
        ([step(2)], "step 2 stands where step 1 should"),
        ([step(1, r0=[[0, 5]], r1=[[6, 8]])], "step 1: positions [5, 6) of 8 were used by none"),
        ([step(1, r0=[[1, 8]])], "step 1: positions [0, 1) of 8 were used by none"),
        ([step(1, r0=[[0, 5]], r1=[[4, 8]])], "step 1: positions [4, 5) were used by replica 0 and by replica 1"),
        ([step(1, r0=[[0, 5]])], "step 1: positions [5, 8) were used by none of 8"),
        ([step(1, r0=[[0, 9]])], "step 1: positions [8, 9) are beyond its batch of 8"),
    ],
)
def test_each_fault_is_named(write: Write, history: list[Event], fault: str) -> None:
    proof = verify_run(write(STARTED, *history))
    assert not proof.ok
    assert proof.wrong == [fault]
    assert fault in coverage(proof)


def test_void_steps_are_no_part_of_the_proof_and_are_counted(write: Write) -> None:
    history = [
        step(1, 1.0),
        step(2, 2.0, r0=[[0, 4]]),
        step(3, 3.0),
        events.Lost(3.5, -1, 0, "SIGKILL"),
        events.RolledBack(3.6, 1, "server 0 is gone"),
        step(2, 4.5, 2),
        step(3, 5.0, 2),
    ]
    proof = verify_run(write(STARTED, *history))
    assert proof.ok
    (recovery,) = proof.recoveries
    assert (recovery.lost, recovery.void, recovery.step, recovery.seconds) == ([(-1, 0)], 2, 2, 1.0)
    assert "lost server 0: SIGKILL; step 2 was committed 1.00 s later, 2 steps done again" in coverage(proof)


def test_deaths_before_the_next_step_are_one_failure(write: Write) -> None:
    lost = [events.Lost(1.25, 0, 0, "SIGKILL"), events.Lost(1.5, 1, 0, "SIGKILL")]
    (recovery,) = verify_run(write(STARTED, step(1, 1.0), *lost, step(2, 2.0))).recoveries
    assert (recovery.lost, recovery.seconds) == ([(0, 0), (1, 0)], 0.75)
    (open_,) = verify_run(write(STARTED, step(1, 1.0), *lost)).recoveries
    assert (open_.step, open_.seconds) == (None, None)


def test_batches_that_grow_are_covered_by_their_own_size(write: Write) -> None:
    folder = write(STARTED, step(1, r0=[[0, 4]]), step(2, r0=[[0, 8]]))
    run = folder / "run.toml"
    growing = '[[train.batch]]\nbatch = 4\nuntil = "1 steps"\n[[train.batch]]\nbatch = 8\n'
    run.write_text(run.read_text().replace(f"batch = {BATCH}\n", "", 1) + growing)
    assert verify_run(folder).ok
    assert verify_run(folder).samples == 12


@given(st.lists(st.integers(0, 20), min_size=1, max_size=6).filter(any), st.data())
def test_shares_that_were_dealt_cover_and_without_one_position_do_not(capacities: list[int], data: st.DataObject) -> None:
    from plait.proof.coverage import _cover

    dealt = {str(replica): ranges for replica, ranges in enumerate(shares.deal(24, capacities))}
    whole = events.Step(0.0, 1, 1, 1.0, 1.0, 0.1, 100, 0.1, 1000.0, None, dealt)
    assert list(_cover(whole, 24)) == []
    out = data.draw(st.integers(0, 23))
    holed = {
        replica: [[a, b] for first, end in ranges for a, b in ([first, min(end, out)], [max(first, out + 1), end]) if a < b]
        for replica, ranges in dealt.items()
    }
    faults = list(_cover(events.Step(0.0, 1, 1, 1.0, 1.0, 0.1, 100, 0.1, 1000.0, None, holed), 24))
    assert len(faults) == 1
    assert f"[{out}, {out + 1})" in faults[0]


def test_where_there_is_no_run_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no run here"):
        verify_run(tmp_path / "nowhere")


def test_a_journal_that_is_not_one_is_refused_by_its_line(write: Write) -> None:
    folder = write(STARTED)
    (folder / "events.jsonl").write_text("{}\n")
    with pytest.raises(CheckpointError, match=r"events\.jsonl: a line is no event"):
        verify_run(folder)


def taking(number: int, *samples: list[int]) -> events.Step:
    return replace(step(number), samples=list(samples))


def spiked(number: int, *skipped: list[int]) -> events.Spiked:
    return events.Spiked(0.0, number, "loss", 9.0, 1.0, 2.0, list(skipped))


def test_samples_that_are_left_out_are_told_and_each_other_one_was_used_once(write: Write) -> None:
    history = [taking(1, [0, 8]), taking(2, [8, 16]), taking(3, [16, 24]), spiked(3, [8, 24]), events.RolledBack(0.0, 1, "spike")]
    proof = verify_run(write(STARTED, *history, taking(2, [24, 32]), taking(3, [32, 40])))
    assert proof.ok
    assert proof.left_out == [[8, 24]]
    assert "16 samples of the run's order left out: [8, 24)" in coverage(proof)


def test_a_step_that_took_what_it_should_not_is_named(write: Write) -> None:
    proof = verify_run(write(STARTED, taking(1, [0, 8]), spiked(2, [8, 16]), events.RolledBack(0.0, 1, "spike"), taking(2, [8, 16])))
    assert proof.wrong == ["step 2: samples [8, 16) of the run were used, and [16, 24) were to be"]
    named = verify_run(write(STARTED, taking(1, [0, 2], [4, 10]), data__skip=[[2, 4]]))
    assert named.ok
    assert named.left_out == [[2, 4]]


def test_steps_that_corruption_touched_are_told_until_they_are_done_again(write: Write) -> None:
    healed = events.Corrupted(0.0, 3, 1, 0, "host", ["model.x"], 1, "healed")
    history = [step(1), step(2), step(3), healed]
    assert "steps 2 to 3 may be touched by a replica that was corrupted" in coverage(verify_run(write(STARTED, *history)))
    assert verify_run(write(STARTED, *history, events.Resumed(0.0, 2), step(3))).touched == [[2, 2]]
    assert verify_run(write(STARTED, *history, events.RolledBack(0.0, 1, "x"), step(2))).touched == []
