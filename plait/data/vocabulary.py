"""What tokenizers of every kind share: the names that end a text, and the fingerprint of a file."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from plait import spec
from plait.errors import DataError
from plait.spec.objective import SENTINELS

if TYPE_CHECKING:
    from plait.data.tokenizer import Tokenizer

ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[SEP]")

BEGINS = ("[CLS]", "<s>")
"""The token that a sample with a label begins with, where a tokenizer has one; the end of text begins it elsewhere."""
MASKS = ("<|mask|>", "[MASK]", "<mask>")
"""The token that stands for a masked one."""
PADDING = "<pad>"
"""What a T5's target begins with; the end of text where a tokenizer has none."""


def special_tokens(objective: spec.Objective) -> list[str]:
    """Those that a tokenizer that is trained here has for what a model shall learn."""
    besides = {"masked": [MASKS[0]], "span": [sentinel(number) for number in reversed(range(SENTINELS))]}
    return [ENDS[0], *besides.get(objective.kind, [])]


def begin(tokenizer: Tokenizer) -> int:
    """What a decoder's text begins with, behind an encoder: padding, as T5's, or the end of text where a tokenizer has none."""
    padding = tokenizer.token(PADDING)
    return tokenizer.end_of_text if padding is None else padding


def sentinel(number: int) -> str:
    """The token that stands for the so-manyth span that is hidden."""
    return f"<extra_id_{number}>"


def fingerprint(path: Path, pattern: str | None = None) -> str:
    """Of a tokenizer's file, without loading it. Raises DataError when it cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes() + (pattern or "").encode()).hexdigest()
    except OSError as error:
        raise DataError(f"data.tokenizer.file: {path}: cannot be read: {error.strerror}") from None
