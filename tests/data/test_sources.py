"""Sources: what each format yields, and what each mistake is told."""

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from plait import spec
from plait.data import sources, streams
from plait.errors import DataError


def data(*corpus: Any, **settings: Any) -> spec.Data:
    return spec.Data(corpus=list(corpus), **settings)


def read(path: Path | str, **settings: Any) -> list[str]:
    told = data(str(path), **settings)
    return [document.text for file in sources.every_file(sources.resolve(told)) for document in sources.documents(file, told)]


def write(path: Path, content: bytes) -> Path:
    packed = {".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}.get(path.suffix, bytes)
    path.write_bytes(packed(content))
    return path


@pytest.mark.parametrize("packing", ["", ".gz", ".zst"])
def test_plain_text_is_cut_at_the_separator(tmp_path: Path, packing: str) -> None:
    path = write(tmp_path / f"a.txt{packing}", "\ufeff\f\nOne,\n\nmore\n\f\n Zwei \u00fc\n\f \n\f".encode())
    assert read(path) == ["One,\n\nmore", " Zwei ü"]
    assert read(path, separator="\n\n") == ["\f\nOne,", "more\n\f\n Zwei ü\n\f \n\f"]


@pytest.mark.parametrize("packing", ["", ".gz", ".zst"])
def test_jsonl_gives_the_named_field(tmp_path: Path, packing: str) -> None:
    path = write(tmp_path / f"a.jsonl{packing}", b'{"text": "one\\n", "n": 1}\n\n{"text": " "}\n{"text": "two"}')
    assert read(path) == ["one\n", "two"]


@pytest.mark.parametrize("packing", ["", ".gz", ".zst"])
def test_parquet_gives_the_named_column(tmp_path: Path, packing: str) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"n": [1, 2, 3], "body": ["one", "", "two"]}), tmp_path / "a", row_group_size=2)
    path = write(tmp_path / f"a.parquet{packing}", (tmp_path / "a").read_bytes())
    assert read(path, field="body") == ["one", "two"]


def test_files_come_sorted_and_once(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        write(tmp_path / f"{name}.txt", name.encode())
    assert read(tmp_path / "*.txt") == ["a", "b", "c"]
    told = data(str(tmp_path / "c.txt"), str(tmp_path / "*.txt"))
    assert [file.path.name for file in sources.resolve(told)[0].files] == ["c.txt", "a.txt", "b.txt"]


def test_plain_paths_are_one_source_and_tables_one_each(tmp_path: Path) -> None:
    path = str(write(tmp_path / "a.txt", b"a"))
    table = spec.Source(path=path, name="second", weight=3.0, format="jsonl")
    found = sources.resolve(data(path, table, spec.Source(path=path)))
    assert [(source.name, source.weight, source.files[0].format) for source in found] == [
        ("corpus", 1.0, "text"),
        ("second", 3.0, "jsonl"),
        (path, 1.0, "text"),
    ]
    with pytest.raises(DataError, match="two sources bear one name"):
        sources.resolve(data(table, table))


@given(pieces=st.lists(st.binary(max_size=12), min_size=1), separator=st.binary(min_size=1, max_size=3), block=st.integers(1, 5))
@settings(deadline=None)
def test_cutting_a_stream_is_cutting_the_whole(pieces: list[bytes], separator: bytes, block: int) -> None:
    whole = separator.join(pieces)
    cut = list(streams.cut((whole[at : at + block] for at in range(0, len(whole), block)), separator))
    *expected, last = whole.split(separator)
    assert [piece for _, piece in cut] == [*expected, *([last] if last else [])]
    assert all(whole[offset : offset + len(piece)] == piece for offset, piece in cut)


def test_streams_that_follow_each_other_are_one(tmp_path: Path) -> None:
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"one ") + gzip.compress(b"two"))
    (tmp_path / "a.txt.zst").write_bytes(zstandard.compress(b"one ") + zstandard.compress(b"two"))
    assert read(tmp_path / "a.txt.*") == ["one two", "one two"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "one"}\n{"text": \n', r"a.jsonl:2: is not JSON"),
        ("a.jsonl", b'{"text": "one"}\n\n["two"]\n', r"a.jsonl:3: is not a JSON object"),
        ("a.jsonl", b'{"body": "one", "n": 1}\n', r"a.jsonl:1: has no 'text'; its keys are 'body', 'n'; set data.field"),
        ("a.jsonl", b'{"text": null}\n', r"a.jsonl:1: 'text' is NoneType, not text"),
        ("a.jsonl", b'{"text": "\\ud800"}\n', r"a.jsonl:1: 'text' holds half of a surrogate pair"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n', r"a.jsonl: is not UTF-8 at byte 24 \(0xff\)"),
        ("a.txt", b"abc\f\nde\xe4f", r"a.txt: is not UTF-8 at byte 7 \(0xe4\)"),
        ("a.txt.gz", b"abc\f\nde\xe4f", r"a.txt.gz: is not UTF-8 at byte 7 of the decompressed text"),
        ("a.parquet", b"PAR1 nothing", r"a.parquet: is no Parquet file or a broken one"),
    ],
)
def test_broken_content_is_told_by_its_place(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(write(tmp_path / name, content))


@pytest.mark.parametrize("packing", [".gz", ".zst"])
def test_a_broken_compressed_stream_is_never_a_shorter_corpus(tmp_path: Path, packing: str) -> None:
    path = write(tmp_path / f"a.txt{packing}", json.dumps(list(range(1000))).encode())
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    with pytest.raises(DataError, match="ends in the middle"):
        read(path)
    path.write_bytes(b"not packed at all")
    with pytest.raises(DataError, match=rf"a.txt{packing}: is no {packing[1:]} stream"):
        read(path)


def test_parquet_without_the_field_names_the_columns(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"body": ["one"], "n": [1]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"has no column 'text'; its columns are body, n; set data.field"):
        read(tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a.parquet, row 1: 'n' is int, not text"):
        read(tmp_path / "a.parquet", field="n")


def test_parquet_without_pyarrow_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"pip install 'plait\[parquet\]'"):
        read(write(tmp_path / "a.parquet", b"PAR1"))


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("none.txt", r"none.txt: there is no such file"),
        ("*.none", r"\*.none: no file matches it"),
        (".", r"is a folder; name its files"),
    ],
)
def test_a_path_that_names_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=message):
        read(pattern)


