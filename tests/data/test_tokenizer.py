"""Tokenizers: exact round trips, streams without half characters, and what each mistake is told."""

import base64
import sys
from pathlib import Path

import pytest
import sentencepiece
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.data import bpe, tokenizer
from plait.errors import DataError

TEXTS = ["The cat sat on the mat, then the dog sat on the cat. Grüße, 世界! 🙂🙂\n" * 3, "On and on the cat ran. It's 1234 o'clock.\n" * 3]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One tokenizer of each kind."""
    folder = tmp_path_factory.mktemp("tokenizers")
    (folder / "tokenizer.json").write_text(bpe.train(TEXTS, 280))
    (folder / "text.txt").write_text("\n".join(TEXTS * 5))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text.txt"), model_prefix=str(folder / "spm"), vocab_size=295, byte_fallback=True, minloglevel=2
    )
    ranks = [bytes([byte]) for byte in range(256)] + [b"th", b"the", b" c", b" ca"]
    (folder / "ranks.tiktoken").write_bytes(b"\n".join(base64.b64encode(token) + b" %d" % rank for rank, token in enumerate(ranks)))
    return folder


@pytest.fixture(scope="module", params=["tokenizer.json", "spm.model", "ranks.tiktoken"])
def kind(request: pytest.FixtureRequest, folder: Path) -> tokenizer.Tokenizer:
    return tokenizer.load(folder / request.param)


@pytest.fixture(scope="module")
def trained(folder: Path) -> tokenizer.Tokenizer:
    return tokenizer.load(folder / "tokenizer.json")


def test_every_kind_gives_its_text_back(kind: tokenizer.Tokenizer) -> None:
    texts = ["The cat ran.", "one", "Grüße, 世界! 🙂"]
    encoded = kind.encode(texts)
    assert [kind.decode(ids.tolist()) for ids in encoded] == texts
    assert all(int(ids.max()) < kind.vocabulary for ids in encoded)
    assert 0 <= kind.end_of_text < kind.vocabulary


def test_a_stream_shows_whole_characters_and_nothing_else(kind: tokenizer.Tokenizer) -> None:
    text = "The cat 🙂 said: Grüße, 世界! ok"
    ids = kind.encode([text])[0].tolist()
    stream = tokenizer.TextStream(kind)
    shown = [stream.push(token) for token in ids]
    assert not any("\ufffd" in some for some in shown)
    assert "".join(shown) + stream.flush() == text


@given(text=st.text(max_size=40))
@settings(max_examples=60, deadline=None)
def test_bytes_are_never_lost(trained: tokenizer.Tokenizer, text: str) -> None:
    assert trained.decode(trained.encode([text])[0].tolist()) == text


@given(ids=st.lists(st.integers(0, 279), max_size=30))
@settings(max_examples=60, deadline=None)
def test_a_stream_of_any_tokens_is_their_text(trained: tokenizer.Tokenizer, ids: list[int]) -> None:
    stream = tokenizer.TextStream(trained)
    assert "".join(stream.push(token) for token in ids) + stream.flush() == trained.decode(ids)


def test_the_name_of_a_special_token_in_a_text_is_text(kind: tokenizer.Tokenizer) -> None:
    ids = kind.encode(["a <|endoftext|> b"])[0].tolist()
    assert kind.end_of_text not in ids
    assert kind.decode(ids) == "a <|endoftext|> b"


def test_the_trained_size_counts_bytes_and_end_of_text(trained: tokenizer.Tokenizer) -> None:
    assert trained.vocabulary == 280
    assert trained.decode([trained.end_of_text]) == "<|endoftext|>"


def test_training_twice_gives_one_tokenizer() -> None:
    assert bpe.train(TEXTS, 270) == bpe.train(TEXTS, 270)


def test_a_size_that_the_corpus_cannot_give_is_refused_with_the_one_it_can() -> None:
    with pytest.raises(
        DataError, match=r"train = 5000 is more than the corpus can give: its training split yields (\d+) entries"
    ) as raised:
        bpe.train(TEXTS, 5000)
    possible = int(str(raised.value).split("yields ")[1].split()[0])
    assert tokenizers.Tokenizer.from_str(bpe.train(TEXTS, possible)).get_vocab_size() == possible


@pytest.mark.parametrize("name", ["<|end_of_text|>", "</s>", "<eos>"])
def test_a_foreign_end_of_text_is_found_by_its_usual_names(tmp_path: Path, name: str) -> None:
    engine = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    engine.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(DataError, match=r"has no end of text; looked for <\|endoftext\|>, <\|end_of_text\|>, </s>, <eos>"):
        tokenizer.load(tmp_path / "tokenizer.json")
    engine.add_special_tokens([name])
    engine.save(str(tmp_path / "tokenizer.json"))
    assert tokenizer.load(tmp_path / "tokenizer.json").end_of_text == 2


def test_a_pattern_changes_the_words_and_the_fingerprint(folder: Path) -> None:
    usual, single = tokenizer.load(folder / "ranks.tiktoken"), tokenizer.load(folder / "ranks.tiktoken", pattern=r"(?s).")
    assert len(usual.encode(["the"])[0]) == 1
    assert len(single.encode(["the"])[0]) == 3
    assert usual.fingerprint != single.fingerprint


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.json", None, "there is no such file"),
        ("a.bpe", b"", r"must be a tokenizer.json, a SentencePiece .model or a .tiktoken file"),
        ("a.json", b"{}", "is no tokenizer.json"),
        ("a.model", b"nothing", r"is no SentencePiece model \(a tiktoken file must end in .tiktoken\)"),
        ("a.tiktoken", b"AA== 0\nhello\n", r"a.tiktoken:2: is no line of a tiktoken file"),
        ("a.tiktoken", b"AA== 0\n", "lacks 255 of the 256 bytes"),
    ],
)
def test_a_file_that_is_no_tokenizer(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        tokenizer.load(tmp_path / name)


@pytest.mark.parametrize(("name", "extra"), [("spm.model", "sentencepiece"), ("ranks.tiktoken", "tiktoken")])
def test_an_extra_that_is_missing_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, extra: str) -> None:
    monkeypatch.setitem(sys.modules, extra, None)
    with pytest.raises(DataError, match=rf"pip install 'plait\[{extra}\]'"):
        tokenizer.load(folder / name)
