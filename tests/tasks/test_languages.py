"""A classifier of English and one of Chinese, from the shipped corpora to a label on the command line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from plait import cli
from plait.cluster.nursery import Nursery
from plait.data import streams
from plait.tasks.evaluate import evaluate
from plait.tasks.pretrain import train
from tests.runs import tiny

CORPORA = Path(__file__).parents[2] / "examples" / "corpora"
ROWS = 2400
ENGLISH = ("emma", "persuasion")
"""Novels: which of them a paragraph is from is its label."""
ASKED = {
    "English": {
        "Captain Wentworth was at the door, and Anne saw him.": "persuasion",
        "Mr. Knightley called at Hartfield, and Emma smiled.": "emma",
    },
    "Chinese": {"房间很干净，服务态度也很好，下次还会来。": "positive", "太差了，千万不要买，质量很差。": "negative"},
}


def told(path: Path) -> list[str]:
    return b"".join(streams.read(path)).decode().splitlines()


def rows(language: str) -> list[str]:
    if language == "Chinese":
        return told(CORPORA / "reviews" / "train.jsonl.zst")[:ROWS]
    novels = {title: [line for line in told(CORPORA / "austen" / f"{title}.txt.zst") if len(line) > 80] for title in ENGLISH}
    each = min(ROWS // 2, *map(len, novels.values()))
    return [json.dumps({"text": text[:200], "label": title}) for title, texts in novels.items() for text in texts[:each]]


@pytest.mark.slow
@pytest.mark.parametrize("language", list(ASKED))
def test_a_classifier_is_trained_measured_and_asked(
    language: str,
    prepared: Path,
    nursery: Nursery,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    corpus, folder = tmp_path / "rows.jsonl", tmp_path / "run"
    corpus.write_text("\n".join(rows(language)), encoding="utf-8")
    run = tiny(
        corpus,
        prepared,
        model={"family": "bert", "layers": 1, "width": 64, "heads": 4, "pooling": "mean"},
        data__tokenizer={"train": 2048},
        data__sequence=64,
        data__objective={"kind": "classify"},
        data__split={"stratify": "label", "validation": 0.1, "test": 0.1},
        train__duration="3 epochs",
        train__batch=32,
        train__micro_batch=16,
        train__precision="fp32",
        train__optimizer={"name": "adamw", "lr": 2e-3},
        layout={"replicas": 2},
    )
    train(run, folder, nursery=nursery, quiet=True)
    measured = evaluate(folder, "test")
    assert measured.accuracy is not None
    assert measured.confusion is not None
    commonest = max(map(sum, measured.confusion)) / sum(map(sum, measured.confusion))
    assert measured.accuracy > commonest + 0.15
    monkeypatch.setattr(sys, "argv", ["plait", "classify", str(folder), *ASKED[language]])
    with pytest.raises(SystemExit, match="0"):
        cli.main()
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(ASKED[language].values())
