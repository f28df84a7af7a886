"""Which tokens are one word, told by the tokens' own text: what begins with a letter goes on with the word of a token that ends with one.

    The | un|believ|able | story|,| she | said          no kind of tokenizer needs to be known: each token's text is what it adds
     0     1   1     1      2    3    4     5           behind a letter, a leading space included

Part of a character counts as a letter. A word has at most LONGEST tokens: text that is written without spaces is cut there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from plait.data.tokenizer import Tokenizer

LONGEST = 8


@dataclass(frozen=True)
class Words:
    """By token: whether its text begins with a letter or digit, and whether it ends with one."""

    begins: np.ndarray
    ends: np.ndarray

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Words:
        """The tables of a tokenizer, whose tokens are all decoded once."""
        texts = cls.texts(tokenizer)
        return cls(np.array([_letter(text[:1]) for text in texts]), np.array([_letter(text[-1:]) for text in texts]))

    @staticmethod
    def texts(tokenizer: Tokenizer) -> list[str]:
        """What each token adds behind a letter."""
        [before] = tokenizer.encode(["a"])
        anchor = [int(token) for token in before]
        behind = len(tokenizer.decode(anchor))
        return [tokenizer.decode([*anchor, token])[behind:] for token in range(tokenizer.vocabulary)]

    def number(self, tokens_BL: np.ndarray) -> np.ndarray:
        """The number of each token's word within its row, int64."""
        goes_on_BL = np.zeros(tokens_BL.shape, dtype=bool)
        goes_on_BL[:, 1:] = self.begins[tokens_BL[:, 1:]] & self.ends[tokens_BL[:, :-1]]
        places_L = np.arange(tokens_BL.shape[1])
        began_BL = np.maximum.accumulate(np.where(goes_on_BL, 0, places_L), axis=1)
        goes_on_BL &= (places_L - began_BL) % LONGEST != 0
        numbers: np.ndarray = (~goes_on_BL).cumsum(axis=1) - 1
        return numbers


def _letter(text: str) -> bool:
    return text.isalnum() or text == "\ufffd"
