"""BPE with merges left out at random, from the merges of a tokenizer.json.

    l o w e r      each merge that is possible now is left out with the rate; the best of the others is done; again
    lo w e r       until none is left or all are left out       (Provilkov, Emelianenko and Voita 2020, algorithm 1)
    low e r

The tokenizers library does the same, by a generator that cannot be told where to begin.
"""

from __future__ import annotations

from collections.abc import Iterator

from plait.data.bpe import JsonTokenizer
from plait.data.tokenizer import Tokenizer
from plait.errors import DataError


class Merges:
    """pairs: for two tokens the rank of their merge and what it makes. bases: of each token what it is made of before any merge."""

    def __init__(self, pairs: dict[tuple[int, int], tuple[int, int]], bases: dict[int, tuple[int, ...]]) -> None:
        self._pairs = pairs
        self._bases = bases

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Merges:
        """Raises DataError: a tokenizer of another kind."""
        model = tokenizer.model() if isinstance(tokenizer, JsonTokenizer) else {}
        if model.get("type") != "BPE":
            raise DataError("data.augment.bpe_dropout needs the merges of a tokenizer.json of kind BPE, which this tokenizer has not")
        known: dict[str, int] = model["vocab"]
        merges = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
        pairs = {(known[one], known[other]): (rank, known[one + other]) for rank, (one, other) in enumerate(merges)}
        made = {made for _, made in pairs.values()}
        bases = {number: tuple(known[character] for character in name) for name, number in known.items() if number in made}
        return cls(pairs, bases)

    def again(self, word: list[int], rate: float, numbers: Iterator[float]) -> list[int]:
        """The tokens of a word put together anew; numbers: in [0, 1), as many as are asked for."""
        symbols = [symbol for token in word for symbol in self._bases.get(token, (token,))]
        while len(symbols) > 1:
            best: tuple[int, int, int] | None = None
            for place in range(len(symbols) - 1):
                found = self._pairs.get((symbols[place], symbols[place + 1]))
                if found is not None and (best is None or found[0] < best[0]) and next(numbers) >= rate:
                    best = (*found, place)
            if best is None:
                break
            symbols[best[2] : best[2] + 2] = [best[1]]
        return symbols
