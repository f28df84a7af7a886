"""Languages: which one a text is in, and what its rules are.

Chinese is told by its characters, since a page with English names and code in it is Chinese nevertheless; Japanese by its syllables;
everything else by py3langid (Lui and Baldwin 2012), from the first characters of the text.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from plait import spec
from plait.data.cleaning.repair import missing
from plait.data.cleaning.words import HAN, KANA

SEEN = 1000
"""Characters that are looked at. py3langid takes half of the time of cleaning for as many, and tells no more from more (docs/log.md)."""
UNKNOWN = "?"


@dataclass(frozen=True)
class Bounds:
    """What the rules hold a language to. Two numbers are the least and the most; None is no bound."""

    words: tuple[float, float] = (50, 100_000)
    mean_word: tuple[float, float] | None = (3, 10)
    symbols: float = 0.1
    bullets: float = 0.9
    ellipses: float = 0.3
    letters: float = 0.8
    stop_words: int = 2
    stop_list: frozenset[str] = frozenset()
    line_words: int = 5
    sentences: int = 3


def _list(words: str) -> frozenset[str]:
    return frozenset(words.split())


_ANY = Bounds(stop_words=0)
_BOUNDS: dict[str, Bounds] = {
    # Rae et al. 2021, A.1.1: their eight words
    "en": Bounds(stop_list=_list("the be to of and that have with")),
    # the most frequent function words, chosen as Gopher's are: short, and in nearly every paragraph
    "de": Bounds(mean_word=(3, 12), stop_list=_list("der die und in den von zu das mit sich")),
    "es": Bounds(stop_list=_list("de la que el en y a los del se")),
    "fr": Bounds(stop_list=_list("de la le et les des en un du que")),
    # A word is a character here: a hundred of them say about what fifty English words do, and mean length says nothing.
    # Stop words are the most frequent function characters, of modern and of classical Chinese.
    "zh": Bounds(
        words=(100, 200_000),
        mean_word=None,
        letters=0.6,
        stop_list=_list("的 一 是 不 了 在 人 有 我 他 这 這 和 之 而 其 以 于 於 者 也 与 與 為 为"),
        line_words=5,
    ),
    "ja": Bounds(words=(100, 200_000), mean_word=None, letters=0.6, stop_list=_list("の に は を た が で て と し")),
    "ko": Bounds(mean_word=(1.5, 8), stop_words=0),
}


def bounds(limits: dict[str, spec.Limits]) -> Callable[[str], Bounds]:
    """The bounds of each language: those built in, what the run file says for all, what it says for the one."""
    made: dict[str, Bounds] = {}

    def of(language: str) -> Bounds:
        if language not in made:
            told = [limits[key] for key in ("*", language) if key in limits]
            made[language] = replace(_BOUNDS.get(language, _ANY), **{key: value for each in told for key, value in _said(each).items()})
        return made[language]

    return of


def _said(limits: spec.Limits) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in limits.model_dump(exclude_none=True).items()}


@cache
def identifier() -> Callable[[str], str]:
    """Tells a text's language by its code of ISO 639-1. Raises DataError: py3langid is not installed."""
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError:
        raise missing("languages and rules", "py3langid") from None
    engine = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=False)

    def identify(text: str) -> str:
        head = text[:SEEN]
        if (by_script := _by_script(head)) is not None:
            return by_script
        return str(engine.classify(head)[0]) if any(map(str.isalpha, head)) else UNKNOWN

    return identify


_HAN, _KANA = re.compile(f"[{HAN}]"), re.compile(f"[{KANA}]")


def _by_script(head: str) -> str | None:
    """A tenth of Chinese characters among what is not blank is Chinese: each says as much as a word of letters does."""
    han, kana = len(_HAN.findall(head)), len(_KANA.findall(head))
    seen = len("".join(head.split()))
    if kana > 0.05 * seen and kana > 0.1 * han:
        return "ja"
    return "zh" if han > 0.1 * seen else None
