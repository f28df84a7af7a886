"""Splits: by content, by a field, in exact shares of labels; and what is nearly the same stays together."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plait import spec
from plait.data import prepare, splits
from plait.data.tokens import Prepared
from plait.errors import DataError, RunFileError
from tests.data.test_prepare import documents


def told(tmp_path: Path, rows: list[dict[str, Any]], **settings: Any) -> spec.Data:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    usual = {"corpus": [str(path)], "tokenizer": spec.Tokenizer(train=280), "prepared": str(tmp_path / "prepared"), "workers": 1}
    return spec.Data(**{**usual, "sequence": 16, **settings})


def homes(prepared: Prepared) -> np.ndarray:
    return np.array(prepared.records()["split"])


def test_a_field_keeps_documents_of_one_value_together(tmp_path: Path) -> None:
    rows = [{"text": text, "author": f"a{number % 12}"} for number, text in enumerate(documents(120))]
    prepared = prepare.prepare(told(tmp_path, rows, split=spec.Splits(by="author", validation=0.3, test=0.2)))
    by_author = [set(homes(prepared)[author::12].tolist()) for author in range(12)]
    assert all(len(of_one) == 1 for of_one in by_author)
    assert len(set.union(*by_author)) == 3


def test_later_documents_are_held_back(tmp_path: Path) -> None:
    rows = [{"text": text, "date": f"2024-{1 + number % 12:02}-03"} for number, text in enumerate(documents(60))]
    split = spec.Splits(by="date", validation_from="2024-10-01", test_from="2024-12-01")
    assert homes(prepare.prepare(told(tmp_path, rows, split=split))).tolist() == [
        0 if n % 12 < 9 else 1 if n % 12 < 11 else 2 for n in range(60)
    ]


@pytest.mark.slow
def test_a_source_is_held_back_by_its_name(tmp_path: Path) -> None:
    data = told(tmp_path, [{"text": text} for text in documents(60)], split=spec.Splits(by="source", test_values=["new"]))
    other = tmp_path / "new.txt"
    other.write_text("\f".join(documents(10, seed=2)))
    prepared = prepare.prepare(data.model_copy(update={"corpus": [*data.corpus, spec.Source(path=str(other), name="new")]}))
    assert homes(prepared).tolist() == [0] * 60 + [2] * 10


def test_each_label_has_its_shares_exactly(tmp_path: Path) -> None:
    rows = [{"text": text, "label": "rare" if number % 6 == 0 else "common"} for number, text in enumerate(documents(120))]
    prepared = prepare.prepare(told(tmp_path, rows, split=spec.Splits(stratify="label", validation=0.2, test=0.1)))
    rare = np.arange(120) % 6 == 0
    assert np.bincount(homes(prepared)[rare]).tolist() == [14, 4, 2]
    assert np.bincount(homes(prepared)[~rare]).tolist() == [70, 20, 10]


@given(labels=st.lists(st.integers(0, 3), min_size=1, max_size=200), validation=st.floats(0, 0.4), test=st.floats(0, 0.5))
def test_shares_of_labels_are_right_to_a_document(labels: list[int], validation: float, test: float) -> None:
    told = spec.Splits(validation=validation, test=test)
    hashes = np.random.default_rng(1).integers(0, 2**63, len(labels)).astype(np.uint64)
    found = splits.stratified(hashes, np.array(labels, dtype=np.uint64), told)
    for label in set(labels):
        mine = found[np.array(labels) == label]
        assert abs((mine == 1).sum() - validation * len(mine)) <= 0.5 + 1e-9
        assert abs((mine == 2).sum() - test * len(mine)) <= 1 + 1e-9


def test_what_is_nearly_the_same_is_in_one_split(tmp_path: Path) -> None:
    texts = [f"{text} {word}" for text in documents(60) for word in ("quickly", "slowly", "home")]
    near = homes(
        prepare.prepare(told(tmp_path, [{"text": text} for text in texts], split=spec.Splits(together=0.7, validation=0.2, test=0.2)))
    )
    assert all(len(set(near[first : first + 3].tolist())) == 1 for first in range(0, 180, 3))
    assert len(set(near.tolist())) == 3
    apart = homes(prepare.prepare(told(tmp_path, [{"text": text} for text in texts], split=spec.Splits(validation=0.2, test=0.2))))
    assert any(len(set(apart[first : first + 3].tolist())) > 1 for first in range(0, 180, 3))


def test_numeric_fields_are_scaled_by_the_training_split(tmp_path: Path) -> None:
    rows = [{"text": text, "stars": number % 5 + 0.5, "same": 3} for number, text in enumerate(documents(80))]
    prepared = prepare.prepare(told(tmp_path, rows, numeric=["stars", "same"], split=spec.Splits(validation=0.2, test=0.2)))
    stars = np.array([row["stars"] for row in rows])
    train = stars[homes(prepared) == 0]
    scale, same = prepared.manifest.numeric
    assert (scale.field, scale.mean, scale.deviation) == ("stars", pytest.approx(train.mean()), pytest.approx(train.std()))
    assert (same.mean, same.deviation) == (3.0, 1.0)
    for number, split in enumerate(splits.SPLITS):
        expected = (stars[homes(prepared) == number] - train.mean()) / train.std()
        assert np.allclose(prepared.numbers(split)[:, 0], expected)
        assert not prepared.numbers(split)[:, 1].any()


def test_a_field_is_asked_of_rows_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("text")
    data = spec.Data(corpus=[str(path)], prepared=str(tmp_path / "prepared"), split=spec.Splits(by="author"))
    with pytest.raises(DataError, match=r"a.txt: is plain text, and data.split.by = 'author' asks for a field of rows"):
        prepare.prepare(data)


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ({"validation_from": "2024"}, "are of a field; name it"),
        ({"by": "d", "validation_from": "2024", "test_values": ["x"]}, "two ways to say the same"),
        ({"by": "d", "stratify": "label"}, 'by = "d" keeps documents together'),
        ({"by": "d", "validation_from": "2024", "test_from": "2023"}, "is before validation_from"),
        ({"by": "d", "validation_from": "2024", "test_from": 5}, "of one kind"),
        ({"by": "d", "together": 0.8}, "says which; write one"),
    ],
)
def test_ways_to_split_that_exclude_each_other(split: dict[str, Any], message: str) -> None:
    with pytest.raises(RunFileError, match=message):
        spec.parse({"data": {"corpus": ["a"], "split": split}, "train": {"duration": "1 steps"}})
