"""The Hugging Face hub is read: its client against a double of the hub's HTTP interface."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from plait import spec, store
from plait.data import prepare
from plait.errors import NotStored, StorageError
from tests.store import table
from tests.store.park import Park

URL = "hf://datasets/plait/store"
CONTENT = bytes(range(256)) * 40


@pytest.fixture
def repository(park: Park, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a data set, read with a token."""
    pytest.importorskip("huggingface_hub")
    server = park("hf")
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    for name in ("store", "private-notes", "gated"):
        (server.folder / "plait" / name / "data").mkdir(parents=True, exist_ok=True)
        (server.folder / "plait" / name / "x").write_bytes(b"content")
    (server.folder / "plait" / "store" / "data" / "a b.bin").write_bytes(CONTENT)
    return server.folder / "plait" / "store"


@pytest.mark.usefixtures("repository")
def test_a_data_set_is_read_and_never_written() -> None:
    for url in (URL, f"{URL}@main"):
        home = store.at(url)
        assert home.read("data/a b.bin") == CONTENT
        assert home.read("data/a b.bin", 3, 700) == CONTENT[3:700]
        assert home.read("data/a b.bin", 10_000) == CONTENT[10_000:]
        found = home.stat("data/a b.bin")
        assert found is not None
        assert found.bytes == len(CONTENT)
        assert [(entry.name, entry.bytes) for entry in home.entries("data/")] == [("data/a b.bin", len(CONTENT))]
        assert home.stat("absent") is None
        with pytest.raises(NotStored, match=r"there is nothing of that name"):
            home.read("absent")
    for do in (lambda: home.write("x", b""), lambda: home.create("x", b""), lambda: home.delete("x")):
        with pytest.raises(StorageError, match="the hub is read here, not written; use hf upload"):
            do()


@pytest.mark.usefixtures("repository")
def test_what_one_may_not_see_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    assert store.at("hf://datasets/plait/private-notes").read("x") == b"content"
    with pytest.raises(StorageError, match="permission denied"):
        store.at("hf://datasets/plait/gated").read("x")
    monkeypatch.setenv("HF_TOKEN", "hf_another")
    with pytest.raises(StorageError, match="the credentials were refused; they are looked for in HF_TOKEN") as refused:
        store.at(URL).read("data/a b.bin")
    assert "hf_another" not in str(refused.value)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(StorageError, match="there is no repository"):
        store.at("hf://datasets/plait/private-notes").read("x")


def test_a_data_set_is_a_corpus_and_what_changed_there_is_fetched_again(repository: Path, tmp_path: Path) -> None:
    for number in range(3):
        rows = [{"text": f"{number}.{row}: " + "the cat sat on the mat " * 8} for row in range(10)]
        (repository / "data" / f"part-{number}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def documents() -> int:
        data = spec.Data(
            corpus=[f"{URL}/data/*.jsonl"], tokenizer=spec.Tokenizer(train=260), prepared=str(tmp_path), sequence=16, workers=1
        )
        prepared = prepare.prepare(data)
        return sum(prepared.documents(split) for split in ("train", "validation", "test"))

    assert documents() == 30
    (repository / "data" / "part-1.jsonl").write_text(json.dumps({"text": "another text " * 8}) + "\n")
    (repository / "data" / "part-2.jsonl").unlink()
    assert documents() == 11


def test_the_page_tells_what_was_seen(repository: Path) -> None:
    home = store.at(URL)
    tried: dict[str, Callable[[], object]] = {
        "write": lambda: home.write("y", b""),
        "read": lambda: home.read("x") == b"content",
        "range": lambda: home.read("x", 1, 3) == b"on",
        "stat": lambda: home.stat("x") is not None,
        "list": lambda: "x" in [entry.name for entry in home.entries()],
        "create": lambda: home.create("y", b""),
        "upload": lambda: home.upload(repository / "x", "y"),
        "delete": lambda: home.delete("x"),
    }

    def seen(do: Callable[[], object]) -> str:
        try:
            return "no" if do() is False else "yes"
        except StorageError:
            return "no"

    assert table.read()["hf"] == ["hub double of tests/store/doubles", *(seen(tried[operation]) for operation in table.OPERATIONS)]
