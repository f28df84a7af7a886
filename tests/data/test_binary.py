"""Token files of others: nanoGPT, llm.c and Megatron-LM, read as the same documents that text gives."""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plait import spec, store
from plait.data import prepare
from plait.data.splits import SPLITS
from plait.data.tokenizer import Tokenizer
from plait.data.tokens import Prepared
from plait.errors import DataError
from tests.data.test_prepare import documents, texts_of, told


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> spec.Data:
    data = told(tmp_path_factory.mktemp("ready"))
    prepare.prepare(data)
    return data


def nanogpt(path: Path, texts: list[np.ndarray], end: int) -> None:
    path.write_bytes(np.concatenate([part for ids in texts for part in (ids, [end])]).astype("<u2").tobytes())


def llm_c(path: Path, texts: list[np.ndarray], end: int) -> None:
    tokens = np.concatenate([part for ids in texts for part in ([end], ids)]).astype("<u2")
    header = np.zeros(256, "<i4")
    header[:3] = 20240520, 1, len(tokens)
    path.write_bytes(header.tobytes() + tokens.tobytes())


def megatron(path: Path, texts: list[np.ndarray], end: int) -> None:
    """Each document in two sequences, the second half first in the file, as merged files may have it."""
    parts = [half for ids in texts for half in (ids[: len(ids) // 2], np.append(ids[len(ids) // 2 :], end))]
    order = [index ^ 1 for index in range(len(parts))]
    places = np.zeros(len(parts), "<i8")
    places[order] = np.cumsum([0, *(4 * len(parts[index]) for index in order[:-1])])
    path.write_bytes(b"".join(parts[index].astype("<i4").tobytes() for index in order))
    head = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, 4, len(parts), len(texts) + 1)
    sizes = np.array([len(part) for part in parts], "<i4")
    path.with_suffix(".idx").write_bytes(head + sizes.tobytes() + places.tobytes() + np.arange(0, len(parts) + 1, 2, dtype="<i8").tobytes())


Writer = Callable[[Path, list[np.ndarray], int], None]


def asked(tmp_path: Path, ready: spec.Data, write: Writer, **settings: Any) -> spec.Data:
    tokenizer = prepare.prepare(ready).tokenizer()
    write(tmp_path / "a.bin", tokenizer.encode(documents(80)), tokenizer.end_of_text)
    file = spec.Tokenizer(file=str(prepare.prepare(ready).tokenizer_file))
    return told(tmp_path, tokenizer=file).model_copy(update={"corpus": [str(tmp_path / "a.bin")], **settings})


@pytest.mark.parametrize("write", [nanogpt, llm_c, megatron])
def test_token_files_give_the_documents_that_their_texts_gave(tmp_path: Path, ready: spec.Data, write: Writer) -> None:
    prepared = prepare.prepare(asked(tmp_path, ready, write))
    prepared.verify()
    assert sorted(text for split in SPLITS for text in texts_of(prepared, split)) == sorted(documents(80))
    assert prepared.bytes_per_token() == pytest.approx(prepare.prepare(ready).bytes_per_token())
    assert len(prepared.records()) == 80


def test_a_token_file_comes_from_elsewhere_with_its_index_and_its_tokenizer(tmp_path: Path, ready: spec.Data) -> None:
    here = asked(tmp_path, ready, megatron)
    home = store.at("memory://token-files")
    for name in ("a.bin", "a.idx"):
        home.write(name, (tmp_path / name).read_bytes())
    home.write("tokenizer.json", Path(str(here.tokenizer.file)).read_bytes())
    away = {"corpus": [home.url("*.bin")], "tokenizer": spec.Tokenizer(file=home.url("tokenizer.json"))}
    far = here.model_copy(update={**away, "prepared": str(tmp_path / "far")})
    assert prepare.prepare(far).fingerprint == prepare.prepare(here).fingerprint
    home.delete("a.idx")
    assert prepare.find(far) is None, "the index is gone with what it told"
    home.delete("tokenizer.json")
    with pytest.raises(DataError, match=r"data\.tokenizer\.file: memory://token-files/tokenizer\.json: there is no such file"):
        prepare.prepare(far)


def test_files_made_for_a_split_go_there(tmp_path: Path, ready: spec.Data) -> None:
    tokenizer: Tokenizer = prepare.prepare(ready).tokenizer()
    ids = tokenizer.encode(documents(80))
    nanogpt(tmp_path / "train.bin", ids[:60], tokenizer.end_of_text)
    nanogpt(tmp_path / "val.bin", ids[60:], tokenizer.end_of_text)
    corpus = [spec.Source(path=str(tmp_path / "train.bin"), split="train"), spec.Source(path=str(tmp_path / "val.bin"), split="validation")]
    data = asked(tmp_path, ready, nanogpt, corpus=corpus)
    prepared = prepare.prepare(data)
    assert texts_of(prepared, "train") == documents(80)[:60]
    assert [prepared.documents(split) for split in SPLITS] == [60, 20, 0]
    moved = data.model_copy(update={"corpus": [corpus[0], corpus[1].model_copy(update={"split": "test"})]})
    assert [prepare.prepare(moved).documents(split) for split in SPLITS] == [60, 0, 20]


@pytest.mark.slow
def test_tokens_and_text_are_mixed_as_sources(tmp_path: Path, ready: spec.Data) -> None:
    data = asked(tmp_path, ready, nanogpt)
    both = data.model_copy(update={"corpus": [*data.corpus, spec.Source(path=str(ready.corpus[0]), name="text")]})
    prepared: Prepared = prepare.prepare(both)
    assert texts_of(prepared, "train", 1) == texts_of(prepare.prepare(ready), "train")
    assert len(prepared.records()) == 160


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def other_tokenizer(path: Path) -> None:
    path.write_bytes(np.full(8, 5000, "<u2").tobytes())


def no_index(path: Path) -> None:
    path.with_suffix(".idx").write_bytes(b"TNTIDX\x00\x00" + bytes(40))


@pytest.mark.parametrize(
    ("write", "harm", "message"),
    [
        (nanogpt, cut_short, r"a.bin: has [\d,]+ bytes, which are no whole tokens of 2"),
        (llm_c, cut_short, r"a.bin: has [\d,]+ bytes, and [\d,]+ are told of; the file was cut short"),
        (megatron, cut_short, r"a.bin: has [\d,]+ bytes, and [\d,]+ are told of; the file was cut short"),
        (megatron, no_index, r"a.idx: is no index of Megatron-LM"),
        (nanogpt, other_tokenizer, r"a.bin, token 0: holds token 5,000, and data.tokenizer has 280"),
        (nanogpt, lambda path: path.write_bytes(b""), r"a.bin: is empty: it has no bytes"),
    ],
)
def test_a_broken_token_file_is_told(tmp_path: Path, ready: spec.Data, write: Writer, harm: Callable[[Path], None], message: str) -> None:
    data = asked(tmp_path, ready, write)
    harm(tmp_path / "a.bin")
    with pytest.raises(DataError, match=message):
        prepare.prepare(data)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tokenizer": spec.Tokenizer(train=280)}, "set data.tokenizer.file"),
        ({"clean": spec.Clean()}, "data.clean is for text"),
        ({"numeric": ["stars"]}, "data.numeric.0 is for text"),
    ],
)
def test_what_tokens_cannot_be_asked_for(tmp_path: Path, ready: spec.Data, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        prepare.prepare(asked(tmp_path, ready, nanogpt, **settings))


def test_temperature_evens_sources_out(tmp_path: Path) -> None:
    data = told(tmp_path)
    (tmp_path / "small.txt").write_text("\f".join(documents(20, seed=3)))
    both = data.model_copy(update={"corpus": [*data.corpus, spec.Source(path=str(tmp_path / "small.txt"), name="small")]})
    tokens = [part.tokens for part in prepare.prepare(both).manifest.splits["train"]]

    def shares(heat: float | None) -> list[float]:
        return prepare.prepare(both.model_copy(update={"temperature": heat})).split("train", 16).weights

    assert shares(None) == [1.0, 1.0]
    assert shares(1.0) == [pytest.approx(size / sum(tokens), abs=0.001) for size in tokens]
    assert shares(2.0) == [pytest.approx(size**0.5 / sum(each**0.5 for each in tokens), abs=0.001) for size in tokens]
    assert shares(1000.0) == [pytest.approx(0.5, abs=0.002)] * 2
