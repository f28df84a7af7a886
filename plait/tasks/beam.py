"""Texts that an encoder-decoder writes by beam search (plait/model/beam.py)."""

from __future__ import annotations

from plait.data import vocabulary
from plait.data.tokenizer import Tokenizer
from plait.model.beam import BATCH, Beams, Written, search
from plait.model.seq2seq import Seq2Seq

__all__ = ["BATCH", "Beams", "Written", "search", "text_of", "write"]


def write(model: Seq2Seq, tokenizer: Tokenizer, sources: list[str], settings: Beams | None = None) -> list[str]:
    """The likeliest text for each source."""
    end = tokenizer.end_of_text
    encoded = [[*ids.tolist(), end] for ids in tokenizer.encode(sources)]
    return [text_of(tokenizer, best) for best in search(model, encoded, vocabulary.begin(tokenizer), end, settings or Beams())]


def text_of(tokenizer: Tokenizer, written: Written) -> str:
    return tokenizer.decode([token for token in written.tokens if token != tokenizer.end_of_text])
