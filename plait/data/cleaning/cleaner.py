"""One document through the pipeline: what its text becomes, or the rule that drops it. A pure function of text and settings."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from plait import spec
from plait.data import records
from plait.data.cleaning import languages, near, repair, rules
from plait.data.cleaning.rules import Verdict
from plait.data.cleaning.words import Words

LINES = "lines"
"""The step of c4 that leaves lines out."""
EMPTY, LANGUAGE, EVALUATION, EXACT, NEAR = "empty", "language", "evaluation set", "duplicate", "near-duplicate"


@dataclass(frozen=True)
class Cleaned:
    """changed: a bit for each step that changed the text. verdict: why it is dropped. content: hash of the cleaned text."""

    text: str
    changed: int
    language: str
    verdict: Verdict | None
    content: int
    signature: np.ndarray | None


class Cleaner:
    """The pipeline of one setting. evaluation: hashes of the evaluation sets' word sequences, sorted, uint64.

    similar: whether signatures are wanted. Raises DataError: a library that is asked for is not installed.
    """

    def __init__(self, clean: spec.Clean | None, evaluation: np.ndarray, similar: bool) -> None:
        self._clean = clean
        self._evaluation = evaluation
        self._steps = list(repair.steps(clean).values()) if clean else []
        self._bounds = languages.bounds(clean.limits if clean else {})
        self._rules = [rule for name in (clean.rules if clean else []) for rule in rules.SETS[name]]
        self._identify: Callable[[str], str] | None = languages.identifier() if clean and (clean.languages or clean.rules) else None
        self._sign = near.signer() if similar else None

    def __call__(self, text: str) -> Cleaned:
        changed = 0
        for bit, step in enumerate(self._steps):
            text, before = step(text), text
            changed |= (text != before) << bit
        language = self._identify(text) if self._identify and text else ""
        if self._clean and "c4" in self._clean.rules:
            text, before = rules.without_lines(text, self._bounds(language)), text
            changed |= (text != before) << len(self._steps)
        words = Words(text)
        verdict = self._judge(words, language)
        content = records.identity(text)
        signature = self._signature(words, content) if verdict is None else None
        return Cleaned(text, changed, language, verdict, content, signature)

    def _signature(self, words: Words, content: int) -> np.ndarray | None:
        if self._sign is None:
            return None
        return self._sign(words.grams(near.SHINGLE)) if words.all else near.of_content(content)

    def _judge(self, words: Words, language: str) -> Verdict | None:
        """Why the document is dropped, by what it says alone."""
        if not words.text or words.text.isspace():
            return Verdict(EMPTY, 0, 1)
        if self._clean and self._clean.languages and language not in self._clean.languages:
            return Verdict(LANGUAGE, 0, 1)
        if (broken := rules.judge(words, self._bounds(language), self._rules)) is not None:
            return broken
        return self._contaminated(words)

    def _contaminated(self, words: Words) -> Verdict | None:
        if not self._clean or not len(self._evaluation):
            return None
        grams = _evaluation_grams(words, self._clean.against_words)
        places = np.minimum(np.searchsorted(self._evaluation, grams), len(self._evaluation) - 1)
        shared = int((self._evaluation[places] == grams).sum())
        return Verdict(EVALUATION, shared, 0) if shared else None


def check_installed(clean: spec.Clean | None, similar: bool) -> None:
    """Raises DataError: a library that will be needed is not installed."""
    needed = {"rensa": "near-duplicates"} if similar else {}
    if clean is not None:
        needed |= {"ftfy": "repair"} if clean.repair else {}
        needed |= {"py3langid": "languages and rules"} if clean.languages or clean.rules else {}
    for library, what in needed.items():
        if importlib.util.find_spec(library) is None:
            raise repair.missing(what, library)


def changes(clean: spec.Clean | None) -> list[str]:
    """The steps that change texts, by bit of `changed`."""
    if clean is None:
        return []
    return [*repair.steps(clean), *([LINES] if "c4" in clean.rules else [])]


def reasons(clean: spec.Clean | None) -> list[str]:
    """Why a document may be dropped, in the order in which it is asked."""
    names = [rule.name for name in (clean.rules if clean else []) for rule in rules.SETS[name]]
    return [EMPTY, LANGUAGE, *names, EVALUATION, EXACT, NEAR]


def evaluation_grams(texts: list[str], length: int) -> np.ndarray:
    """The word sequences of evaluation sets, as hashes, sorted; texts that are shorter give none."""
    grams = [_evaluation_grams(words, length) for words in map(Words, texts)]
    return np.unique(np.concatenate([np.zeros(0, np.uint64), *grams]))


def _evaluation_grams(words: Words, length: int) -> np.ndarray:
    width = length * words.unit
    return words.grams(width) if len(words.all) >= width else np.zeros(0, np.uint64)
