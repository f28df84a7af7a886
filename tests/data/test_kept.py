"""Prepared data in a store: found again, read through the cache, restored from its backup; batches equal those of a folder."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plait import spec
from plait.data import kept, prepare
from plait.data.batches import Batches
from plait.data.tokens import FarTokenFile, Prepared
from plait.errors import DataError, RunFileError, StorageError
from plait.store.blocks import BLOCK
from tests.runs import write_corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"), 300)


def settings(corpus: Path, prepared: Path | str, **more: Any) -> spec.Data:
    return spec.Data(corpus=[str(corpus)], tokenizer=spec.Tokenizer(train=280), prepared=str(prepared), sequence=16, workers=1, **more)


@pytest.fixture
def far(corpus: Path, tmp_path: Path) -> spec.Data:
    """Settings with a store as home; file:// stands for any system."""
    cache = spec.Cache(folder=str(tmp_path / "cache"), gib=4 * BLOCK / 2**30)
    return settings(corpus, f"file://{tmp_path}/home", cache=cache)


@pytest.fixture(scope="module")
def near(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare.prepare(settings(corpus, tmp_path_factory.mktemp("near")))


def batches(prepared: Prepared) -> Batches:
    train = spec.Train(duration=spec.Duration("2 epochs"), batch=8, seed=3)
    return Batches(prepared.split("train", 16), train, prepared.fingerprint)


def same_batches(one: Prepared, other: Prepared) -> None:
    mine, theirs = batches(one), batches(other)
    assert mine.steps == theirs.steps
    for step in range(1, mine.steps + 1, 7):
        theirs.ahead(step, [[0, 8]])
        np.testing.assert_array_equal(mine.read(step, 0, 8).tokens_BL, theirs.read(step, 0, 8).tokens_BL)
        np.testing.assert_array_equal(mine.read(step, 2, 5).targets_BL, theirs.read(step, 2, 5).targets_BL)


def test_batches_from_a_store_are_those_from_a_folder(near: Prepared, far: spec.Data) -> None:
    prepared = prepare.prepare(far)
    assert prepared.fingerprint == near.fingerprint
    assert isinstance(prepared.split("train", 16).sources[0], FarTokenFile)
    same_batches(near, prepared)
    assert prepared.unigram_entropy("validation") == near.unigram_entropy("validation")


def test_what_is_kept_is_found_by_another_host(far: spec.Data, tmp_path: Path) -> None:
    first = prepare.prepare(far)
    elsewhere = far.model_copy(update={"cache": spec.Cache(folder=str(tmp_path / "other"))})
    stages: list[str] = []
    second = prepare.prepare(elsewhere, listener=lambda progress: stages.append(progress.stage))
    assert set(stages) == {"reading"}
    assert second.fingerprint == first.fingerprint
    assert second.folder.parent == tmp_path / "other"
    assert not [path for path in (tmp_path / "other" / "prepared").iterdir() if path.is_dir()]


def test_a_cache_that_is_wiped_is_filled_again(near: Prepared, far: spec.Data, tmp_path: Path) -> None:
    prepared = prepare.prepare(far)
    living, wanted = batches(prepared), batches(near)
    shutil.rmtree(tmp_path / "cache")
    for step in range(1, living.steps, 5):
        np.testing.assert_array_equal(living.read(step, 0, 8).tokens_BL, wanted.read(step, 0, 8).tokens_BL)
    same_batches(near, prepared)
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    same_batches(near, Prepared.open(prepared.folder, far))


def test_the_backup_is_read_where_the_home_is_gone_which_is_then_written_again(
    near: Prepared, far: spec.Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    far = far.model_copy(update={"backup": str(tmp_path / "backup")})
    prepare.prepare(far)
    shutil.rmtree(tmp_path / "home")
    shutil.rmtree(tmp_path / "cache")
    stages: list[str] = []
    same_batches(near, prepare.prepare(far, listener=lambda progress: stages.append(progress.stage)))
    assert "tokenising" not in stages
    told = capsys.readouterr().err
    assert "there is nothing of that name; reading the backup" in told
    assert "is missing; writing it back from the backup" in told
    assert ": is there again\n" in told
    shutil.rmtree(tmp_path / "backup")
    shutil.rmtree(tmp_path / "cache")
    same_batches(near, prepare.prepare(far.model_copy(update={"backup": None}), listener=lambda progress: stages.append(progress.stage)))
    assert "tokenising" not in stages


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


@pytest.mark.parametrize("harm", [flip, cut_short, Path.unlink], ids=["flipped", "cut short", "gone"])
@pytest.mark.parametrize("name", ["train-0.npy.blocks", "tokenizer.json.blocks", "train-0.npy.index", "files.json"])
def test_what_the_home_has_damaged_is_read_from_the_backup_and_written_again(
    near: Prepared, far: spec.Data, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, harm: Callable[[Path], None]
) -> None:
    far = far.model_copy(update={"backup": str(tmp_path / "backup")})
    request = prepare.prepare(far).manifest.request
    stored = tmp_path / "home" / request / name
    wanted = stored.read_bytes()
    harm(stored)
    shutil.rmtree(tmp_path / "cache")
    same_batches(near, prepare.prepare(far))
    for thread in [each for each in threading.enumerate() if each.name == "plait-mend"]:
        thread.join(60)
    assert stored.read_bytes() == wanted
    assert "reading the backup" in capsys.readouterr().err


def test_all_that_is_kept_is_verified_and_each_home_mended_from_the_other(far: spec.Data, tmp_path: Path) -> None:
    far = far.model_copy(update={"backup": str(tmp_path / "backup")})
    request = prepare.prepare(far).manifest.request
    homes = [tmp_path / "home" / request, tmp_path / "backup" / request]
    flip(homes[0] / "train-0.npy.blocks")
    cut_short(homes[1] / "validation-0.npy.blocks")
    said = list(kept.verified(far, request))
    assert sum("is whole again" in line for line in said) == 2
    assert sum("is as it was written" in line for line in said) == 2
    for path in homes[0].iterdir():
        assert path.read_bytes() == (homes[1] / path.name).read_bytes()
    for home in homes:
        flip(home / "train-0.npy.blocks")
    with pytest.raises(StorageError, match=r"train-0.npy: is not what was written, and there is no sound copy of it"):
        list(kept.verified(far, request))


def test_a_folder_whose_bytes_differ_is_restored_when_it_is_verified(corpus: Path, tmp_path: Path) -> None:
    data = settings(corpus, tmp_path / "folder", backup=str(tmp_path / "backup"))
    prepared = prepare.prepare(data)
    flip(prepared.folder / "train-0.npy")
    said = list(kept.verified(data, prepared.manifest.request))
    assert said[0] == f"{prepared.folder}: was restored from the backup"
    Prepared.open(prepared.folder, data).verify()
    flip(prepared.folder / "train-0.npy")
    with pytest.raises(DataError, match="its checksum is not the manifest's"):
        list(kept.verified(data.model_copy(update={"backup": None}), prepared.manifest.request))


def test_a_home_that_may_not_be_written_to_is_left_alone(
    near: Prepared, far: spec.Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    far = far.model_copy(update={"backup": str(tmp_path / "backup")})
    prepare.prepare(far)
    shutil.rmtree(tmp_path / "home")
    (tmp_path / "home").write_text("a file stands where the folder was")
    same_batches(near, prepare.prepare(far))
    assert "is left as it is until the next start" in capsys.readouterr().err


@pytest.mark.slow
def test_without_a_backup_what_is_gone_is_prepared_anew(near: Prepared, far: spec.Data, tmp_path: Path) -> None:
    prepare.prepare(far)
    shutil.rmtree(tmp_path / "home")
    same_batches(near, prepare.prepare(far))


def test_a_folder_is_restored_from_its_backup(corpus: Path, near: Prepared, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = settings(corpus, tmp_path / "folder", backup=str(tmp_path / "backup"))
    folder = prepare.prepare(data).folder
    harms: list[Callable[[], object]] = [lambda: shutil.rmtree(folder), lambda: (folder / "train-0.npy").write_bytes(b"short")]
    for harm in harms:
        harm()
        restored = prepare.prepare(data)
        restored.verify()
        same_batches(near, restored)
    told = capsys.readouterr().err
    assert f"{folder}: is missing; restoring it from the backup" in told
    assert f"{folder}: is damaged; restoring it from the backup" in told


def test_a_cache_for_a_folder_is_refused(corpus: Path) -> None:
    table = {"data": {"corpus": [str(corpus)], "cache": {"gib": 1.0}}, "train": {"duration": "1 steps"}}
    with pytest.raises(RunFileError, match="cache is for token files in a store, and prepared = 'runs/prepared' is a folder"):
        spec.parse(table)
