"""What tokenizers of every kind share: the names that end a text, and the fingerprint of a file."""

from __future__ import annotations

import hashlib
from pathlib import Path

from plait.errors import DataError

ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[SEP]")


def fingerprint(path: Path, pattern: str | None = None) -> str:
    """Of a tokenizer's file, without loading it. Raises DataError when it cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes() + (pattern or "").encode()).hexdigest()
    except OSError as error:
        raise DataError(f"data.tokenizer.file: {path}: cannot be read: {error.strerror}") from None
