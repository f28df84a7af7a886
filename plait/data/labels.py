"""Rows of data that are samples: what a row's document is, and what is to be told of it.

    objective   a row                                                   its document's tokens      what is told
    classify    {"text": "Fine.", "label": "good"}                      Fine .                     a label of the document
    regress     {"text": "Fine.", "label": 4.5}                         Fine .                     a number (one of data.numbers)
     pair       {"text": "Fine.", "other": "Not so.", "label": ..}      Fine . <end> Not so .
    tag         {"text": ["Ann", "sings"], "tags": ["name", "other"]}   An n sings                 a label of each word's first token
    answer      {"question": .., "context": .., "answers": {..}}        Who ? <end> Ann sings .    first and last token of the answer

A document of more than one text is JSON until it is tokens. Which labels there are is known when all documents have been seen: until then
each piece of a corpus numbers its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pydantic

from plait import spec
from plait.data.broken import Unusable
from plait.data.objective import NO_TARGET
from plait.data.tokenizer import Tokenizer
from plait.errors import DataError

NONE = NO_TARGET
"""Told of a token that bears no label."""


class Label(pydantic.BaseModel):
    """A label that rows bear. counts, places: by split, how many targets bear it, and where the first of them stands."""

    name: str
    counts: dict[str, int] = {}
    places: dict[str, str] = {}


class Scale(pydantic.BaseModel):
    """How a numeric field is scaled: by its mean and standard deviation in the training split."""

    field: str
    mean: float
    deviation: float


def has_parts(settings: spec.Objective) -> bool:
    """Whether a document is more than one text."""
    return settings.kind in ("tag", "answer") or settings.pair is not None


def fields_of(data: spec.Data) -> list[str]:
    """Fields of a row that its document is made from."""
    settings = data.objective
    if settings.kind == "answer":
        return [settings.question or "question", settings.passage or "context", settings.answers or "answers"]
    if settings.kind == "tag":
        return [data.field, settings.label_field]
    return [data.field, *([settings.pair] if settings.pair else [])]


def document(place: str, row: Mapping[str, Any], data: spec.Data) -> str:
    """A row's document as JSON, in one way alone: what it is known by. Raises Unusable."""
    names = fields_of(data)
    for name in names:
        if row.get(name) is None:
            raise Unusable(place, "no field", f"has no {name!r}, which data.objective asks for; its keys are {', '.join(map(repr, row))}")
    values = [row[name] for name in names]
    make = {"tag": _tagged, "answer": _asked}.get(data.objective.kind, _paired)
    made = json.dumps(make(place, names, values), ensure_ascii=False)
    try:
        made.encode()
    except UnicodeEncodeError:
        raise Unusable(place, "no text", "holds half of a surrogate pair, which is no text") from None
    return made


def spoken(document: str, settings: spec.Objective) -> str:
    """What a tokenizer learns of a document."""
    parts = json.loads(document)
    return _between(settings).join(parts[0]) if settings.kind == "tag" else "\n".join(parts[:2])


def label_of(value: Any) -> str:
    """A label by its name: true and 1 are told apart from "true" and "1" by nobody."""
    return json.dumps(value) if isinstance(value, bool) else str(value)


@dataclass(frozen=True)
class Encoded:
    """ids: uint32. told: numbers of `names` (one, or one of each token), or first and last token of the answer, -1 where there is none."""

    ids: np.ndarray
    told: np.ndarray


