"""What of a sample a model shall tell: each next token, or tokens that are hidden from it.

How many is known from a row's length alone, so that a step's divisor needs no token to be read.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from plait import spec
from plait.data import corruption, vocabulary
from plait.data.tokenizer import Tokenizer
from plait.data.words import Words
from plait.errors import DataError

NO_TARGET = -100
RATE = 0.15


@dataclass(frozen=True)
class Masking:
    """Some tokens of each row are hidden, and told from all the others."""

    rate: float
    mask_token: int
    vocabulary: int
    words: Words | None = None

    def targets(self, lengths_B: np.ndarray) -> np.ndarray:
        """How many there are in rows of so many tokens."""
        return corruption.masked_count(lengths_B, self.rate)

    def apply(self, tokens_BL: np.ndarray, lengths_B: np.ndarray, keys_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The rows as they are shown, and targets, NO_TARGET where nothing is to be told."""
        words_BL = None if self.words is None else self.words.number(tokens_BL)
        shown_BL, told_BL = corruption.mask(tokens_BL, lengths_B, keys_B, self.rate, self.mask_token, self.vocabulary, words_BL)
        return shown_BL, np.where(told_BL, tokens_BL, NO_TARGET)


def build(objective: spec.Objective, tokenizer: Tokenizer) -> Masking | None:
    """None for the next token. Raises DataError: a tokenizer without what the objective needs."""
    if objective.kind == "causal":
        return None
    found = (tokenizer.token(name) for name in vocabulary.MASKS)
    token = next((token for token in found if token is not None), None)
    if token is None:
        raise DataError(
            f'data.objective.kind = "masked" needs a tokenizer with a mask token, and data.tokenizer.file has none of '
            f"{', '.join(vocabulary.MASKS)}; one that is trained here has it"
        )
    return Masking(objective.rate or RATE, token, tokenizer.vocabulary, Words.of(tokenizer) if objective.whole_words else None)
