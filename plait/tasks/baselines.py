"""What a classifier is printed beside: who always tells the commonest label, and a logistic regression on TF-IDF.

Both learn from the training split that the model learned from, as its tokens tell it, and are measured on the same rows. Words and pairs of
them are counted where texts have spaces; where they are written without, as Chinese is, characters and up to three of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from plait.data.tokenizer import Tokenizer
from plait.data.tokens import Prepared
from plait.errors import UserError
from plait.ledger.measures import macro_f1

SPACED = 20
"""Characters of a text for each space, from which on it is one without spaces."""


@dataclass(frozen=True)
class Baseline:
    """How a classifier of another kind does on the same rows."""

    split: str
    name: str
    accuracy: float
    f1: float


def baselines(prepared: Prepared, split: str, sequence: int) -> list[Baseline]:
    """The commonest label, and TF-IDF. Raises UserError: the run tells no labels of texts, or scikit-learn is not installed."""
    objective = prepared.objective()
    if objective.kind != "classify":
        raise UserError(f'--baselines are for data.objective.kind = "classify", and this run has "{objective.kind}"')
    tokenizer, labels = prepared.tokenizer(), len(objective.labels or ())
    learned, measured = (_rows(prepared, tokenizer, each, sequence) for each in ("train", split))
    commonest = np.bincount(learned[1], minlength=labels).argmax()
    told, how = _told_by_tf_idf(*learned, measured[0], balanced=objective.weights is not None)
    return [
        _judged(split, "the commonest label", measured[1], np.full_like(measured[1], commonest), labels),
        _judged(split, f"TF-IDF of {how}, logistic regression", measured[1], told, labels),
    ]


def _judged(split: str, name: str, right: np.ndarray, told: np.ndarray, labels: int) -> Baseline:
    confusion = np.bincount(right * labels + told, minlength=labels**2).reshape(labels, labels)
    return Baseline(split, name, float((right == told).mean()), macro_f1(confusion.tolist()))


def _rows(prepared: Prepared, tokenizer: Tokenizer, split: str, sequence: int) -> tuple[list[str], np.ndarray]:
    """Whole texts and the numbers of their labels."""
    read = prepared.split(split, sequence)
    assert read.told is not None
    end = tokenizer.decode([tokenizer.end_of_text])
    texts: list[str] = []
    for file in read.sources:
        edges = [*file.starts.tolist(), len(file)]
        texts += [tokenizer.decode(file.tokens[first + 1 : last].tolist()).replace(end, "\n") for first, last in pairwise(edges)]
    return texts, np.concatenate(read.told.of).astype(np.int64)


def _told_by_tf_idf(texts: Sequence[str], labels: np.ndarray, others: Sequence[str], balanced: bool) -> tuple[np.ndarray, str]:
    """Labels of other texts, and what was counted. Raises UserError."""
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
    except ImportError:
        raise UserError("--baselines needs scikit-learn: pip install 'plait[baselines]'") from None
    spaced = sum(text.count(" ") for text in texts) * SPACED > sum(map(len, texts))
    counted = {"ngram_range": (1, 2), "sublinear_tf": True} if spaced else {"analyzer": "char", "ngram_range": (1, 3), "sublinear_tf": True}
    weights = "balanced" if balanced else None
    told = make_pipeline(TfidfVectorizer(**counted), LogisticRegression(C=10.0, max_iter=1000, class_weight=weights)).fit(texts, labels)
    return np.asarray(told.predict(others)), "words" if spaced else "characters"
