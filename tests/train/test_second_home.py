"""A second home of checkpoints: copied piece by piece, complete or absent, gone on with after a kill; the newest sound one is found."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from plait import events, spec, store
from plait.cluster.copier import Copier
from plait.errors import CheckpointError, StorageError, StorageFailed
from plait.store import Store
from plait.train import copying as module
from plait.train import manifest
from plait.train.copying import Copying
from plait.train.home import COPYING, Home
from plait.train.manifest import Chunk, Manifest, Piece, TensorEntry
from plait.train.restore import Found, restore

PIECES = 3


def save(folder: Path, step: int, seed: int = 0) -> Path:
    """A checkpoint of a few small pieces."""
    partial = manifest.partial_folder(folder, step)
    pieces, chunks = {}, []
    for number in range(PIECES):
        file, content = f"piece-0000-{number:03d}.safetensors", f"step {step}, piece {number}, seed {seed}".encode() * 100
        (partial / file).write_bytes(content)
        pieces[file] = Piece(len(content), hashlib.sha256(content).hexdigest())
        chunks.append(Chunk([number], [1], file, "x"))
    return manifest.write(partial, Manifest(step, {"seed": seed}, {}, {"x": TensorEntry("uint8", [PIECES], chunks)}, pieces))


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


class Watched:
    """A store that keeps what was asked of it, and fails where it is told to."""

    def __init__(self, inner: Store, fail: Callable[[str, str], Exception | None] = lambda doing, name: None) -> None:
        self._inner, self.fail, self.asked = inner, fail, []  # type: ignore[var-annotated]

    def __getattr__(self, doing: str) -> Any:
        def call(*given: Any) -> Any:
            name = str(given[1] if doing in ("upload",) else given[0] if given else "")
            self.asked.append((doing, name))
            if (error := self.fail(doing, name)) is not None:
                raise error
            return getattr(self._inner, doing)(*given)

        return call

    def uploads(self) -> list[str]:
        return [name for doing, name in self.asked if doing == "upload"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "out" / "checkpoints"


@pytest.fixture
def there(tmp_path: Path) -> Path:
    return tmp_path / "there"


@pytest.fixture
def watched(there: Path) -> Watched:
    return Watched(store.at(str(there)))


@pytest.fixture
def home(watched: Watched) -> Home:
    return Home(watched)  # type: ignore[arg-type]


def same(one: Path, other: Path) -> bool:
    def files(folder: Path) -> dict[str, bytes]:
        return {file.name: file.read_bytes() for file in folder.iterdir()}

    return files(one) == files(other)


# --- copying -----------------------------------------------------------------------------------------------------


def test_a_copy_is_the_same_files_and_its_manifest_comes_last(folder: Path, there: Path, home: Home, watched: Watched) -> None:
    path = save(folder, 200)
    assert home.copy(path)
    assert same(path, there / path.name)
    made = [name.partition("/")[2] for doing, name in watched.asked if doing in ("write", "upload", "create")]
    assert made == [COPYING, *(f"piece-0000-{number:03d}.safetensors" for number in range(PIECES)), manifest.FILE]
    assert home.steps() == [200]
    home.verify(200)
    assert not home.copy(path)


@pytest.mark.parametrize("kind", ["write", "upload", "create", "delete"])
def test_a_copy_that_is_cut_short_is_no_checkpoint_and_is_gone_on_with(folder: Path, home: Home, watched: Watched, kind: str) -> None:
    """Cut at each request that changes something, one after the other."""
    path, cut = save(folder, 200), 0
    while True:
        left = [cut]

        def fail(doing: str, name: str, left: list[int] = left) -> Exception | None:
            left[0] -= doing == kind
            return StorageFailed("the network is gone") if doing == kind and left[0] < 0 else None

        watched.fail = fail
        try:
            home.copy(path)
        except StorageFailed:
            watched.fail = lambda doing, name: None
            assert home.steps() == ([200] if kind == "delete" else [])
            cut += 1
        else:
            break
    assert home.steps() == [200]
    home.verify(200)
    assert cut


def test_pieces_that_are_there_are_not_sent_again(folder: Path, home: Home, watched: Watched) -> None:
    path = save(folder, 200)
    watched.fail = lambda doing, name: StorageFailed("gone") if doing == "upload" and name.endswith("001.safetensors") else None
    with pytest.raises(StorageFailed):
        home.copy(path)
    watched.asked.clear()
    watched.fail = lambda doing, name: None
    home.copy(path)
    assert [name[-15:] for name in watched.uploads()] == ["001.safetensors", "002.safetensors"]


def test_what_was_begun_of_another_checkpoint_of_the_step_is_not_taken_for_this_one(
    folder: Path, there: Path, home: Home, watched: Watched
) -> None:
    watched.fail = lambda doing, name: StorageFailed("gone") if doing == "create" else None
    with pytest.raises(StorageFailed):
        home.copy(save(folder, 200, seed=1))
    watched.fail = lambda doing, name: None
    path = save(folder, 200, seed=2)
    home.copy(path)
    assert same(path, there / path.name)


def test_a_step_that_was_saved_again_replaces_its_copy(folder: Path, there: Path, home: Home, watched: Watched) -> None:
    home.copy(save(folder, 200, seed=1))
    path = save(folder, 200, seed=2)
    watched.asked.clear()
    home.copy(path)
    assert same(path, there / path.name)
    assert next(name for doing, name in watched.asked if doing == "delete").endswith(manifest.FILE)


def test_a_piece_that_is_corrupt_here_is_not_copied(folder: Path, home: Home) -> None:
    path = save(folder, 200)
    flip(path / "piece-0000-001.safetensors")
    with pytest.raises(CheckpointError, match=r"out/checkpoints/step-00000200/piece-0000-001\.safetensors: is corrupt"):
        home.copy(path)
    assert home.steps() == []


def test_two_that_write_the_same_step_do_not_mix(folder: Path, there: Path, home: Home, watched: Watched) -> None:
    path = save(folder, 200)

    def other(doing: str, name: str) -> None:
        if doing == "create":
            (there / name).write_bytes(b"another's")

    watched.fail = other  # type: ignore[assignment]
    with pytest.raises(StorageFailed, match="another run"):
        home.copy(path)


def test_pruning_leaves_the_newest_and_nothing_void_or_half_done(folder: Path, there: Path, home: Home, watched: Watched) -> None:
    for step in (100, 200, 300, 900):
        home.copy(save(folder, step))
    watched.fail = lambda doing, name: StorageFailed("gone") if doing == "create" else None
    with pytest.raises(StorageFailed):
        home.copy(save(folder, 150))
    watched.fail = lambda doing, name: None
    home.prune(300, keep=2)
    assert home.steps() == [300, 200]
    assert sorted(os.listdir(there)) == ["step-00000200", "step-00000300"]


def test_what_a_killed_copy_left_behind_goes_with_it(folder: Path, there: Path, home: Home, watched: Watched) -> None:
    watched.fail = lambda doing, name: StorageFailed("gone") if doing == "upload" and name.endswith("001.safetensors") else None
    with pytest.raises(StorageFailed):
        home.copy(save(folder, 200))
    (there / "step-00000200" / "piece-0000-001.safetensors.4711.part").write_text("half a pie")
    watched.fail = lambda doing, name: None
    home.copy(save(folder, 300))
    home.prune(300, keep=2)
    assert os.listdir(there) == ["step-00000300"]


# --- the process -------------------------------------------------------------------------------------------------


class Told(list[dict[str, Any]]):
    def kinds(self) -> list[tuple[str, int]]:
        return [(key, words[key]) for words in self for key in ("copied", "failed") if key in words]


def test_failures_are_told_once_and_tried_again(folder: Path, home: Home, watched: Watched) -> None:
    failures = [3]

    def fail(doing: str, name: str) -> Exception | None:
        failures[0] -= doing == "upload"
        return StorageFailed("no route") if doing == "upload" and failures[0] >= 0 else None

    watched.fail = fail
    told = Told()
    copying = Copying(home, folder, 2, None, told.append, (0.0,))
    save(folder, 200)
    copying.want(200)
    copying.finish()
    copying.work()
    assert told.kinds() == [("failed", 200), ("copied", 200)]
    assert "no route" in told[0]["why"]
    assert not list(folder.glob(".*.held"))


def test_what_trying_does_not_mend_waits_for_the_next_one(folder: Path, home: Home, watched: Watched) -> None:
    watched.fail = lambda doing, name: StorageError("permission denied") if "200" in name and doing == "upload" else None
    told = Told()
    copying = Copying(home, folder, 2, None, told.append, (1000.0,))
    save(folder, 200)
    copying.want(200)
    copying.finish()
    copying.work()
    assert told.kinds() == [("failed", 200)]
    save(folder, 300)
    copying.want(300)
    copying.work()
    assert told.kinds() == [("failed", 200), ("copied", 300)]


def test_a_newer_one_takes_the_place_of_one_that_cannot_be_copied(folder: Path, home: Home, watched: Watched) -> None:
    copying: Copying

    def fail(doing: str, name: str) -> Exception | None:
        if doing == "upload" and "200" in name:
            save(folder, 300)
            copying.want(300)
            return StorageFailed("no route")
        return None

    watched.fail = fail
    told = Told()
    copying = Copying(home, folder, 2, None, told.append, (1000.0,))
    save(folder, 200)
    copying.want(200)
    copying.finish()
    copying.work()
    assert told.kinds() == [("failed", 200), ("copied", 300)]
    assert home.steps() == [300]


def test_a_checkpoint_may_go_while_it_is_copied(folder: Path, there: Path, home: Home, watched: Watched) -> None:
    path = save(folder, 200)
    before = {file.name: file.read_bytes() for file in path.iterdir()}

    def gone(doing: str, name: str) -> None:
        if doing == "upload" and path.exists():
            shutil.rmtree(path)

    watched.fail = gone  # type: ignore[assignment]
    told = Told()
    copying = Copying(home, folder, 2, None, told.append)
    copying.want(200)
    copying.finish()
    copying.work()
    assert told.kinds() == [("copied", 200)]
    assert {file.name: file.read_bytes() for file in (there / path.name).iterdir()} == before
    assert not list(folder.glob(".*.held"))


def test_one_that_is_gone_already_is_no_failure(folder: Path, home: Home) -> None:
    told = Told()
    copying = Copying(home, folder, 2, None, told.append)
    copying.want(200)
    copying.finish()
    copying.work()
    assert told == []


def test_a_rate_is_kept_on_average(folder: Path, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(module, "time", SimpleNamespace(sleep=slept.append, monotonic=lambda: 0.0))
    whole = manifest.read(save(folder, 200))
    copying = Copying(home, folder, 2, 0.001, lambda words: None)
    copying.want(200)
    copying.finish()
    copying.work()
    assert slept[-1] == pytest.approx(whole.bytes / (0.001 * 2**20))


def test_a_process_that_is_killed_is_gone_on_with_by_the_next(folder: Path, there: Path) -> None:
    """kill -9 while it copies, at so slow a rate that it is amid the pieces."""
    path = save(folder, 200)
    settings = {"folder": str(folder), "url": str(there), "keep": 2, "rate": 1e-6}
    command = [sys.executable, "-m", "plait.train.copying", json.dumps(settings)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        process.stdin.write('{"copy": 200}\n')
        process.stdin.flush()
        first = there / path.name / "piece-0000-000.safetensors"
        while not first.exists():
            assert process.poll() is None
        process.send_signal(signal.SIGKILL)
    home = Home.at(str(there))
    assert home.steps() == []
    written = first.stat().st_mtime_ns
    told = copy_beside(folder, there, 200)
    assert [type(event) for event in told] == [events.Copied]
    assert same(path, there / path.name)
    assert first.stat().st_mtime_ns == written
    manifest.clear_leftovers(folder)
    assert os.listdir(folder) == [path.name]


def test_the_process_ends_with_who_started_it(folder: Path, there: Path) -> None:
    save(folder, 200)
    settings = {"folder": str(folder), "url": str(there), "keep": 2, "rate": 1e-6}
    command = [sys.executable, "-m", "plait.train.copying", json.dumps(settings)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        process.stdin.write('{"copy": 200}\n')
        process.stdin.close()
        assert process.wait(30) == 0


def copy_beside(folder: Path, there: Path, *steps: int, **settings: Any) -> list[events.Event]:
    """As a run does it, which tells of saves."""
    told: list[events.Event] = []
    with Copier(told.append, folder, spec.Checkpoint(copy_to=str(there), **settings)) as copier:
        for step in steps:
            copier.on(events.Saved(1.0, step, str(folder / manifest.name(step)), 1, 0.0, 0.0))
    return told


def test_a_run_has_its_checkpoints_copied_and_waits_for_the_last(folder: Path, there: Path) -> None:
    save(folder, 100)
    save(folder, 200)
    told = copy_beside(folder, there, 100, 200)
    assert isinstance(told[-1], events.Copied)
    assert (told[-1].step, told[-1].url) == (200, f"{there}/step-00000200")
    assert copy_beside(folder, there, 200) == []  # it is there


def test_what_is_not_copied_in_time_is_told(folder: Path, there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(folder, 200)
    (failed,) = copy_beside(folder, there, 200, copy_mib_per_s=1e-6, copy_patience=2.5)
    assert isinstance(failed, events.CopyFailed)
    assert "was not done within 2.5 s of the run's end" in failed.why
    assert "waiting for checkpoints to be copied" in capsys.readouterr().err


# --- what a run begins from --------------------------------------------------------------------------------------


def saved(step: int) -> events.Saved:
    return events.Saved(1.0, step, "", 1, 0.0, 0.0)


def copied(step: int) -> events.Copied:
    return events.Copied(1.0, step, "", 1, 0.0)


def told_of(found: Found) -> list[tuple[str, int]]:
    return [(type(event).__name__, event.step) for event in found.told]  # type: ignore[attr-defined]


@pytest.fixture
def both(folder: Path, home: Home) -> Home:
    """Steps 200, 300 and 400 in both homes."""
    for step in (200, 300, 400):
        home.copy(save(folder, step))
    return home


def test_the_newest_here_is_taken_and_nothing_is_fetched(folder: Path, both: Home, watched: Watched) -> None:
    watched.asked.clear()
    found = restore(folder, both, [])
    assert found == Found(folder / "step-00000400")
    assert "download" not in [doing for doing, _ in watched.asked]


def test_nothing_anywhere_is_a_beginning(folder: Path, home: Home) -> None:
    assert restore(folder, home, []) == Found()
    assert restore(folder, None, []) == Found()


def test_an_empty_folder_is_filled_from_the_second_home(folder: Path, there: Path, both: Home) -> None:
    shutil.rmtree(folder)
    found = restore(folder, both, [])
    assert found.checkpoint == folder / "step-00000400"
    assert same(folder / "step-00000400", there / "step-00000400")
    assert told_of(found) == [("Fetched", 400)]
    assert os.listdir(folder) == ["step-00000400"]


def damage_bytes(path: Path) -> None:
    flip(path / "piece-0000-001.safetensors")


def damage_size(path: Path) -> None:
    os.truncate(path / "piece-0000-001.safetensors", 7)


def damage_manifest(path: Path) -> None:
    flip(path / manifest.FILE)


def lose_piece(path: Path) -> None:
    (path / "piece-0000-001.safetensors").unlink()


DAMAGES = [damage_bytes, damage_size, damage_manifest, lose_piece]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_one_here_is_named_and_fetched(folder: Path, there: Path, both: Home, damage: Callable[[Path], None]) -> None:
    damage(folder / "step-00000400")
    found = restore(folder, both, [])
    assert told_of(found) == [("Damaged", 400), ("Fetched", 400)]
    assert isinstance(found.told[0], events.Damaged)
    assert str(folder / "step-00000400") in found.told[0].why
    assert found.checkpoint is not None
    assert same(found.checkpoint, there / "step-00000400")


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_one_there_is_named_and_the_one_before_taken(
    folder: Path, there: Path, both: Home, damage: Callable[[Path], None]
) -> None:
    shutil.rmtree(folder / "step-00000400")
    damage(there / "step-00000400")
    found = restore(folder, both, [])
    assert told_of(found) == [("Damaged", 400)]
    assert isinstance(found.told[0], events.Damaged)
    assert str(there / "step-00000400") in found.told[0].why
    assert found.checkpoint == folder / "step-00000300"
    assert not list(folder.glob(".*"))


def test_both_homes_damaged_in_different_steps(folder: Path, there: Path, both: Home) -> None:
    damage_bytes(folder / "step-00000400")
    damage_size(there / "step-00000400")
    lose_piece(folder / "step-00000300")
    found = restore(folder, both, [])
    assert told_of(found) == [("Damaged", 400), ("Damaged", 400), ("Damaged", 300), ("Fetched", 300)]
    assert found.checkpoint == folder / "step-00000300"


def test_a_manifest_that_is_gone_there_means_no_checkpoint(folder: Path, there: Path, both: Home) -> None:
    shutil.rmtree(folder)
    (there / "step-00000400" / manifest.FILE).unlink()
    assert told_of(restore(folder, both, [])) == [("Fetched", 300)]


def test_only_damaged_ones_are_refused(folder: Path, there: Path, both: Home) -> None:
    for path in [*folder.iterdir(), *there.iterdir()]:
        damage_bytes(path)
    with pytest.raises(CheckpointError, match=r"no checkpoint is sound.*step-00000400/piece-0000-001\.safetensors: is corrupt"):
        restore(folder, both, [])


def test_what_is_of_a_void_curve_is_not_taken(folder: Path, both: Home, step: Any) -> None:
    history = [step(400), saved(400), copied(400), events.RolledBack(1.0, 300, "a spike"), step(320)]
    assert restore(folder, both, history).checkpoint == folder / "step-00000300"
    shutil.rmtree(folder)
    assert restore(folder, both, history).checkpoint == folder / "step-00000300"
    assert restore(folder, both, [*history, step(400), saved(400), copied(400)]).checkpoint == folder / "step-00000400"


def test_what_was_being_written_when_the_run_went_back_is_void(step: Any) -> None:
    history = [step(400), events.RolledBack(1.0, 300, "a spike"), saved(400), step(301)]
    assert events.void_checkpoints(history, events.Saved) == {400}
    assert events.void_checkpoints([*history, step(400), saved(400)], events.Saved) == set()


def test_a_home_that_does_not_answer_is_needed_only_for_what_is_not_here(folder: Path, both: Home, watched: Watched, step: Any) -> None:
    watched.fail = lambda doing, name: StorageFailed("s3://bucket: no route")
    history = [step(400), saved(400)]
    found = restore(folder, both, history)
    assert found.checkpoint == folder / "step-00000400"
    assert told_of(found) == [("CopyFailed", 400)]
    damage_bytes(folder / "step-00000400")
    with pytest.raises(StorageFailed, match=r"no route; the newest checkpoint, of step 400, is not sound here, and may be there"):
        restore(folder, both, history)
    shutil.rmtree(folder)
    with pytest.raises(StorageFailed, match=r"no route; there is no checkpoint here"):
        restore(folder, both, [])
