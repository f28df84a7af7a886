"""Tokenizers: text to token numbers and back, whatever file they come from.

`load` reads a tokenizer.json, a SentencePiece .model or a .tiktoken file; `TextStream` turns tokens that come one by
one into text. What is trained here is in `bpe.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from plait.data import bpe, foreign
from plait.errors import DataError


class Tokenizer(Protocol):
    """Text to token numbers and back.

    vocabulary: one more than the largest number. end_of_text: the number that stands before each document.
    fingerprint: of what it does, equal wherever the same file was read. specials: numbers of tokens that no text has, by name.
    """

    vocabulary: int
    end_of_text: int
    fingerprint: str
    specials: dict[str, int]

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        """The token numbers of each text, uint32, with nothing added; a special token's name is text like any other."""
        ...

    def located(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """(ids, edges): the token numbers of a text, and where each begins and ends in it, in characters, [tokens, 2]."""
        ...

    def token(self, name: str) -> int | None:
        """The number of a token, a special one say, by its name."""
        ...

    def pieces(self) -> list[bytes]:
        """The bytes of each token, a part of a character as it is; of a special token its name or nothing."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token numbers, special tokens by their names; bytes that are no UTF-8 become U+FFFD."""
        ...


def load(path: Path, pattern: str | None = None) -> Tokenizer:
    """The tokenizer of a file; `pattern` is how a .tiktoken file cuts text into words.

    Raises DataError: missing or broken file, unknown kind, no end of text in it, an extra that is not installed.
    """
    if not path.is_file():
        raise DataError(f"data.tokenizer.file: {path}: there is no such file")
    if path.suffix == ".json":
        return bpe.JsonTokenizer(path)
    if path.suffix == ".model":
        return foreign.SentencePiece(path)
    if path.suffix == ".tiktoken":
        return foreign.Tiktoken(path, pattern)
    raise DataError(f"data.tokenizer.file: {path}: must be a tokenizer.json, a SentencePiece .model or a .tiktoken file")


class TextStream:
    """Text from tokens that come one by one, never half a character.

    A token may hold a part of a character's bytes, and what it adds may depend on the token before it (a word's leading
    space). So the text that a token adds is told by decoding it together with those that were shown last:

        shown last | not shown yet
        -----------+--------------   decode(both)[len(decode(shown last)):], kept back while it ends in U+FFFD
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._shown: list[int] = []
        self._waiting: list[int] = []
        self._before = 0
        """characters of what was shown last, decoded by itself"""

    def push(self, token: int) -> str:
        """The text that is now certain."""
        self._waiting.append(token)
        added = self._added()
        if not added or added.endswith("\ufffd"):
            return ""
        self._shown, self._waiting = self._waiting, []
        self._before = len(self._tokenizer.decode(self._shown))
        return added

    def flush(self) -> str:
        """What was kept back: the end of the text, broken characters as U+FFFD."""
        added = self._added()
        self._shown, self._waiting, self._before = [], [], 0
        return added

    def _added(self) -> str:
        return self._tokenizer.decode([*self._shown, *self._waiting])[self._before :]
