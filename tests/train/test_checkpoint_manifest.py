"""The manifest decides whether a checkpoint exists: complete or absent, never in between, whatever was killed when."""

import hashlib
import json
import os
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plait.errors import CheckpointError
from plait.train import manifest
from plait.train.manifest import Chunk, Manifest, Piece, TensorEntry

CONTENT = b"values"


def complete(folder, step, content=CONTENT, about=None):
    partial = manifest.partial_folder(folder, step)
    (partial / "piece-0000-000.safetensors").write_bytes(content)
    chunk = Chunk([0], [6], "piece-0000-000.safetensors", "x")
    digest = hashlib.sha256(CONTENT).hexdigest()
    whole = Manifest(step, about or {}, {}, {"x": TensorEntry("uint8", [6], [chunk])}, {chunk.piece: Piece(len(CONTENT), digest)})
    return manifest.write(partial, whole)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "checkpoints"


def test_no_folder_means_no_checkpoint(folder):
    assert manifest.latest(folder) is None
    manifest.clear_leftovers(folder)


def test_it_reads_back_what_was_written(folder):
    path = complete(folder, 20, about={"seed": 1})
    assert manifest.about(path) == {"seed": 1}
    assert manifest.read(path).tensors["x"].chunks[0].key == "x"
    assert manifest.step_of(path) == 20
    manifest.verify(path)


def test_candidates_are_newest_first(folder):
    for step in (5, 100_000_000, 30):
        complete(folder, step)
    assert [manifest.step_of(path) for path in manifest.candidates(folder)] == [100_000_000, 30, 5]


def test_without_its_manifest_a_folder_is_no_checkpoint(folder):
    older, newer = complete(folder, 1), complete(folder, 2)
    (newer / manifest.FILE).unlink()
    assert manifest.latest(folder) == older
    assert "is missing" in str(manifest.problem(newer))


@pytest.mark.parametrize("spoil", [lambda piece: piece.unlink(), lambda piece: piece.write_bytes(b"cut")])
def test_a_missing_or_cut_piece_disqualifies_and_is_named(folder, spoil):
    older, newer = complete(folder, 1), complete(folder, 2)
    spoil(newer / "piece-0000-000.safetensors")
    assert manifest.latest(folder) == older
    assert "piece-0000-000.safetensors" in str(manifest.problem(newer))


def test_a_manifest_that_was_changed_is_refused(folder):
    path = complete(folder, 1, about={"seed": 1})
    record = json.loads((path / manifest.FILE).read_text())
    record["about"]["seed"] = 2
    (path / manifest.FILE).write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match="checksum"):
        manifest.read(path)


def test_a_later_version_is_refused_by_number(folder):
    path = complete(folder, 1)
    record = json.loads((path / manifest.FILE).read_text())
    (path / manifest.FILE).write_text(json.dumps(record | {"version": 9}))
    with pytest.raises(CheckpointError, match="version 9"):
        manifest.read(path)


@given(st.binary(max_size=40))
def test_rubbish_is_refused_never_crashed_upon(rubbish):
    with pytest.raises(CheckpointError, match=r"^step-00000001/manifest\.json: "):
        manifest.parse(rubbish, "step-00000001/manifest.json")


def test_a_piece_outside_the_folder_is_refused(folder):
    partial = manifest.partial_folder(folder, 1)
    path = manifest.write(partial, Manifest(1, {}, {}, {}, {"../secret": Piece(1, "")}))
    with pytest.raises(CheckpointError, match="no piece"):
        manifest.read(path)


def test_killed_before_the_rename_nothing_stands_and_the_next_start_clears(folder):
    complete(folder, 1)
    manifest.partial_folder(folder, 2)
    assert [path.name for path in manifest.candidates(folder)] == ["step-00000001"]
    manifest.clear_leftovers(folder)
    assert os.listdir(folder) == ["step-00000001"]


def test_killed_while_replacing_the_old_one_gets_its_name_back(folder, monkeypatch):
    path = complete(folder, 1, about={"which": "old"})
    rename = os.rename

    def die(source, target):
        if str(source).endswith(".partial"):
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(os, "rename", die)
    with pytest.raises(KeyboardInterrupt):
        complete(folder, 1, about={"which": "new"})
    monkeypatch.undo()
    assert manifest.latest(folder) is None
    manifest.clear_leftovers(folder)
    assert manifest.about(path) == {"which": "old"}
    assert os.listdir(folder) == [path.name]


def test_killed_while_removing_what_is_left_is_no_checkpoint(folder, monkeypatch):
    for step in (1, 2, 3):
        complete(folder, step)

    def die(path, *args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", die)
    with pytest.raises(KeyboardInterrupt):
        manifest.prune(folder, 3, keep=2)
    monkeypatch.undo()
    assert [manifest.step_of(path) for path in manifest.candidates(folder)] == [3, 2]
    manifest.clear_leftovers(folder)
    assert sorted(os.listdir(folder)) == ["step-00000002", "step-00000003"]


def test_a_damaged_one_does_not_count_among_those_kept(folder):
    complete(folder, 1)
    damaged = complete(folder, 2)
    (damaged / manifest.FILE).unlink()
    complete(folder, 3)
    manifest.prune(folder, 3, keep=2)
    assert sorted(os.listdir(folder)) == ["step-00000001", "step-00000003"]


def test_what_is_no_checkpoint_is_left_alone(folder):
    complete(folder, 1)
    (folder / "notes").mkdir()
    (folder / "step-1.txt").write_text("mine")
    manifest.prune(folder, 1, keep=1)
    manifest.clear_leftovers(folder)
    assert sorted(os.listdir(folder)) == ["notes", "step-00000001", "step-1.txt"]
    with pytest.raises(CheckpointError, match="step-00000200"):
        manifest.step_of(folder / "notes")
