"""What tiny runs are of: families, and what is learned of which rows."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from tests.runs import T5_PAIRS, WORDS

GPT2: dict[str, Any] = {"model__family": "gpt2", "model__kv_heads": None}
MOE: dict[str, Any] = {"model__family": "moe", "model__experts": 4, "model__shared_experts": 1}
QWEN: dict[str, Any] = {"model__qk_norm": True, "model__qkv_bias": True, "model__head_size": 12}
BERT: dict[str, Any] = {"model__family": "bert", "model__kv_heads": None}
MASKED: dict[str, Any] = {**BERT, "data__objective": {"kind": "masked", "whole_words": True}}
SPANS: dict[str, Any] = {**T5_PAIRS, "data__objective": {"kind": "span"}, "data__tokenizer": {"train": 400}}
CHAT: dict[str, Any] = {"data__chat": {"pack": True}, "data__sequence": 64, "data__tokenizer": {"train": 266}}
LABELLED: dict[str, dict[str, Any]] = {
    "classify": {"data__objective": {"kind": "classify", "weights": "balanced"}, "train__label_smoothing": 0.1},
    "mean": {"data__objective": {"kind": "classify", "pair": "other"}, "model__pooling": "mean"},
    "regress": {"data__objective": {"kind": "regress", "label": "stars"}},
    "tag": {"data__objective": {"kind": "tag"}, "data__field": "words"},
    "answer": {"data__objective": {"kind": "answer"}},
}
"""What is told of `row`s, by an encoder."""

GOOD, BAD = ["fine", "good", "great", "lovely"], ["poor", "bad", "awful", "sad"]
OTHERS = ["the", "film", "was", "and", "a", "story", "with", "people", "in", "it"]


def row(chance: random.Random) -> dict[str, Any]:
    """A text with a label, a number, labelled words, and a question that it answers."""
    good = chance.random() < 0.6
    words = [chance.choice(OTHERS) for _ in range(chance.randint(3, 12))]
    words.insert(chance.randint(0, len(words)), chance.choice(GOOD if good else BAD))
    text, second = " ".join(words), len(words[0]) + 1
    return {
        "text": text,
        "other": " ".join(words[:3]),
        "label": "good" if good else "bad",
        "stars": (4.0 if good else 1.0) + chance.random(),
        "words": words,
        "tags": ["praise" if word in GOOD else "blame" if word in BAD else "other" for word in words],
        "question": "which is the second word ?",
        "context": text,
        "answers": {"text": [words[1]], "answer_start": [second]},
    }


def write_rows(path: Path, count: int = 240, *others: dict[str, Any], seed: int = 0) -> Path:
    """So many rows as JSONL, and behind them some that are changed so."""
    chance = random.Random(seed)
    path.write_text("\n".join(json.dumps({**row(chance), **change}) for change in (*[{}] * count, *others)))
    return path


def write_conversations(path: Path) -> Path:
    rows = [{"prompt": f"say {one} {other}", "answer": f"{one} {other}"} for one in WORDS[:9] for other in WORDS[5:14]]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path
