"""Byte-level BPE: trained here, or read from any tokenizer.json.

Size = 256 bytes + special tokens, `<|endoftext|>` at least, + merges, learned by the `tokenizers` library.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer as Engine
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from plait.data import vocabulary
from plait.errors import DataError

END_OF_TEXT = vocabulary.ENDS[0]
_AT_ONCE = 1 << 18
"""Characters that are tokenised at once."""


class JsonTokenizer:
    """A tokenizer.json, by the library that defined it."""

    def __init__(self, path: Path) -> None:
        try:
            self._engine = Engine.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise DataError(f"data.tokenizer.file: {path}: is no tokenizer.json: {error}") from None
        self._engine.encode_special_tokens = True  # a document that quotes a special token's name gets no special token
        self._engine.no_truncation()
        self._engine.no_padding()
        self.vocabulary = max(self._engine.get_vocab().values()) + 1
        self.end_of_text = _end_of_text(self._engine, path)
        self.fingerprint = vocabulary.fingerprint(path)
        added = self._engine.get_added_tokens_decoder()
        self.specials = {token.content: number for number, token in added.items() if token.special}

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        """A handful of texts at a time: the library's own answer takes a hundred bytes a token."""
        encode = self._engine.encode_batch_fast
        return [np.array(encoding.ids, dtype=np.uint32) for some in _handfuls(texts) for encoding in encode(some, add_special_tokens=False)]

    def located(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        encoding = self._engine.encode(text, add_special_tokens=False)
        return np.array(encoding.ids, dtype=np.uint32), np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)

    def token(self, name: str) -> int | None:
        found: int | None = self._engine.token_to_id(name)
        return found

    def pieces(self) -> list[bytes]:
        """The bytes of each token, parts of characters as they are where the tokenizer is one of bytes."""
        names = [self._engine.id_to_token(number) or "" for number in range(self.vocabulary)]
        if '"ByteLevel"' not in self._engine.to_str():
            return [name.replace("\u2581", " ").encode() for name in names]
        return [bytes(_BYTES[sign] for sign in name) if all(sign in _BYTES for sign in name) else name.encode() for name in names]

    def model(self) -> dict[str, Any]:
        """What the file says of it: kind, vocabulary, merges."""
        found: dict[str, Any] = json.loads(self._engine.to_str())["model"]
        return found

    def decode(self, ids: Sequence[int]) -> str:
        return self._engine.decode([int(token) for token in ids], skip_special_tokens=False)


def train(texts: Iterable[str], size: int, special: Sequence[str] = (END_OF_TEXT,)) -> str:
    """The tokenizer.json of a byte-level BPE with `size` entries, of which the first are these special tokens.

    Raises DataError when the texts do not hold that many: merges end where no pair of tokens comes twice.
    """
    engine = Engine(models.BPE())
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, min_frequency=2, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
    )
    engine.train_from_iterator(texts, trainer)
    reached = engine.get_vocab_size()
    if reached < size:
        raise DataError(
            f"data.tokenizer: train = {size} is more than the corpus can give: "
            f"its training split yields {reached} entries; write train = {reached} or less, or add text"
        )
    return engine.to_str()


def framed(text: str, begin: str, end: str) -> str:
    """A tokenizer.json that itself puts special tokens around a text, or two, as samples with labels are read; as it is if it does so."""
    engine = Engine.from_str(text)
    if engine.post_processor is not None and not isinstance(engine.post_processor, processors.ByteLevel):
        return text
    tokens = [(name, engine.token_to_id(name)) for name in dict.fromkeys((begin, end))]
    single, pair = f"{begin} $A {end}", f"{begin} $A {end} $B:1 {end}:1"
    engine.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=tokens)
    return engine.to_str()


def _handfuls(texts: list[str]) -> Iterator[list[str]]:
    """Texts in order, so many that they have _AT_ONCE characters together."""
    first, held = 0, 0
    for end, text in enumerate(texts, 1):
        held += len(text)
        if held >= _AT_ONCE or end == len(texts):
            yield texts[first:end]
            first, held = end, 0


def _end_of_text(engine: Engine, path: Path) -> int:
    found = (engine.token_to_id(name) for name in vocabulary.ENDS)
    token = next((token for token in found if token is not None), None)
    if token is None:
        raise DataError(f"data.tokenizer.file: {path}: has no end of text; looked for {', '.join(vocabulary.ENDS)}")
    return token


def _byte_alphabet() -> dict[str, int]:
    """The byte of each sign of a byte-level vocabulary (GPT-2's encoder.py): itself where it prints, else the next from 256 on."""
    printing = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printing]
    return {chr(byte): byte for byte in printing} | {chr(256 + number): byte for number, byte in enumerate(others)}


_BYTES = _byte_alphabet()
