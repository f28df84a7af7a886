"""A corpus that URLs name: fetched once, again when it changed, and told of by URL."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from plait import spec, store
from plait.data import fetched, prepare, sources
from plait.errors import DataError, StorageError
from tests.store.park import Park

TEXTS = [f"{number}: " + " ".join(["the cat sat on the mat and ran away"] * 4) for number in range(40)]


@pytest.fixture
def home(request: pytest.FixtureRequest) -> store.Store:
    home = store.at(f"memory://{request.node.name}")
    for number in range(4):
        rows = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS[number::4])
        home.write(f"a/b{number}/part.jsonl", rows.encode())
    return home


def settings(tmp_path: Path, *corpus: Any, **more: Any) -> spec.Data:
    return spec.Data(
        corpus=list(corpus), tokenizer=spec.Tokenizer(train=266), prepared=str(tmp_path / "prepared"), sequence=16, workers=1, **more
    )


def test_files_of_a_glob_are_a_corpus(home: store.Store, tmp_path: Path) -> None:
    far = prepare.prepare(settings(tmp_path, home.url("a/b[0-2]/*.jsonl"), home.url("a/b3/part.jsonl")))
    (tmp_path / "near").mkdir()
    for number in range(4):
        (tmp_path / "near" / f"{number}.jsonl").write_bytes(home.read(f"a/b{number}/part.jsonl"))
    near = prepare.prepare(settings(tmp_path / "other", str(tmp_path / "near" / "*.jsonl")))
    assert far.fingerprint == near.fingerprint
    assert prepare.find(settings(tmp_path, home.url("a/**/*.jsonl"))).fingerprint == near.fingerprint  # type: ignore[union-attr]


def test_what_changed_is_fetched_again_and_what_is_gone_is_left_out(
    home: store.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = settings(tmp_path, home.url("a/*/part.jsonl"))
    fetched.here(data, tmp_path)
    brought: list[str] = []
    download = store.Store.download
    monkeypatch.setattr(store.Store, "download", lambda self, name, path: (brought.append(name), download(self, name, path))[1])
    fetched.here(data, tmp_path)
    assert brought == []
    home.write("a/b1/part.jsonl", b'{"text": "another"}\n')
    home.delete("a/b2/part.jsonl")
    (pattern,) = fetched.here(data, tmp_path).corpus
    assert brought == ["b1/part.jsonl"]
    assert [path.parent.name for path in sorted(tmp_path.glob(str(Path(str(pattern)).relative_to(tmp_path))))] == ["b0", "b1", "b3"]


def test_what_is_prepared_is_let_go_beyond_its_bound_and_fetched_again_when_it_is_read_again(home: store.Store, tmp_path: Path) -> None:
    def taken() -> int:
        return sum(path.stat().st_blocks > 0 for path in tmp_path.glob("prepared/fetched/memory/**/*.jsonl"))

    one = len(home.read("a/b0/part.jsonl")) / 2**30
    data = settings(tmp_path, home.url("a/**/*.jsonl"), fetched_gib=1.5 * one)
    prepared = prepare.prepare(data)
    assert taken() == 1
    assert prepare.prepare(data).fingerprint == prepared.fingerprint
    assert taken() == 1, "what is prepared is known without its text"
    other = data.model_copy(update={"tokenizer": spec.Tokenizer(train=270)})
    alone = settings(tmp_path / "alone", home.url("a/**/*.jsonl")).model_copy(update={"tokenizer": spec.Tokenizer(train=270)})
    assert prepare.prepare(other).fingerprint == prepare.prepare(alone).fingerprint
    assert taken() == 1
    (tmp_path / "prepared" / "hashes.json").unlink()
    assert prepare.prepare(data).fingerprint == prepared.fingerprint


def test_a_mistake_is_told_by_its_url(home: store.Store, tmp_path: Path) -> None:
    home.write("broken.jsonl", b'{"text": "fine"}\nnot json\n')
    with pytest.raises(DataError, match=rf"^{home.url('broken.jsonl')}:2: is not JSON"):
        prepare.prepare(settings(tmp_path, home.url("broken.jsonl")))
    with pytest.raises(DataError, match=f"data.corpus: {home.url()}/none/x.txt: there is no such file"):
        prepare.prepare(settings(tmp_path, home.url("none/x.txt")))
    with pytest.raises(DataError, match="no file matches it"):
        prepare.prepare(settings(tmp_path, home.url("a/*.zip")))


@pytest.fixture
def articles(park: Park) -> str:
    """A collection of articles in two languages."""
    import pymongo

    url = park("mongodb").url
    with pymongo.MongoClient(url.rpartition("/")[0]) as client:
        collection = client["plait"]["articles"]
        collection.delete_many({})
        rows = [{"_id": number, "body": text, "language": "en" if number % 2 else "zh", "more": b"\0"} for number, text in enumerate(TEXTS)]
        collection.insert_many(rows)
    return f"{url}/articles"


def test_a_collection_is_a_corpus_filtered_by_the_server(articles: str, tmp_path: Path) -> None:
    (path,) = fetched.here(settings(tmp_path, f'{articles}?filter={{"language":"en"}}', field="body"), tmp_path).corpus
    rows = [json.loads(line) for line in Path(str(path)).read_text().splitlines()]
    assert [row["body"] for row in rows] == TEXTS[1::2]
    assert set(rows[0]) == {"body"}
    whole, english = (
        prepare.prepare(settings(tmp_path, url, field="body")) for url in (articles, f'{articles}?filter={{"language":"en"}}')
    )
    assert whole.folder != english.folder
    assert sum(english.documents(split) for split in ("train", "validation", "test")) == 20
    with pytest.raises(StorageError, match=r"articles\?filter=.*has no rows that fit the filter"):
        prepare.prepare(settings(tmp_path, f'{articles}?filter={{"language":"fr"}}', field="body"))
    with pytest.raises(StorageError, match="filter is not JSON"):
        prepare.prepare(settings(tmp_path, f"{articles}?filter={{language", field="body"))
    with pytest.raises(StorageError, match="'more' holds bytes, which is neither text nor a number"):
        prepare.prepare(settings(tmp_path, articles, field="more"))


def test_a_collection_is_asked_for_what_its_documents_are_made_of(park: Park, tmp_path: Path) -> None:
    import pymongo

    url = park("mongodb").url
    said = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ann."}]
    row = {"messages": said, "text": "Fine.", "other": "Not so.", "label": "no", "translation": {"en": "Save", "de": "Speichern"}}
    with pymongo.MongoClient(url.rpartition("/")[0]) as client:
        client["plait"]["talks"].delete_many({})
        client["plait"]["talks"].insert_one({"_id": 1, **row})
    sides = spec.Source(path=f"{url}/talks", sides=["translation.en", "translation.de"])
    asked = [
        (settings(tmp_path, f"{url}/talks", chat=spec.Chat()), said),
        (settings(tmp_path, f"{url}/talks", objective=spec.Objective(kind="classify", pair="other")), ["Fine.", "Not so."]),
        (settings(tmp_path, sides, objective=spec.Objective(kind="translate")), ["Save", "Speichern"]),
    ]
    for data, wanted in asked:
        here = fetched.here(data, tmp_path)
        (file,) = sources.every_file(sources.resolve(here))
        (document,) = sources.documents(file, here)
        assert json.loads(document.text) == wanted


def test_a_table_is_a_corpus_page_by_page(park: Park, tmp_path: Path) -> None:
    from plait.store import cassandra

    url = park("cassandra").url
    opened = cassandra.session(store.parse(url), "plait")
    opened.execute("CREATE TABLE IF NOT EXISTS articles (id int, body text, language text, PRIMARY KEY (id))")
    insert = opened.prepare("INSERT INTO articles (id, body, language) VALUES (?, ?, ?)")
    for number in range(1203):
        opened.execute(insert, (number, f"text {number}", "en" if number % 3 else "zh"))
    opened.cluster.shutdown()
    for query, count in (("", 1203), ("?where=language='zh'", 401)):
        (path,) = fetched.here(settings(tmp_path, f"{url}/articles{query}", field="body"), tmp_path).corpus
        assert len(Path(str(path)).read_text().splitlines()) == count
    with pytest.raises(StorageError, match="Undefined column name absent"):
        fetched.here(settings(tmp_path, f"{url}/articles", field="absent"), tmp_path)
    with pytest.raises(StorageError, match="unconfigured table nothing"):
        fetched.here(settings(tmp_path, f"{url}/nothing", field="body"), tmp_path)