def save(folder: Path, *shards: list[str], **state: object) -> None:
    """As datasets.save_to_disk does: Arrow streams, and what tells their order."""
    import pyarrow as pa

    folder.mkdir(parents=True)
    names = [f"data-{number:05}-of-{len(shards):05}.arrow" for number in range(len(shards))]
    for name, texts in zip(names, shards, strict=True):
        table = pa.table({"label": list(range(len(texts))), "text": texts})
        with pa.ipc.new_stream(folder / name, table.schema) as stream:
            stream.write_table(table, max_chunksize=3)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names], **state}))


def saved_dict(folder: Path, **splits: list[str]) -> None:
    for name, texts in splits.items():
        save(folder / name, texts)
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": list(splits)}))


def documents_of(data: spec.Data) -> list[tuple[str, str | None]]:
    return [
        (document.text, file.split)
        for source in sources.resolve(data)
        for file in source.files
        for document in sources.documents(file, data)
    ]


def test_a_folder_that_datasets_saved_is_a_corpus(tmp_path: Path) -> None:
    texts = [f"text {number}" for number in range(12)]
    save(tmp_path / "one", texts[:7], texts[7:])
    assert documents_of(spec.Data(corpus=[str(tmp_path / "one")])) == [(text, None) for text in texts]
    saved_dict(tmp_path / "lone", train=texts)
    assert documents_of(spec.Data(corpus=[str(tmp_path / "lone")])) == [(text, None) for text in texts]
    saved_dict(tmp_path / "all", train=texts[:8], validation=texts[8:10], test=texts[10:])
    told = [(text, split) for split, part in {"train": texts[:8], "validation": texts[8:10], "test": texts[10:]}.items() for text in part]
    assert documents_of(spec.Data(corpus=[str(tmp_path / "all")])) == told
    assert documents_of(spec.Data(corpus=[str(tmp_path / "one" / "data-00001-of-00002.arrow")])) == [(text, None) for text in texts[7:]]


@pytest.mark.slow
def test_what_datasets_itself_saved_is_read(tmp_path: Path) -> None:
    """The folders above are made by hand; these by the library, in one file and in several, with rows chosen, and as a DatasetDict."""
    datasets = pytest.importorskip("datasets")
    texts = [f"text {number} 天氣" for number in range(50)]
    whole = datasets.Dataset.from_dict({"label": list(range(50)), "text": texts})
    whole.save_to_disk(tmp_path / "one")
    whole.save_to_disk(tmp_path / "three", num_shards=3)
    whole.filter(lambda row: row["label"] % 2).save_to_disk(tmp_path / "chosen")
    for name, wanted in {"one": texts, "three": texts, "chosen": texts[1::2]}.items():
        assert documents_of(spec.Data(corpus=[str(tmp_path / name)])) == [(text, None) for text in wanted]
    assert len(list((tmp_path / "three").glob("*.arrow"))) == 3
    whole.train_test_split(0.2, shuffle=False).save_to_disk(tmp_path / "dict")
    told = [(text, "train" if number < 40 else "test") for number, text in enumerate(texts)]
    assert documents_of(spec.Data(corpus=[str(tmp_path / "dict")])) == told
    turns = [{"role": "user", "content": "What is a cat?"}, {"role": "assistant", "content": "An animal."}]
    datasets.Dataset.from_list([{"messages": turns}] * 3).save_to_disk(tmp_path / "talk")
    talk = documents_of(spec.Data(corpus=[str(tmp_path / "talk")], chat=spec.Chat()))
    assert [json.loads(document) for document, _ in talk] == [turns] * 3


def test_a_folder_that_datasets_saved_and_that_is_not_whole_is_told_so(tmp_path: Path) -> None:
    saved_dict(tmp_path / "strange", train=["a"], unsupervised=["b"])
    save(tmp_path / "chosen", ["a"], _indices_data_files=[{"filename": "indices.arrow"}])
    save(tmp_path / "lacking", ["a"], ["b"])
    (tmp_path / "lacking" / "data-00001-of-00002.arrow").unlink()
    save(tmp_path / "broken", ["a" * 4000])
    path = tmp_path / "broken" / "data-00000-of-00001.arrow"
    path.write_bytes(path.read_bytes()[:2000])
    for folder, message in {
        "strange": "holds a split 'unsupervised', and those known here are train, validation, test",
        "chosen": r"call flatten_indices\(\) and save_to_disk\(\) again",
        "lacking": "data-00001-of-00002.arrow: is missing, and state.json beside it names it",
        "broken": "is no Arrow file or a broken one",
    }.items():
        with pytest.raises(DataError, match=message):
            documents_of(spec.Data(corpus=[str(tmp_path / folder)]))
    save(tmp_path / "other", ["a"])
    with pytest.raises(DataError, match=r"has no column 'body'; its columns are label, text; set data\.field"):
        documents_of(spec.Data(corpus=[str(tmp_path / "other")], field="body"))
