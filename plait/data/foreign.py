"""SentencePiece and tiktoken files, read by their own libraries, which are extras."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from plait.data import vocabulary
from plait.errors import DataError

# How GPT-4 cuts text into words (cl100k_base, openai_public.py of tiktoken).
GPT4_PATTERN = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s"


class SentencePiece:
    """A SentencePiece .model."""

    def __init__(self, path: Path) -> None:
        try:
            import sentencepiece
        except ImportError:
            raise DataError(f"data.tokenizer.file: {path}: needs sentencepiece: pip install 'plait[sentencepiece]'") from None
        try:
            self._engine = sentencepiece.SentencePieceProcessor(model_file=str(path))
        except (RuntimeError, OSError) as error:
            hint = "a tiktoken file must end in .tiktoken"
            raise DataError(f"data.tokenizer.file: {path}: is no SentencePiece model ({hint}): {error}") from None
        self.vocabulary: int = self._engine.vocab_size()
        self.end_of_text = self._end_of_text(path)
        self.fingerprint = vocabulary.fingerprint(path)
        control = filter(self._engine.is_control, range(self.vocabulary))
        self.specials = {str(self._engine.id_to_piece(token)): token for token in control}

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        return [np.array(ids, dtype=np.uint32) for ids in self._engine.encode(texts)]

    def located(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        ids = self._engine.encode(text)
        ends = [min(len(text), len(self.decode(ids[: number + 1]))) for number in range(len(ids))]
        return np.array(ids, dtype=np.uint32), np.array([[0, *ends[:-1]], ends], dtype=np.int64).T[: len(ids)]

    def token(self, name: str) -> int | None:
        found = int(self._engine.piece_to_id(name))
        return None if found == self._engine.unk_id() else found

    def pieces(self) -> list[bytes]:
        return [_piece(self._engine.id_to_piece(token)) for token in range(self.vocabulary)]

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._engine.decode([int(token) for token in ids]))

    def _end_of_text(self, path: Path) -> int:
        pieces = [self._engine.piece_to_id(name) for name in vocabulary.ENDS]
        known = [self._engine.eos_id(), *(token for token in pieces if token != self._engine.unk_id())]
        token = next((token for token in known if token >= 0), None)
        if token is None:
            raise DataError(f"data.tokenizer.file: {path}: has no end of text; looked for its eos id and {', '.join(vocabulary.ENDS)}")
        return int(token)


class Tiktoken:
    """A .tiktoken file of ranks. Such files hold no special tokens: `<|endoftext|>` takes the number after the last."""

    def __init__(self, path: Path, pattern: str | None) -> None:
        try:
            import tiktoken
        except ImportError:
            raise DataError(f"data.tokenizer.file: {path}: needs tiktoken: pip install 'plait[tiktoken]'") from None
        ranks = _ranks(path)
        self._known = set(ranks.values())
        self.end_of_text = max(ranks.values()) + 1
        self.vocabulary = self.end_of_text + 1
        self.fingerprint = vocabulary.fingerprint(path, pattern)
        self.specials = {vocabulary.ENDS[0]: self.end_of_text}
        try:
            self._engine = tiktoken.Encoding(
                path.stem, pat_str=pattern or GPT4_PATTERN, mergeable_ranks=ranks, special_tokens=self.specials
            )
        except ValueError as error:
            raise DataError(f"data.tokenizer.pattern: {error}") from None

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        return [np.array(self._engine.encode_ordinary(text), dtype=np.uint32) for text in texts]

    def located(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        ids = self._engine.encode_ordinary(text)
        starts = np.array(self._engine.decode_with_offsets(ids)[1], dtype=np.int64)
        return np.array(ids, dtype=np.uint32), np.stack([starts, np.append(starts[1:], len(text))[: len(starts)]], axis=1)

    def token(self, name: str) -> int | None:
        return self.end_of_text if name == vocabulary.ENDS[0] else None

    def pieces(self) -> list[bytes]:
        return [self._engine.decode_single_token_bytes(token) if token in self._known else b"" for token in range(self.vocabulary)]

    def decode(self, ids: Sequence[int]) -> str:
        return self._engine.decode([int(token) for token in ids], errors="replace")


def _piece(name: str) -> bytes:
    """SentencePiece writes a space as U+2581, and a byte that has no piece of its own as <0xE4>."""
    byte = re.fullmatch("<0x([0-9A-F]{2})>", name)
    return bytes([int(byte[1], 16)]) if byte else name.replace("\u2581", " ").encode()


def _ranks(path: Path) -> dict[bytes, int]:
    """Lines of a token's bytes in base64 and its rank."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise DataError(f"data.tokenizer.file: {path}:{number}: is no line of a tiktoken file, base64 and a rank") from None
    missing = 256 - sum(bytes([byte]) in ranks for byte in range(256))
    if missing:
        raise DataError(f"data.tokenizer.file: {path}: lacks {missing} of the 256 bytes; the file is cut short or of another kind")
    return ranks
