"""Tiny runs that tests share: a made-up language, a model of a few thousand parameters, fp64."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plait import events, spec
from plait.ledger import journal


def slow(*values: Any) -> Any:
    """A case of a parametrised test that `make test-all` alone runs: one that others like it stand for."""
    return pytest.param(*values, marks=pytest.mark.slow)


WORDS = [
    "the",
    "a",
    "cat",
    "dog",
    "bird",
    "sat",
    "ran",
    "flew",
    "on",
    "under",
    "over",
    "mat",
    "tree",
    "house",
    "and",
    "then",
    "again",
    "slowly",
    "quickly",
    "away",
    "home",
]


def write_corpus(folder: Path, documents: int = 60, seed: int = 0) -> Path:
    """One text file of short documents, the same each time."""
    chance = random.Random(seed)
    texts = [" ".join(chance.choice(WORDS) for _ in range(chance.randint(30, 90))) for _ in range(documents)]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "corpus.txt"
    path.write_text("\f".join(texts), encoding="utf-8")
    return path


def tiny(corpus: Path, prepared: Path, **changes: Any) -> spec.Run:
    """A run of seconds; changes are dotted with double underscores: train__duration="4 steps"."""
    table: dict[str, Any] = {
        "model": {"family": "llama", "layers": 2, "width": 32, "heads": 4, "kv_heads": 2},
        "data": {"corpus": [str(corpus)], "tokenizer": {"train": 288}, "sequence": 16, "prepared": str(prepared), "workers": 1},
        "train": {
            "duration": "6 steps",
            "batch": 8,
            "micro_batch": 2,
            "seed": 7,
            "precision": "fp64",
            "optimizer": {"name": "adamw", "lr": 3e-3},
            "schedule": {"name": "cosine", "warmup": "3 steps"},
        },
        "watch": {"tensorboard": False},
        "cluster": {"threads": 1, "device": "cpu"},
    }
    for dotted, value in changes.items():
        here = table
        *parents, last = dotted.split("__")
        for parent in parents:
            here = here.setdefault(parent, {})
        if value is None:
            here.pop(last, None)
        else:
            here[last] = value
    return spec.parse(table)


def steps_of(folder: Path) -> list[events.Step]:
    """The committed steps of a run's journal."""
    return events.committed(journal.read(folder / "events.jsonl"))


def history_of(folder: Path) -> list[events.Event]:
    return journal.read(folder / "events.jsonl")


def differences(one: list[events.Step], other: list[events.Step]) -> tuple[float, float]:
    """The largest relative differences of loss and of grad_norm between two curves of equal length."""
    assert [step.step for step in one] == [step.step for step in other]
    pairs = list(zip(one, other, strict=True))
    loss = max(abs(a.loss - b.loss) / abs(a.loss) for a, b in pairs)
    return loss, max(abs(a.grad_norm - b.grad_norm) / abs(a.grad_norm) for a, b in pairs)


def bf16_floor(curve: Callable[..., list[events.Step]], alone: list[events.Step], **settings: Any) -> float:
    """How far one process gets from itself in bf16 when its micro-batches of two are cut otherwise.

    A weight whose fp32 value differs in the last bit may be rounded to another bf16 value: curves are equal to the bit until the first
    such weight, whenever chance brings it, and then a few 1e-5 apart.
    """
    cuts = [curve(f"in pieces of {size}", **settings, train__micro_batch=size) for size in (1, 4)]
    floor = max(differences(alone, cut)[0] for cut in cuts)
    assert floor <= 1e-4
    return floor


def pairs(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Sentences of a made-up language and their translations, word by word with the last word first; the same each time."""
    chance = random.Random(seed)
    sentences = [[chance.choice(WORDS) for _ in range(chance.choice((2, 3, 3, 4, 5, 9)))] for _ in range(count)]
    return [(" ".join(words), " ".join(word[::-1].upper() for word in [words[-1], *words[:-1]])) for words in sentences]


def write_pairs(folder: Path, count: int = 200) -> Path:
    """The same as TSV."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "pairs.tsv"
    path.write_text("".join(f"{source}\t{target}\n" for source, target in pairs(count)), encoding="utf-8")
    return path


T5_PAIRS: dict[str, Any] = {
    "model__family": "t5",
    "model__kv_heads": None,
    "data__objective": {"kind": "translate"},
    "data__sequence": 32,
    "data__tokenizer": {"train": 300},
    "train__label_smoothing": 0.1,
}
"""Changes of `tiny` that make it a translator."""
