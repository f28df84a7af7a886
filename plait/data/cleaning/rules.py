"""Rules of quality: a document passes all of them or is dropped by the first that it breaks, with the value that broke it.

    gopher       Rae et al. 2021, Scaling Language Models, A.1.1 "Quality filtering"
    repetition   the same, Table A1: repeated lines, paragraphs and word sequences
    c4           Raffel et al. 2020, Exploring the Limits of Transfer Learning, 2.2, in the numbers of its authors' code: drops lines, then
                 documents of few sentences

Where they count words, so does this, and a Chinese character is one (words.py). Their bounds by language are in languages.py. Where a
text has nothing to measure (no words, one line) a share is 0.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from plait.data.cleaning.languages import Bounds
from plait.data.cleaning.words import Words

Range = tuple[float, float]
INFINITY = float("inf")


@dataclass(frozen=True)
class Rule:
    """measure: a number of a document; allowed: within which it must be, for a language, or None where the rule has no meaning there."""

    name: str
    source: str
    measure: Callable[[Words, Bounds], float]
    allowed: Callable[[Bounds], Range | None]


@dataclass(frozen=True)
class Verdict:
    """The rule that a document breaks: its value, and what is allowed."""

    rule: str
    value: float
    limit: float


def judge(words: Words, bounds: Bounds, rules: list[Rule]) -> Verdict | None:
    """The first rule that is broken, if one is."""
    for rule in rules:
        if (allowed := rule.allowed(bounds)) is None:
            continue
        value = rule.measure(words, bounds)
        if not allowed[0] <= value <= allowed[1]:
            return Verdict(rule.name, value, allowed[0] if value < allowed[0] else allowed[1])
    return None


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _at_most(name: str) -> Callable[[Bounds], Range]:
    return lambda bounds: (0.0, getattr(bounds, name))


def _at_least(name: str) -> Callable[[Bounds], Range]:
    return lambda bounds: (getattr(bounds, name), INFINITY)


_BULLETS = ("•", "-", "*", "·", "‣", "◦", "●", "–")
_ELLIPSES = ("...", "…", "。。。")


def _mean_word(words: Words, bounds: Bounds) -> float:
    return float(words.lengths.mean()) if len(words.all) else 0.0


def _symbols(words: Words, bounds: Bounds) -> float:
    ellipses = words.text.count("...") + words.text.count("…")
    return _share(max(words.text.count("#"), ellipses), len(words.all))


def _bullets(words: Words, bounds: Bounds) -> float:
    return _share(sum(line.lstrip().startswith(_BULLETS) for line in words.lines), len(words.lines))


def _ellipses(words: Words, bounds: Bounds) -> float:
    return _share(sum(line.rstrip().endswith(_ELLIPSES) for line in words.lines), len(words.lines))


_LETTER = re.compile(r"[^\W\d_]")


def _letters(words: Words, bounds: Bounds) -> float:
    mixed = [word for word in words.all if not word.isalpha()]
    return _share(len(words.all) - len(mixed) + sum(map(bool, map(_LETTER.search, mixed))), len(words.all))


def _stop_words(words: Words, bounds: Bounds) -> float:
    return len(bounds.stop_list.intersection(words.all))


GOPHER = "Rae et al. 2021, A.1.1"
_GOPHER = [
    Rule("words", GOPHER, lambda words, bounds: len(words.all), lambda bounds: bounds.words),
    Rule("mean word", GOPHER, _mean_word, lambda bounds: bounds.mean_word),
    Rule("symbols", GOPHER, _symbols, _at_most("symbols")),
    Rule("bullets", GOPHER, _bullets, _at_most("bullets")),
    Rule("ellipses", GOPHER, _ellipses, _at_most("ellipses")),
    Rule("letters", GOPHER, _letters, _at_least("letters")),
    Rule("stop words", GOPHER, _stop_words, lambda bounds: (bounds.stop_words, INFINITY) if bounds.stop_list else None),
]

_PARAGRAPH = re.compile(r"\n\s*\n")


def _paragraphs(words: Words) -> list[str]:
    return [part for part in _PARAGRAPH.split(words.text) if part and not part.isspace()]


def _again(parts: list[str]) -> list[str]:
    """Those that stood before."""
    seen: set[str] = set()
    repeated = []
    for part in parts:
        if part in seen:
            repeated.append(part)
        seen.add(part)
    return repeated


def _repeated_share(parts: Callable[[Words], list[str]]) -> Callable[[Words, Bounds], float]:
    return lambda words, bounds: _share(len(_again(parts(words))), len(parts(words)))


def _repeated_characters(parts: Callable[[Words], list[str]]) -> Callable[[Words, Bounds], float]:
    return lambda words, bounds: _share(sum(map(len, _again(parts(words)))), len(words.text))


def _top_gram(length: int) -> Callable[[Words, Bounds], float]:
    """Share of the words' characters in the commonest sequence of so many words."""

    def measure(words: Words, bounds: Bounds) -> float:
        width = length * words.unit
        if len(words.all) < width:
            return 0.0
        _, first, counts = np.unique(words.grams(width), return_index=True, return_counts=True)
        top = int(counts.argmax())
        if counts[top] == 1:
            return 0.0
        start = int(first[top])
        return _share(int(counts[top]) * int(words.lengths[start : start + width].sum()), int(words.lengths.sum()))

    return measure


