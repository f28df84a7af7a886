"""BLEU and chrF of translations, by sacrebleu (Post 2018), whose signature says how they were counted.

Both are sums over sentences and one formula in the end, so that whoever translates a part tells its sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from plait.errors import UserError


@dataclass(frozen=True)
class Scores:
    """bleu, chrf: of 100."""

    bleu: float
    chrf: float


def check_installed(asked: str) -> None:
    """Raises UserError naming what asks for scores."""
    try:
        import sacrebleu  # noqa: F401
    except ImportError:
        raise UserError(f"{asked}: BLEU and chrF need sacrebleu: pip install 'plait[translate]'") from None


class Scorer:
    """Scores translations into one language. tokenize: sacrebleu's way to cut words; Chinese characters one by one where references are
    Chinese, its usual one elsewhere."""

    def __init__(self, references: Sequence[str], tokenize: str | None = None) -> None:
        check_installed("scoring translations")
        from sacrebleu.metrics import BLEU, CHRF

        self._bleu: Any = BLEU(tokenize=tokenize or ("zh" if _chinese(references) else "13a"))
        self._chrf: Any = CHRF()
        self._references = list(references)

    def scores(self, translations: Sequence[str]) -> Scores:
        """Of a translation for each reference."""
        bleu, chrf = (metric.corpus_score(list(translations), [self._references]) for metric in (self._bleu, self._chrf))
        return Scores(bleu.score, chrf.score)

    @property
    def signature(self) -> str:
        """Of the scores that were counted."""
        return f"{self._bleu.get_signature()} {self._chrf.get_signature()}"


def score(translated: list[list[str]]) -> dict[str, float]:
    """Of translations, each [pair of languages, right translation, the model's]: "bleu" and "chrf", behind the pair's name where there are
    several."""
    pairs = list(dict.fromkeys(pair for pair, _, _ in translated))
    found: dict[str, float] = {}
    for pair in pairs:
        right, said = zip(*((right, said) for of, right, said in translated if of == pair), strict=True)
        scores = Scorer(right).scores(said)
        before = f"{pair} " if len(pairs) > 1 else ""
        found |= {f"{before}bleu": scores.bleu, f"{before}chrf": scores.chrf}
    return found


def _chinese(texts: Sequence[str]) -> bool:
    """Whether Han characters are the greater part of the letters."""
    letters = [letter for text in texts for letter in text if letter.isalpha()]
    return 2 * sum("\u3400" <= letter <= "\u9fff" for letter in letters) > len(letters)
