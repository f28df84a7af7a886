"""Input that cannot be used: told with its place, or counted, or laid aside; never silently shorter."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from plait import spec
from plait.data import prepare, sources
from plait.data.broken import QUARANTINE, Unusable
from plait.data.tokens import Prepared
from plait.errors import DataError

GOOD = "".join(
    json.dumps({"text": f"{number}: the cat sat on the mat and then the dog ran away over the tree again"}) + "\n" for number in range(60)
)


def told(tmp_path: Path, *paths: Path, **settings: Any) -> spec.Data:
    usual = {"tokenizer": spec.Tokenizer(train=280), "prepared": str(tmp_path / "prepared"), "workers": 1, "sequence": 16}
    return spec.Data(**{**usual, "corpus": [str(path) for path in paths], **settings})


def quarantined(prepared: Prepared) -> list[dict[str, str]]:
    return [json.loads(line) for line in (prepared.folder / QUARANTINE).read_text().splitlines()]


def broken_files(folder: Path) -> list[Path]:
    """One good file, and one of each kind that breaks."""
    lines = GOOD.encode().splitlines(keepends=True)
    mixed = b"".join(
        [*lines[:2], b"{not json\n", b'{"text": "caf\xe9"}\n', b'{"body": "no text"}\n', b'{"text": "\\u0000\\u0007"}\n', *lines[2:]]
    )
    (folder / "a.jsonl").write_bytes(mixed)
    (folder / "b.jsonl").write_bytes(json.dumps({"text": "x" * 10_000_000}).encode() + b"\n" + lines[0])
    (folder / "c.txt").write_bytes(b"")
    (folder / "d.jsonl.gz").write_bytes(gzip.compress(GOOD.encode())[:-20])
    pyarrow.parquet.write_table(pyarrow.table({"body": ["one"]}), folder / "e.parquet")
    return sorted(folder.glob("*.*"))


KINDS = {
    "not JSON": "a.jsonl:3: is not JSON: ",
    "not UTF-8": "a.jsonl: is not UTF-8 at byte ",
    "no field": "a.jsonl:5: has no 'text'; its keys are 'body'",
    "control characters": "a.jsonl:6: holds control characters alone",
    "too large": "b.jsonl:1: is larger than data.largest = 1,000,000 bytes",
    "empty file": "c.txt: is empty: it has no bytes",
    "broken stream": "d.jsonl.gz: the gz stream ends in the middle",
}


def test_quarantine_goes_on_and_lays_each_aside_with_place_and_reason(tmp_path: Path) -> None:
    prepared = prepare.prepare(told(tmp_path, *broken_files(tmp_path), broken="quarantine", largest=1_000_000))
    lineage = prepared.manifest.lineage
    assert lineage is not None
    assert lineage.broken == {**dict.fromkeys(KINDS, 1), "no field": 2}
    for kind, message in KINDS.items():
        assert message in lineage.first_broken[kind]
    aside = quarantined(prepared)
    assert [line["kind"] for line in aside] == [
        "not JSON", "not UTF-8", "no field", "control characters", "too large", "empty file", "broken stream", "no field",
    ]  # fmt: skip
    assert aside[1]["raw"] == '{"text": "caf\\xe9"}'
    assert len(aside[4]["raw"]) <= 1 << 16
    assert sum(prepared.documents(split) for split in ("train", "validation", "test")) >= 61
    prepared.verify()


@pytest.mark.slow
def test_skipping_counts_and_writes_no_file(tmp_path: Path) -> None:
    prepared = prepare.prepare(told(tmp_path, *broken_files(tmp_path), broken="skip", largest=1_000_000))
    lineage = prepared.manifest.lineage
    assert lineage is not None
    assert sum(lineage.broken.values()) == 8
    assert not (prepared.folder / QUARANTINE).exists()


@pytest.mark.parametrize("name", ["a.jsonl", "b.jsonl", "c.txt", "d.jsonl.gz", "e.parquet"])
def test_failing_stops_at_the_first_and_prepares_nothing(tmp_path: Path, name: str) -> None:
    (path,) = (path for path in broken_files(tmp_path) if path.name == name)
    data = told(tmp_path, path, largest=1_000_000)
    with pytest.raises(DataError, match=name):
        prepare.prepare(data)
    assert prepare.find(data) is None


def test_a_line_of_10_mb_is_a_document_where_no_bound_is_set(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(GOOD + json.dumps({"text": "the cat sat " * 870_000}) + "\n")
    data = told(tmp_path, path)
    (file,) = sources.every_file(sources.resolve(data))
    assert [len(document.text) for document in sources.documents(file, data)][-1] == 12 * 870_000


def test_a_field_of_another_kind_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "t", "price": "dear"}\n')
    data = told(tmp_path, path, numeric=["price"])
    (file,) = sources.every_file(sources.resolve(data))
    with pytest.raises(Unusable, match=r"a.jsonl:1: 'price' is 'dear', and data.numeric.0 asks for a number"):
        list(sources.documents(file, data))


def test_a_row_of_a_table_is_laid_aside_with_its_place_and_content(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"text": ["fine", "\0\7"]}), tmp_path / "a.parquet")
    rows = [{"prompt": "Who?", "answer": "Ann."}, {"prompt": "Who?", "answer": ""}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "b.parquet")
    found: list[Unusable] = []
    for name, chat in (("a", None), ("b", spec.Chat())):
        data = told(tmp_path, tmp_path / f"{name}.parquet", chat=chat)
        (file,) = sources.every_file(sources.resolve(data))
        assert len(list(sources.documents(file, data, on_broken=found.append))) == 1
    assert [each.place for each in found] == [f"{tmp_path}/a.parquet, row 2", f"{tmp_path}/b.parquet, row 2: message 2"]
    assert [each.raw for each in found] == [b"\0\7", json.dumps(rows[1]).encode()]