_STRICTEST = 0.10


def _repeated_grams(length: int) -> Callable[[Words, Bounds], float]:
    """Share of the words' characters in sequences of so many words that stood before; what overlaps counts once.

    What repeats a long sequence repeats the shorter ones in it, so that the share of the shortest bounds all others: where it is within the
    strictest bound, it stands for them.
    """

    def measure(words: Words, bounds: Bounds) -> float:
        shortest = _covered(words, 5 * words.unit)
        return shortest if shortest <= _STRICTEST or length == 5 else _covered(words, length * words.unit)

    return measure


def _covered(words: Words, width: int) -> float:
    if width in words.measured:
        return words.measured[width]
    share = 0.0
    if len(words.all) >= width:
        grams = words.grams(width)
        _, first = np.unique(grams, return_index=True)
        again = np.ones(len(grams), dtype=np.int8)
        again[first] = 0
        within = np.convolve(again, np.ones(width, dtype=np.int8)) > 0 if again.any() else np.zeros(len(words.all), bool)
        share = _share(int(words.lengths[within].sum()), int(words.lengths.sum()))
    words.measured[width] = share
    return share


TABLE_A1 = "Rae et al. 2021, Table A1"


def _bounded(name: str, measure: Callable[[Words, Bounds], float], most: float) -> Rule:
    return Rule(name, TABLE_A1, measure, lambda bounds: (0.0, most))


_REPETITION = [
    _bounded("repeated lines", _repeated_share(lambda words: words.lines), 0.30),
    _bounded("repeated paragraphs", _repeated_share(_paragraphs), 0.30),
    _bounded("characters in repeated lines", _repeated_characters(lambda words: words.lines), 0.20),
    _bounded("characters in repeated paragraphs", _repeated_characters(_paragraphs), 0.20),
    *(_bounded(f"top {length}-gram", _top_gram(length), most) for length, most in ((2, 0.20), (3, 0.18), (4, 0.16))),
    *(
        _bounded(f"repeated {length}-grams", _repeated_grams(length), most)
        for length, most in zip(range(5, 11), (0.15, 0.14, 0.13, 0.12, 0.11, 0.10), strict=True)
    ),
]

C4 = "Raffel et al. 2020, 2.2"
_END = (".", "?", "!", '"', "”", "’", "。", "？", "！", "」", "』", "；")
_SENTENCE_END = re.compile(r"[.?!]+(?=[\s\"”’)]|$)|[。？！]+")
_POLICY = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies", "javascript")


def without_lines(text: str, bounds: Bounds) -> str:
    """C4's step on lines: those stay that end as sentences do, have enough words, and speak of no cookies."""
    return "\n".join(line for line in text.split("\n") if _stays(line, bounds))


def _stays(line: str, bounds: Bounds) -> bool:
    line = line.strip()
    if not line.endswith(_END) or line.endswith(_ELLIPSES):
        return False
    lower = line.lower()
    return not any(phrase in lower for phrase in _POLICY) and len(Words(line).all) >= bounds.line_words


def _sentences(words: Words, bounds: Bounds) -> float:
    return len(_SENTENCE_END.findall(words.text))


_C4 = [
    Rule("sentences", C4, _sentences, _at_least("sentences")),
    Rule("lorem ipsum", C4, lambda words, bounds: words.text.lower().count("lorem ipsum"), lambda bounds: (0, 0)),
    Rule("curly brackets", C4, lambda words, bounds: words.text.count("{"), lambda bounds: (0, 0)),
]

SETS: dict[str, list[Rule]] = {"gopher": _GOPHER, "repetition": _REPETITION, "c4": _C4}
