"""Heads of an encoder: rows with labels, numbers, labelled words and answers, and the curve of one process under every layout."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plait import events
from plait.cluster.nursery import Nursery
from plait.errors import CheckpointError, DataError, PlaitError, RunFileError, UserError
from plait.tasks import labelling
from plait.tasks.classify import Classified, classify
from plait.tasks.evaluate import baselines_of, draw_confusion, evaluate
from plait.tasks.pretrain import train
from plait.tasks.trained import load
from tests.curves import Curves, assert_one_curve, spread
from tests.runs import history_of, slow, tiny
from tests.tasks.kinds import BERT, LABELLED, write_rows

ENCODER = {**BERT, "model__dropout": 0.1, "data__sequence": 32}
Curve = Callable[..., list[events.Step]]


@pytest.fixture
def curve(curves: Callable[..., Curves], rows: Path) -> Curve:
    trained = curves(rows, **ENCODER, train__duration="4 steps", train__evaluate_every="4 steps")
    return lambda name, task, **changes: trained(name, **LABELLED[task], **changes)


def evaluated(folder: Path) -> events.Evaluated:
    return [event for event in history_of(folder) if isinstance(event, events.Evaluated)][-1]


@pytest.mark.parametrize(
    ("task", "layout"),
    [
        slow("classify", {"tensor": 2, "context": 2}),
        slow("classify", {"shard": 2}),
        slow("classify", {"pipeline": 2}),
        ("mean", {"tensor": 2, "context": 2}),
        slow("mean", {"pipeline": 2}),
        slow("mean", {"context": 2, "context_by": "ulysses"}),
        slow("regress", {"pipeline": 2}),
        slow("tag", {"context": 2}),
        slow("tag", {"replicas": 2, "shard": 2}),
        slow("answer", {"shard": 2}),
        slow("answer", {"pipeline": 2}),
    ],
    ids=str,
)
def test_a_task_draws_the_curve_of_one_process(curve: Curve, tmp_path: Path, task: str, layout: dict[str, Any]) -> None:
    alone = curve("alone", task)
    assert_one_curve(alone, curve("spread", task, **spread(layout)))
    one, other = evaluated(tmp_path / "alone"), evaluated(tmp_path / "spread")
    assert other.loss == pytest.approx(one.loss, rel=1e-9)
    assert (other.accuracy, other.f1, other.tokens) == (one.accuracy, one.f1, one.tokens)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory, rows: Path, prepared: Path, nursery: Nursery) -> dict[str, Path]:
    """A masked run, and what is tuned from it: in fp32, until it tells good from bad."""
    folder = tmp_path_factory.mktemp("bases")
    masked = {**ENCODER, "train__precision": "fp32", "data__objective": {"kind": "masked"}, "train__duration": "6 steps"}
    train(tiny(rows, prepared, **masked), folder / "masked", nursery=nursery, quiet=True)
    settings = {
        "finetune__from": str(folder / "masked"),
        "model": {"pooling": "mean"},
        "data__tokenizer": None,
        "data__sequence": 32,
        "data__objective": {"kind": "classify"},
        "data__split": {"stratify": "label", "validation": 0.1, "test": 0.2},
        "train__precision": "fp32",
        "train__duration": "4 epochs",
    }
    train(tiny(rows, prepared, **settings), folder / "tuned", nursery=nursery, quiet=True)
    return {"masked": folder / "masked", "tuned": folder / "tuned"}


def test_a_head_is_tuned_from_a_masked_encoder(bases: dict[str, Path], rows: Path, tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    score = evaluate(bases["tuned"], "test")
    commonest, tf_idf = baselines_of(bases["tuned"], ["test"])
    assert score.accuracy is not None
    assert score.f1 is not None
    assert score.accuracy > commonest.accuracy + 0.2
    assert tf_idf.accuracy > commonest.accuracy + 0.2
    assert score.labels == ["bad", "good"]
    assert sum(map(sum, score.confusion or ())) == score.tokens == 48
    draw_confusion(score, tmp_path / "confusion.svg")
    assert (tmp_path / "confusion.svg").read_text().count("<rect") == 1 + 4


def test_what_is_told_of_a_text_does_not_hang_on_the_texts_beside_it(bases: dict[str, Path]) -> None:
    trained = load(bases["tuned"], "cpu")
    texts = ["the story was lovely", "awful", "a film with people in it and it was bad and a sad story in the film"]
    together = classify(trained, texts)
    assert [each.text for each in together] == texts
    for text, each in zip(texts, together, strict=True):
        [alone] = classify(trained, [text])
        assert alone.probability == pytest.approx(each.probability, rel=1e-5)
        assert sum(each.probabilities.values()) == pytest.approx(1)
    assert [each.label for each in together] == ["good", "bad", "bad"]


def test_texts_come_from_arguments_files_and_standard_input(
    bases: dict[str, Path], rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = load(bases["tuned"], "cpu")
    (tmp_path / "lines.txt").write_text("a good film\n\n" + json.dumps({"text": "a bad film"}) + "\n")
    lines = list(labelling.label(trained, [], tmp_path / "lines.txt"))
    with (tmp_path / "lines.txt").open() as stream:
        monkeypatch.setattr("sys.stdin", stream)
        assert list(labelling.label(trained, [])) == lines
    assert list(labelling.label(trained, ["a good film", "a bad film"])) == lines
    assert labelling.line(lines[0]).startswith("good  ")
    assert json.loads(labelling.as_json(lines[1]))["label"] == "bad"
    assert isinstance(lines[0], Classified)


WRONG: list[Any] = [
    (
        "classify",
        {"label": "neither"},
        {"kind": "classify", "labels": ["bad", "good"]},
        DataError,
        "changed.jsonl:3: the label 'neither' is",
    ),
    ("classify", {"label": None}, {"kind": "classify"}, DataError, "changed.jsonl:3: has no 'label', which data.objective.label asks for"),
    (
        "regress",
        {"stars": "many"},
        {"kind": "regress", "label": "stars"},
        DataError,
        "'stars' is 'many', and data.objective.label asks for",
    ),
    ("tag", {"tags": ["other"]}, {"kind": "tag"}, DataError, "words, and 'tags' 1 labels; give each word one"),
    ("mean", {"other": " "}, {"kind": "classify", "pair": "other"}, DataError, "changed.jsonl:3: 'other' is empty; both texts"),
    ("answer", {"answers": {"text": ["x"], "answer_start": [0]}}, {"kind": "answer"}, DataError, "'x' does not stand at 0 of the passage"),
]


@pytest.mark.parametrize(("task", "change", "objective", "error", "message"), WRONG)
def test_a_row_that_is_wrong_is_refused_with_its_place(
    tmp_path: Path, task: str, change: dict[str, Any], objective: dict[str, Any], error: type[PlaitError], message: str
) -> None:
    settings = {**ENCODER, **LABELLED[task], "data__objective": objective, "data__tokenizer": {"train": 260}}
    changed = write_rows(tmp_path / "changed.jsonl", 2, change, seed=1)
    with pytest.raises(error, match=message):
        train(tiny(changed, tmp_path / "prepared", **settings), tmp_path / "run", quiet=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data__objective": {"kind": "answer"}, "layout__context": 2}, 'layout.context = 2 .* data.objective.kind = "answer"'),
        ({"data__objective": {"kind": "tag"}, "model__pooling": "mean"}, "model.pooling"),
        ({"data__objective": {"kind": "masked", "label": "x"}}, 'label belongs to kind = "classify" or "regress" or "tag"'),
        ({"data__objective": {"kind": "regress"}, "train__label_smoothing": 0.1}, "train.label_smoothing is for labels"),
        ({"data__objective": {"kind": "classify"}, "model__family": "gpt2"}, 'this family learns by "causal"'),
        ({"data__objective": {"kind": "classify"}, "data__document_mask": True}, "document_mask is for samples that hold several"),
    ],
)
def test_what_excludes_one_another_is_refused(rows: Path, prepared: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RunFileError, match=message):
        tiny(rows, prepared, **{**ENCODER, **changes})


def test_a_model_without_the_head_is_refused(bases: dict[str, Path], rows: Path, prepared: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r'objective.kind = "masked", and has no head for "classify"'):
        classify(load(bases["masked"], "cpu"), ["a text"])
    tuned = {"finetune__from": str(bases["masked"]), "model": {}, "data__tokenizer": None, "data__sequence": 32}
    with pytest.raises(RunFileError, match=r'finetune.rates: "head.\*" fits no parameter'):
        train(tiny(rows, prepared, **tuned, data__objective={"kind": "classify"}, finetune__rates={"head.*": 2.0}), tmp_path / "run")
    with pytest.raises((RunFileError, CheckpointError), match="width"):
        train(tiny(rows, prepared, **{**tuned, "model": {"width": 16}}, data__objective={"kind": "classify"}), tmp_path / "run")


def test_adapters_are_trained_with_a_new_head(bases: dict[str, Path], rows: Path, prepared: Path, nursery: Nursery, tmp_path: Path) -> None:
    """And what was said of it, is of it: the head alone is new."""
    settings = {
        "finetune": {"from": str(bases["masked"]), "lora": {"rank": 2}, "rates": {"task_head.*": 2.0}},
        "model": {},
        "data__tokenizer": None,
        "data__sequence": 32,
        "data__objective": {"kind": "regress", "label": "stars"},
        "train__duration": "3 steps",
    }
    train(tiny(rows, prepared, **settings), tmp_path / "adapted", nursery=nursery, quiet=True)
    [told] = labelling.label(load(tmp_path / "adapted", "cpu"), ["a good film"])
    assert labelling.line(told).endswith("  a good film")
