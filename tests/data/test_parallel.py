"""Parallel text: pairs from every kind of file, packed into rows so that each is told once, and what is wrong named by its place."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import polib
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from plait import spec
from plait.data import prepare, sources, statistics
from plait.data.batches import NO_TARGET, Batches, EvaluationBatches
from plait.data.pairs import packed
from plait.data.tokens import Prepared
from plait.errors import DataError, RunFileError
from tests.runs import pairs

NOTHING_HELD_BACK = {"validation": 0.0, "test": 0.0}


def prepared(folder: Path, corpus: list[Any], **changes: Any) -> tuple[spec.Data, Prepared]:
    settings = {"objective": {"kind": "translate"}, "split": NOTHING_HELD_BACK, "tokenizer": {"train": 280}, "sequence": 64, **changes}
    data = spec.Data.model_validate({"corpus": corpus, "prepared": str(folder / "kept"), "workers": 1, **settings})
    return data, prepare.prepare(data)


def read(folder: Path, corpus: list[Any]) -> list[list[str]]:
    """The pairs of files, before anything is made of them."""
    data = spec.Data.model_validate({"corpus": corpus, "prepared": str(folder / "kept"), "objective": {"kind": "translate"}})
    found = [document for file in sources.every_file(sources.resolve(data)) for document in sources.documents(file, data)]
    return [json.loads(document.text) for document in found]


def told(data: spec.Data, found: Prepared) -> list[tuple[str, str]]:
    """The pairs of all rows of the training split, in the order of the rows."""
    tokenizer = found.tokenizer()
    batches = EvaluationBatches(found.split("train", data.sequence))
    read = batches.read(0, batches.size)
    pairs = []
    for tokens, targets, documents in zip(read.tokens_BL, read.targets_BL, read.documents_BL, strict=True):  # type: ignore[arg-type]
        for number in range(documents.max() + 1):
            sides = documents == number
            source = tokens[: read.source][sides[: read.source]]
            target = targets[read.source :][sides[read.source :] if len(sides) > read.source else slice(None)]
            pairs.append((tokenizer.decode(source[:-1].tolist()), tokenizer.decode(target[target != NO_TARGET][:-1].tolist())))
    return pairs


def test_pairs_come_from_every_kind_of_file(tmp_path: Path) -> None:
    """One pair in each, several compressed; what is not translated is left out."""
    (tmp_path / "en.txt.zst").write_bytes(zstandard.compress(b"one\n\ntwo\n"))
    (tmp_path / "de.txt").write_bytes(b"eins\n\nzwei\n")
    (tmp_path / "plain.tsv.gz").write_bytes(gzip.compress(b"three\tdrei\tignored\n"))
    (tmp_path / "titled.tsv").write_text("de\tnote\ten\nvier\tx\tfour\n")
    (tmp_path / "rows.jsonl").write_text(json.dumps({"source": "five", "target": "fünf"}))
    (tmp_path / "deep.jsonl").write_text(json.dumps({"translation": {"en": "six", "de": "sechs"}}))
    catalogue = polib.POFile()
    catalogue.metadata = {"Content-Type": "text/plain; charset=UTF-8"}
    entries = [{"msgid": "seven", "msgstr": "sieben"}, {"msgid": "open", "msgstr": ""}, {"msgid": "f", "msgstr": "g", "flags": ["fuzzy"]}]
    entries.append({"msgid": "eight", "msgid_plural": "eights", "msgstr_plural": {0: "acht", 1: "achten"}})  # type: ignore[dict-item]
    catalogue.extend(polib.POEntry(**entry) for entry in entries)
    (tmp_path / "some.po").write_text(str(catalogue))
    (tmp_path / "some.mo.gz").write_bytes(gzip.compress(catalogue.to_binary().replace(b"sieben", b"SIEBEN")))
    corpus = [
        {"path": str(tmp_path / "en.txt.zst"), "target": str(tmp_path / "de.txt"), "name": "lines"},
        {"path": str(tmp_path / "titled.tsv"), "sides": ["en", "de"], "name": "titled", "prefix": "de: "},
        {"path": str(tmp_path / "deep.jsonl"), "sides": ["translation.en", "translation.de"], "name": "deep"},
        *(str(tmp_path / name) for name in ("plain.tsv.gz", "rows.jsonl", "some.po", "some.mo.gz")),
    ]
    found = {(source, target) for source, target in read(tmp_path, corpus)}
    catalogues = {("seven", "sieben"), ("seven", "SIEBEN"), ("eight", "acht"), ("eights", "achten")}
    rest = {("one", "eins"), ("two", "zwei"), ("three", "drei"), ("de: four", "vier"), ("five", "fünf"), ("six", "sechs")}
    assert found == rest | catalogues


def tsv(folder: Path, found: list[tuple[str, str]]) -> list[str]:
    (folder / "pairs.tsv").write_text("".join(f"{source}\t{target}\n" for source, target in found), encoding="utf-8")
    return [str(folder / "pairs.tsv")]


@pytest.mark.parametrize("pack", [True, False])
def test_every_pair_is_told_once_and_counted_by_the_index(tmp_path: Path, pack: bool) -> None:
    given_ = pairs(80)
    data, found = prepared(tmp_path, tsv(tmp_path, given_), objective={"kind": "translate", "pack": pack, "target": 48})
    assert sorted(told(data, found)) == sorted(given_)
    train = spec.Train.model_validate({"duration": "2 epochs", "batch": 4})
    batches = Batches(found.split("train", data.sequence), train, found.fingerprint)
    read = batches.read(2, 0, 4)
    assert batches.targets(2, [[1, 3]]) == (read.targets_BL[1:3] != NO_TARGET).sum()
    assert (batches.read(2, 1, 3).tokens_BL == read.tokens_BL[1:3]).all()
    assert read.tokens_BL.shape == (4, 64 + 48)
    (filling,) = batches.filling
    assert filling.pairs == 80
    one, several = statistics.of(found).filling
    assert one.filled < 0.4 < 0.8 < several.filled
    assert 1 - filling.padding == pytest.approx((several if pack else one).filled)


@given(st.lists(st.tuples(st.integers(2, 20), st.integers(1, 24)), min_size=1, max_size=60))
def test_packing_keeps_every_pair_and_no_row_runs_over(lengths: list[tuple[int, int]]) -> None:
    read, told_ = np.array(lengths).T
    laid, firsts = packed(read, told_, 20, 24)
    assert sorted(laid) == list(range(len(lengths)))
    assert (np.diff(firsts) > 0).all()
    assert (np.add.reduceat(read[laid], firsts[:-1]) <= 20).all()
    assert (np.add.reduceat(told_[laid], firsts[:-1]) <= 24).all()


def test_one_source_is_never_in_two_splits(tmp_path: Path) -> None:
    """Whatever its translations are."""
    given_ = [(source, f"{target} {number}") for source, target in pairs(120) for number in range(3)]
    _data, found = prepared(tmp_path, tsv(tmp_path, given_), split={"validation": 0.2, "test": 0.2})
    assert found.tokens("validation")
    rows = found.records()
    homes: dict[str, set[int]] = {}
    for (source, _), row in zip(given_, rows, strict=True):
        homes.setdefault(source, set()).add(int(row["split"]))
    assert all(len(splits) == 1 for splits in homes.values())


def test_what_is_longer_than_a_row_follows_the_policy(tmp_path: Path) -> None:
    corpus = tsv(tmp_path, [*pairs(20), ("long " * 90, "lang"), ("short", "kurz " * 90)])
    by_policy = {}
    for longer in ("skip", "cut"):
        data, found = prepared(tmp_path, corpus, objective={"kind": "translate", "longer": longer})
        by_policy[longer] = told(data, found)
        (filling,) = EvaluationBatches(found.split("train", data.sequence)).filling
        assert filling.longer == 2
    assert len(by_policy["skip"]) == 20
    assert len(by_policy["cut"]) == 22
    data, found = prepared(tmp_path, corpus, objective={"kind": "translate", "longer": "fail"})
    with pytest.raises(DataError, match=r"data.sequence = 64: 2 of 22 pairs of .* are longer than a row of 64 tokens of source and 64 of"):
        EvaluationBatches(found.split("train", data.sequence))


WRONG = [
    ("a.txt", "one\ntwo\n", "eins\n", "a.txt has 2 lines and {}/b.txt has 1: line 2 of a.txt has no counterpart"),
    ("a.txt", "one\n", "eins\nzwei\ndrei", "a.txt has 1 lines and {}/b.txt has 3: line 2 of b.txt has no counterpart"),
    ("a.txt", "one\ntwo\n", "eins\n \n", "a.txt:2: has no target: a pair needs both"),
    ("a.tsv", "one\teins\ntwo", None, "a.tsv:2: has 1 column, and a source and a target stand in columns 1 and 2"),
    ("a.tsv", "\teins", None, "a.tsv:1: has no source"),
    ("a.jsonl", '{"source": "one", "de": "eins"}', None, "a.jsonl:1: has no 'target'; its keys are 'source', 'de'; set `sides`"),
    ("a.jsonl", '{"source": "one", "target": 1}', None, "a.jsonl:1: 'target' is int, not text"),
    ("a.mo", "no catalogue at all", None, "a.mo: is no gettext catalogue or a broken one"),
    ("a.txt", "one", None, "a.txt: is text of one language; name the file of its translations"),
    ("a.tsv", "one\teins", "x", "a.tsv: holds both sides, and `target` is for text files of one each"),
]


@pytest.mark.parametrize(("name", "text", "other", "why"), WRONG)
def test_what_is_no_pair_is_named(tmp_path: Path, name: str, text: str, other: str | None, why: str) -> None:
    (tmp_path / name).write_text(text)
    (tmp_path / "b.txt").write_text(other or "")
    entry = {"path": str(tmp_path / name)} | ({} if other is None else {"target": str(tmp_path / "b.txt")})
    with pytest.raises(DataError) as error:
        read(tmp_path, [entry])
    assert why.format(tmp_path) in str(error.value)


def test_an_empty_side_can_be_left_out_and_is_counted(tmp_path: Path) -> None:
    corpus = tsv(tmp_path, [*pairs(20), ("alone", "")])
    data, found = prepared(tmp_path, corpus, broken="skip")
    assert len(told(data, found)) == 20
    assert found.manifest.lineage is not None
    assert found.manifest.lineage.broken == {"empty side": 1}


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"data": {"objective": {"kind": "causal"}, "corpus": [{"path": "x", "target": "y"}]}}, r"target is of pairs, and objective.kind"),
    ({"data": {"clean": {}}}, r'clean is for texts, and objective.kind = "translate"'),
    ({"data": {"augment": {"word_dropout": 0.1}}}, r"augment is for texts"),
    ({"data": {"document_mask": True}}, r"pairs never see each other"),
    ({"data": {"objective": {"kind": "translate", "rate": 0.2}}}, r'rate belongs to kind = "masked" or "span"'),
    ({"data": {"objective": {"kind": "translate", "pack": True}, "chat": {}}}, r"objective.pack is of an encoder-decoder's rows"),
    ({"model": {"family": "llama"}}, r'translates in conversations, and data.objective.kind = "translate" has none; write \[data.chat\]'),
    ({"model": {"family": "bert"}}, r'this family learns by "masked"'),
    ({"data": {"chat": {}}}, r'model.family = "t5" reads a source by itself'),
    ({"train": {"evaluate_translations": 4}}, r"at each train.evaluate_every; leave it out"),
]


@pytest.mark.parametrize(("changes", "why"), REFUSED)
def test_settings_that_exclude_each_other_are_refused(changes: dict[str, Any], why: str) -> None:
    table: dict[str, Any] = {
        "model": {"family": "t5", "layers": 2, "width": 64, "heads": 4},
        "data": {"corpus": ["x.tsv"], "objective": {"kind": "translate"}},
        "train": {"duration": "1 steps"},
        "layout": {},
    }
    with pytest.raises(RunFileError, match=why):
        spec.parse({section: {**values, **changes.get(section, {})} for section, values in table.items()})


def test_for_a_decoder_pairs_are_conversations(tmp_path: Path) -> None:
    data, found = prepared(tmp_path, tsv(tmp_path, pairs(40)), chat={"pack": True})
    batches = EvaluationBatches(found.split("train", data.sequence))
    read = batches.read(0, 1)
    said = found.tokenizer().decode(read.tokens_BL[0].tolist())
    assert "User: " in said
    assert "Assistant: " in said
    assert found.tokenizer().decode(read.targets_BL[0][read.targets_BL[0] != NO_TARGET].tolist()).isupper
