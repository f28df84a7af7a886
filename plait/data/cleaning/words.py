"""Words: what rules count and duplicates are told by.

Scripts that write no spaces have a word a character: Chinese, and the Japanese syllables. All else has a word a run of letters, marks
and digits. So Chinese needs no dictionary, and one table of rules serves every language.
"""

from __future__ import annotations

import hashlib
import re
from functools import cached_property

import numpy as np

HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f"
KANA = "\u3040-\u30ff\u31f0-\u31ff"
_WORD = re.compile(rf"[{HAN}{KANA}]|[^\W{HAN}{KANA}]+(?:['’][^\W{HAN}{KANA}]+)*")
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class Words:
    """The words of a text, each thing about them reckoned once."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.measured: dict[int, float] = {}
        """What rules have reckoned already, by width of a sequence."""

    @cached_property
    def all(self) -> list[str]:
        """In lower case."""
        return _WORD.findall(self.text.lower())

    @cached_property
    def hashes(self) -> np.ndarray:
        """Of each word, uint64."""
        return np.fromiter(map(_known.__getitem__, self.all), np.uint64, len(self.all))

    @cached_property
    def lengths(self) -> np.ndarray:
        """Characters of each word, int64."""
        return np.fromiter(map(len, self.all), np.int64, len(self.all))

    @cached_property
    def unit(self) -> int:
        """How many of these words stand for a word of English: two characters of Chinese make one, about, so that sequences are longer."""
        return 2 if len(self.all) and (self.lengths == 1).mean() > 0.5 else 1

    @cached_property
    def lines(self) -> list[str]:
        """Those that hold anything."""
        return [line for line in self.text.splitlines() if line and not line.isspace()]

    def grams(self, length: int) -> np.ndarray:
        """A hash of each `length` words in a row, uint64; of fewer words, one of them all."""
        length = min(length, len(self.hashes))
        if length < 2:
            return self.hashes
        grams = self._grams
        for known in range(max(grams, default=1), length):
            shorter = grams[known] if known > 1 else self.hashes
            longer = shorter[:-1] * _GOLDEN
            longer ^= longer >> np.uint64(29)  # the product's upper bits come down, or the lower would know of the last words alone
            longer += self.hashes[known:]
            grams[known + 1] = longer
        return grams[length]

    @cached_property
    def _grams(self) -> dict[int, np.ndarray]:
        return {}


class _Known(dict[str, int]):
    """Hashes of words met before: the same few come again and again. Forgotten when there are very many."""

    MOST = 1 << 20

    def __missing__(self, word: str) -> int:
        if len(self) >= self.MOST:
            self.clear()
        self[word] = value = int.from_bytes(hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
        return value


_known = _Known()
