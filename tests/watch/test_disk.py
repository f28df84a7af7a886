"""A low disk is told once, and again when it gets worse or was better in between."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from plait import events
from plait.errors import Interrupted, WorkerFailed
from plait.ledger import journal
from plait.watch.disk import DiskWatch
from plait.watch.record import Record

SAVED = events.Saved(1.0, 1, "out/step-00000001", 500, 0.1, 0.0)


class Disk:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.free = 10**6
        monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=self.free))


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


def looks(watch: DiskWatch, disk: Disk, told: list[events.Event], *free: int) -> list[int]:
    """After which amounts of free space something was told."""
    found = []
    for disk.free in free:
        before = len(told)
        watch.look()
        found += [disk.free] * (len(told) - before)
    return found


def test_low_is_told_once_and_once_more_when_the_next_save_has_no_room(tmp_path: Path, disk: Disk) -> None:
    told: list[events.Event] = []
    watch = DiskWatch(told.append, tmp_path, [], 100, 0)
    watch.on(SAVED)
    assert looks(watch, disk, told, 2000, 1001, 999, 900, 501, 499, 100, 700, 300) == [999, 499]
    assert [(event.free, event.wanted, event.checkpoint) for event in told if isinstance(event, events.LowDisk)] == [
        (999, 1000, 500),
        (499, 1000, 500),
    ]


def test_free_space_that_goes_up_and_down_with_each_save_is_told_once(tmp_path: Path, disk: Disk) -> None:
    told: list[events.Event] = []
    watch = DiskWatch(told.append, tmp_path, [], 100, 500)
    assert looks(watch, disk, told, *[1490, 990] * 5) == [990]
    assert looks(watch, disk, told, 1751, 990) == [990]


def test_the_least_that_was_asked_for_counts_where_checkpoints_are_small(tmp_path: Path, disk: Disk) -> None:
    told: list[events.Event] = []
    assert looks(DiskWatch(told.append, tmp_path, [], 5000, 500), disk, told, 5001, 4999, 1100) == [4999]


def test_one_disk_is_told_of_once_though_two_folders_are_on_it(tmp_path: Path, disk: Disk) -> None:
    told: list[events.Event] = []
    (tmp_path / "prepared").mkdir()
    assert looks(DiskWatch(told.append, tmp_path, [tmp_path / "prepared"], 5000, 0), disk, told, 4999) == [4999]


def test_the_thread_looks_and_records(tmp_path: Path, disk: Disk) -> None:
    disk.free = 10
    seen = threading.Event()

    class Sees:
        def on(self, event: events.Event) -> None:
            seen.set()

        def close(self) -> None: ...

    with Record(tmp_path / "events.jsonl", [Sees()]) as record, DiskWatch(record, tmp_path, [], 5000, 0):
        assert seen.wait(10)
    (event,) = journal.read(tmp_path / "events.jsonl")
    assert isinstance(event, events.LowDisk)
    assert event.folder == str(tmp_path)


# --- the record --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "left"), [(WorkerFailed("replica 0: no"), ["replica 0: no"]), (Interrupted("stopped"), []), (KeyboardInterrupt(), [])]
)
def test_a_run_that_ends_by_an_error_says_so(tmp_path: Path, error: BaseException, left: list[str]) -> None:
    def run() -> None:
        with Record(tmp_path / "events.jsonl", []) as record:
            record(events.Resumed(1.0, 7))
            raise error

    with pytest.raises(type(error)):
        run()
    failed = [event for event in journal.read(tmp_path / "events.jsonl") if isinstance(event, events.Failed)]
    assert [event.why for event in failed] == left
    assert all(event.step == 7 for event in failed)


def test_events_of_many_threads_are_whole_lines_and_told_one_at_a_time(tmp_path: Path) -> None:
    class Counts:
        within = most = told = 0

        def on(self, event: events.Event) -> None:
            self.within += 1
            self.most, self.told = max(self.most, self.within), self.told + 1
            self.within -= 1

        def close(self) -> None: ...

    counts = Counts()
    with Record(tmp_path / "events.jsonl", [counts]) as record:
        threads = [threading.Thread(target=lambda: [record(events.Finished(1.0, number)) for number in range(50)]) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    record(events.Finished(1.0, 0))  # after the end
    assert len(journal.read(tmp_path / "events.jsonl")) == counts.told == 400
    assert counts.most == 1
