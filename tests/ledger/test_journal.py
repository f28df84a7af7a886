"""The journal survives kills and full disks without losing or tearing a line."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from plait import events
from plait.ledger import journal
from plait.ledger.journal import Journal


def step(number: int) -> events.Step:
    return events.Step(0.0, number, 1, 1.0, 1.0, 0.1, 8, 0.1, 80.0, None, {"0": [[0, 8]]})


def test_what_is_appended_is_read_back(tmp_path: Path) -> None:
    written = Journal(tmp_path / "events.jsonl")
    written.append(step(1))
    written.append(events.Finished(0.0, 1))
    assert journal.read(tmp_path / "events.jsonl") == [step(1), events.Finished(0.0, 1)]


def test_a_line_that_a_kill_cut_short_is_removed_before_going_on(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text(step(1).to_json() + "\n" + step(2).to_json()[:20])
    assert journal.read(path) == [step(1)]
    Journal(path).append(step(2))
    assert journal.read(path) == [step(1), step(2)]


def test_lines_wait_in_memory_while_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "events.jsonl"
    written = Journal(path)
    written.append(step(1))
    real, room = os.write, [10]

    def full(descriptor: int, line: bytes) -> int:
        if room[0]:
            return real(descriptor, line[: room.pop()]) if room else 0
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    written.append(step(2))
    assert written.trouble is not None
    assert "1 lines wait" in written.trouble
    monkeypatch.setattr(os, "write", real)
    written.append(step(3))
    assert written.trouble is None
    assert journal.read(path) == [step(1), step(2), step(3)]


def test_numbers_that_are_not_finite_are_null() -> None:
    lost = events.Evaluated(0.0, 1, "validation", float("nan"), float("inf"), 0.5, 8)
    assert '"loss":null,"perplexity":null' in lost.to_json()


def test_what_a_resume_or_a_rollback_voids_does_not_count() -> None:
    history = [step(1), step(2), step(3), events.Resumed(0.0, 1), step(2), step(3), events.RolledBack(0.0, 2, "x"), step(3)]
    assert [one.step for one in events.committed(history)] == [1, 2, 3]
    assert events.committed(history)[1] is history[4]
    assert events.committed(history)[2] is history[7]