class Documents:
    """How rows that are samples become tokens, and what is told of them. names: labels, numbered as they come."""

    def __init__(self, settings: spec.Objective, tokenizer: Tokenizer) -> None:
        self._settings, self._tokenizer = settings, tokenizer
        self.names: dict[str, int] = {}
        self.of_tokens = settings.kind == "tag"

    def encode(self, texts: list[str], fields: list[dict[str, Any]]) -> list[Encoded]:
        kind = self._settings.kind
        if kind == "tag":
            return [self._tagged(*json.loads(text)) for text in texts]
        if kind == "answer":
            return [self._asked(*json.loads(text)) for text in texts]
        told = [[self._number(each[self._settings.label_field])] if kind == "classify" else [] for each in fields]
        return [Encoded(ids, np.array(own, dtype=np.int64)) for ids, own in zip(self._texts(texts), told, strict=True)]

    def _texts(self, texts: list[str]) -> list[np.ndarray]:
        if self._settings.pair is None:
            return self._tokenizer.encode(texts)
        both = self._tokenizer.encode([part for text in texts for part in json.loads(text)])
        return [self._joined(first, second) for first, second in zip(both[::2], both[1::2], strict=True)]

    def _joined(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        return np.concatenate([first, [self._tokenizer.end_of_text], second]).astype(np.uint32)

    def _tagged(self, words: list[str], tags: list[str]) -> Encoded:
        pieces = encode_words(words, self._settings, self._tokenizer)
        ids = np.concatenate(pieces)
        told = np.full(len(ids), NONE, dtype=np.int64)
        firsts = np.cumsum([0, *map(len, pieces)])[:-1]
        for first, piece, tag in zip(firsts.tolist(), pieces, tags, strict=True):
            if len(piece):
                told[first] = self._number(tag)
        return Encoded(ids, told)

    def _asked(self, question: str, passage: str, answer: list[Any], _: list[str]) -> Encoded:
        """The first right answer is learned."""
        [asked] = self._tokenizer.encode([question])
        ids, edges = self._tokenizer.located(passage)
        span = np.array(span_of(edges, *answer) if answer else (-1, -1), dtype=np.int64)
        return Encoded(self._joined(asked, ids), np.where(span < 0, -1, span + len(asked) + 1))

    def _number(self, value: Any) -> int:
        return self.names.setdefault(label_of(value), len(self.names))


def encode_words(words: list[str], settings: spec.Objective, tokenizer: Tokenizer) -> list[np.ndarray]:
    """The tokens of each word, as they are within their sentence."""
    between = _between(settings)
    return tokenizer.encode([(between if number else "") + word for number, word in enumerate(words)])


def span_of(edges: np.ndarray, start: int, text: str) -> tuple[int, int]:
    """First and last of the tokens that hold text[start:]. edges: where each token begins and ends in the passage."""
    first = int((edges[:, 1] <= start).sum())
    last = int((edges[:, 0] < start + len(text)).sum()) - 1
    return first, max(first, last)


@dataclass
class Tally:
    """The labels of a corpus, put together from those of its pieces."""

    labels: dict[str, Label] = field(default_factory=dict)

    def take(self, names: Iterable[str], split: str, told: np.ndarray, places: Mapping[int, str]) -> None:
        """What a piece tells of a split. told: numbers of its names; places: by number, of the first."""
        for number, name in enumerate(names):
            if number in places:
                label = self.labels.setdefault(name, Label(name=name))
                label.counts[split] = label.counts.get(split, 0) + int((told == number).sum())
                label.places.setdefault(split, places[number])

    def sorted(self) -> list[Label]:
        """Numbers by size, others by their letters."""
        return sorted(self.labels.values(), key=lambda label: _order(label.name))


def known(objective: spec.Objective, labels: list[Label]) -> list[str]:
    """The names of labels in the order of their numbers. Raises DataError: a row bears one that is not among them."""
    names = objective.labels or [label.name for label in labels if label.counts.get("train")]
    stated = "data.objective.labels" if objective.labels else "the training split's"
    for label in labels:
        if label.name not in names:
            place = next(iter(label.places.values()))
            raise DataError(
                f"{place}: the label {label.name!r} is not among {stated}: {', '.join(map(repr, names))}; correct it, or let it be learned"
            )
    if len(names) < 2:
        raise DataError(f"data.objective: all rows to learn from bear one label, {', '.join(map(repr, names))}; there is nothing to tell")
    return names


def settled(objective: spec.Objective, labels: list[Label]) -> spec.Objective:
    """With labels, and what each weighs: "balanced" is by the inverse of how often it comes, one on average. Raises as `known`."""
    names, weights = known(objective, labels), objective.weights
    if weights == "balanced":
        counts = {label.name: label.counts.get("train", 0) for label in labels}
        whole, there = sum(counts.values()), sum(count > 0 for count in counts.values())
        weights = {name: whole / (there * counts[name]) if counts.get(name) else 1.0 for name in names}
    elif weights is not None and set(weights) != set(names):
        raise DataError(f"data.objective.weights: are of {sorted(weights)}, and the labels are {names}; weigh each label")
    return objective.model_copy(update={"labels": names, "weights": weights})


def _order(name: str) -> tuple[bool, float, str]:
    try:
        return False, float(name), name
    except ValueError:
        return True, 0.0, name


def _between(settings: spec.Objective) -> str:
    return " " if settings.between is None else settings.between


def _paired(place: str, names: list[str], values: list[Any]) -> list[Any]:
    for name, value in zip(names, values, strict=True):
        if not isinstance(value, str):
            raise Unusable(place, "no text", f"{name!r} is {type(value).__name__}, not text")
        if not value.strip():
            raise Unusable(place, "empty side", f"{name!r} is empty; both texts must say something")
    return values


def _tagged(place: str, names: list[str], values: list[Any]) -> list[Any]:
    words, tags = values
    if not isinstance(words, list) or not words or not all(isinstance(word, str) and word.strip() for word in words):
        raise Unusable(place, "no words", f"{names[0]!r} must be a list of words, none of them empty")
    if not isinstance(tags, list) or len(tags) != len(words):
        told = f"{len(tags)} labels" if isinstance(tags, list) else type(tags).__name__
        raise Unusable(place, "other length", f"{names[0]!r} has {len(words)} words, and {names[1]!r} {told}; give each word one")
    return [words, [label_of(tag) for tag in tags]]


def _asked(place: str, names: list[str], values: list[Any]) -> list[Any]:
    question, passage = _paired(place, names[:2], values[:2])
    right = answers_of(place, names[2], values[2], passage)
    return [question, passage, list(right[0]) if right else [], list(dict.fromkeys(text for _, text in right))]


def answers_of(place: str, name: str, answers: Any, passage: str) -> list[tuple[int, str]]:
    """Where each right answer stands, and what it is; none where the passage does not tell. Raises Unusable."""
    texts, starts = (answers.get(key) for key in ("text", "answer_start")) if isinstance(answers, dict) else (None, None)
    if not isinstance(texts, list) or not isinstance(starts, list) or len(texts) != len(starts):
        raise Unusable(place, "no answers", f'{name!r} must be {{"text": [...], "answer_start": [...]}}, as SQuAD\'s, of equal lengths')
    for text, start in zip(texts, starts, strict=True):
        if not isinstance(text, str) or not text or not isinstance(start, int) or passage[start : start + len(text)] != text:
            raise Unusable(place, "no answer there", f"{name!r}: {text!r} does not stand at {start!r} of the passage")
    return list(zip(starts, texts, strict=True))
