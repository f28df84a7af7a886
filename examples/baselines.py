"""What a model must beat: simple methods that learn from the same training split, measured on the same test split."""

from __future__ import annotations

import lzma
import random
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

END = "\f"
"""Between two documents; a model too has to tell where a document ends."""


def xz_bits(train: Sequence[str], test: Sequence[str]) -> float:
    """Bits in which xz packs the test documents behind the training documents, which it can copy from."""
    learned = END.join(train).encode()
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": 1 << 26}]
    both = learned + END.join(["", *test]).encode()
    packed = [len(lzma.compress(text, format=lzma.FORMAT_RAW, filters=filters)) for text in (learned, both)]
    return 8.0 * (packed[1] - packed[0])


def ngram_bits(train: Sequence[str], test: Sequence[str], orders: Sequence[int]) -> tuple[float, int]:
    """Bits that an n-gram model of characters needs for the test documents, and the best of some orders for it.

    Interpolated by Witten and Bell (1991): after the context h, P(w|h) = (c(hw) + T(h) P(w|h')) / (c(h) + T(h)), where c counts what
    training holds, T(h) is how many different characters followed h there, and h' is h without its first character.
    """
    both = np.frombuffer(END.join([*train, *test, ""]).encode("utf-32-le"), np.uint32)
    letters, text = np.unique(both, return_inverse=True)
    learned = len(END.join([*train, ""]))
    chance = np.full(len(text) - learned, 1 / len(letters))
    context = np.zeros(len(text), np.int64)  # a number for what stands before each character
    bits = {}
    for order in range(1, max(orders) + 1):
        grams, gram = np.unique(context * len(letters) + text, return_inverse=True)
        seen = np.bincount(gram[:learned], minlength=len(grams))
        of_context = np.bincount(context[:learned], minlength=context.max() + 1)
        kinds = np.bincount((grams // len(letters))[seen > 0], minlength=len(of_context))
        here = context[learned:]
        known = of_context[here] > 0
        mixed = (seen[gram[learned:]] + kinds[here] * chance) / np.maximum(of_context[here] + kinds[here], 1)
        chance = np.where(known, mixed, chance)
        bits[order] = float(-np.log2(chance).sum())
        context = np.concatenate([[len(grams)], gram[:-1]])  # of nothing before the first: one that comes nowhere else
    best = min(orders, key=bits.__getitem__)
    return bits[best], best


class NGram:
    """Writes documents as an n-gram model without smoothing does: each character is one that followed the last few in training."""

    def __init__(self, train: Sequence[str], order: int) -> None:
        self._length = order - 1
        self._after: dict[str, list[str]] = defaultdict(list)
        for document in train:
            text = self._start + document + END
            for place in range(self._length, len(text)):
                self._after[text[place - self._length : place]].append(text[place])

    @property
    def _start(self) -> str:
        return END * self._length

    def write(self, chance: random.Random) -> str:
        text = self._start
        while len(text) == self._length or not text.endswith(END):
            text += chance.choice(self._after[text[-self._length :]])
        return text.strip(END)
