"""Token files: what a folder says of itself, and what is told when it is wrong."""

import math
import shutil
from pathlib import Path

import numpy as np
import pytest

from plait import spec
from plait.data import prepare
from plait.data.batches import EvaluationBatches
from plait.data.tokens import Prepared
from plait.errors import DataError
from tests.data.test_prepare import documents, told


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> spec.Data:
    data = told(tmp_path_factory.mktemp("tokens"))
    prepare.prepare(data)
    return data


@pytest.fixture
def folder(data: spec.Data, tmp_path: Path) -> Path:
    """A copy to be spoilt."""
    return Path(shutil.copytree(prepare.prepare(data).folder, tmp_path / "copy"))


def test_a_folder_opens_without_its_corpus(folder: Path, data: spec.Data) -> None:
    prepared = Prepared.open(folder, data)
    prepared.verify()
    assert prepared.vocabulary == prepared.tokenizer().vocabulary
    split = prepared.split("train", 16)
    assert split.sources[0].tokens.dtype == np.uint16
    assert EvaluationBatches(split).size == math.ceil((prepared.tokens("train") - 1) / 16)


def test_weights_are_not_guessed(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"Prepared.open\(folder, run.data\)"):
        Prepared.open(folder).split("train", 16)


def test_the_unigram_entropy_is_that_of_the_counts(folder: Path, data: spec.Data) -> None:
    prepared = Prepared.open(folder, data)
    tokens = prepared.split("train", 16).sources[0].tokens
    shares = np.bincount(tokens)[np.bincount(tokens) > 0] / len(tokens)
    assert prepared.unigram_entropy() == pytest.approx(-(shares * np.log(shares)).sum())
    assert math.isfinite(prepared.unigram_entropy("validation"))


@pytest.mark.parametrize("name", ["train-0.npy", "tokenizer.json", "validation-0.starts.npy"])
def test_a_file_of_another_size_is_told_when_the_folder_is_opened(folder: Path, name: str) -> None:
    (folder / name).write_bytes((folder / name).read_bytes()[:-1])
    with pytest.raises(DataError, match=rf"{name}: is corrupt: it has \d+ bytes, .* remove .*copy and it is prepared anew"):
        Prepared.open(folder)
    (folder / name).unlink()
    with pytest.raises(DataError, match=rf"{name}: is corrupt: it is missing"):
        Prepared.open(folder)


def test_a_changed_byte_is_told_by_verify(folder: Path) -> None:
    content = bytearray((folder / "train-0.npy").read_bytes())
    content[-1] ^= 1
    (folder / "train-0.npy").write_bytes(content)
    with pytest.raises(DataError, match=r"train-0.npy: is corrupt: its checksum is not the manifest's; remove .*copy"):
        Prepared.open(folder).verify()


@pytest.mark.parametrize("content", [b"", b"{}", b'{"format": 99}'])
def test_a_broken_manifest_is_told(folder: Path, content: bytes) -> None:
    (folder / "manifest.json").write_bytes(content)
    with pytest.raises(DataError, match=r"manifest.json: is corrupt: it is no manifest of format 1"):
        Prepared.open(folder)


def test_a_folder_without_a_manifest_is_not_prepared(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no prepared data"):
        Prepared.open(tmp_path)


def test_a_corpus_shorter_than_one_sequence(data: spec.Data) -> None:
    with pytest.raises(DataError, match=r"shorter than one sequence: \d+ tokens to train on, and data.sequence = 100000 needs 100001"):
        prepare.prepare(data).split("train", 100_000)
    assert prepare.prepare(data).split("validation", 100_000).tokens <= 100_000


def test_an_empty_split_is_told_when_it_is_asked_for(tmp_path: Path) -> None:
    prepared = prepare.prepare(told(tmp_path, documents(80), split=spec.Splits(validation=0.0, test=0.05)))
    prepared.split("train", 16)
    with pytest.raises(
        DataError, match=r"the validation split is empty: the corpus has 80 documents.*data.separator.*data.split.validation"
    ):
        prepared.split("validation", 16)
    with pytest.raises(DataError, match="there is no split 'dev'"):
        prepared.split("dev", 16)
