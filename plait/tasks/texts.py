"""Texts that are being written, some at a time, token by token."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from plait.data.tokenizer import TextStream, Tokenizer
from plait.errors import UserError
from plait.model.decode import Step, prefill
from plait.model.decoder import Decoder
from plait.model.layered import Layered
from plait.tasks.sampling import Sampling, choose

Reason = Literal["end", "stop", "tokens", "context"]


def begin(model: nn.Module, tokenizer: Tokenizer, prompt: str | list[int], settings: Sampling, number: int = 0) -> Text:
    """A text behind a prompt, which is text or tokens. Raises UserError: longer than the model's context."""
    if isinstance(model, Layered) and not model.model.causal:
        wants = "writes by beams: plait.tasks.beam" if model.model.family == "t5" else "tells tokens that are hidden, and writes no text"
        raise UserError(f'model.family = "{model.model.family}" {wants}')
    context: int | None = getattr(model, "context", None)
    ids = prompt if isinstance(prompt, list) else [tokenizer.end_of_text, *tokenizer.encode([prompt])[0].tolist()]
    if context is not None and len(ids) > context:
        raise UserError(
            f"prompt {number + 1}: its {len(ids)} tokens, the one that begins every text included, are more than "
            f"the model's context of {context}; shorten it"
        )
    return Text(number, ids, tokenizer, settings, context)


def write(model: nn.Module, texts: list[Text]) -> Iterator[list[tuple[Text, str]]]:
    """Until all are done: after each token of theirs, the pieces of text that are certain now. Who closes it before stops there."""
    if not texts:
        return
    training = model.training
    model.eval()
    try:
        running, steps = texts, _Cached(model, texts) if isinstance(model, Decoder) else _Anew(model, texts)
        logits_BV = steps.first()
        while running:
            chosen = choose(logits_BV, [(text.settings, text.number, len(text.tokens)) for text in running])
            yield [(text, piece) for text, token in zip(running, chosen, strict=True) if (piece := text.push(token))]
            rows = [row for row, text in enumerate(running) if text.reason is None]
            running = [running[row] for row in rows]
            if running:
                logits_BV = steps.next(rows)
    finally:
        model.train(training)


class Text:
    """A prompt's tokens and what has been written behind them. `reason` is None until it is done."""

    def __init__(self, number: int, ids: list[int], tokenizer: Tokenizer, settings: Sampling, context: int | None) -> None:
        self.number, self.ids, self.settings = number, ids, settings
        self.tokens: list[int] = []
        self.reason: Reason | None = None
        self._ends = {tokenizer.end_of_text, *settings.ends}
        self.room = settings.tokens if context is None else min(settings.tokens, context - len(ids) + 1)
        self._stream = TextStream(tokenizer)
        for token in ids[-8:]:  # the first piece may hang on what stands before it, a word's leading space
            self._stream.push(token)
        self._shown: list[str] = []
        self._held = ""

    def push(self, token: int) -> str:
        """Take the next token; returns the text that is now certain."""
        self.tokens.append(token)
        if token in self._ends:
            self.reason = "end"
        else:
            self._held += self._stream.push(token)
            if len(self.tokens) == self.room:
                self.reason = "tokens" if self.room == self.settings.tokens else "context"
        if self.reason is not None:
            self._held += self._stream.flush()
        piece = self._certain()
        self._shown.append(piece)
        return piece

    @property
    def shown(self) -> str:
        """All that was written, without what stopped it."""
        return "".join(self._shown)

    def _certain(self) -> str:
        """What is held and can no longer become a stop string; what can stays held unless the text is done."""
        starts = [place for stop in self.settings.stop if (place := self._held.find(stop)) >= 0]
        if starts:
            self.reason = "stop"
            end = min(starts)
        else:
            end = len(self._held) - (self._doubtful() if self.reason is None else 0)
        piece, self._held = self._held[:end], self._held[end:]
        return piece

    def _doubtful(self) -> int:
        """Characters at the end that may be a stop string's first."""
        lengths = (length for stop in self.settings.stop for length in range(1, len(stop)) if self._held.endswith(stop[:length]))
        return max(lengths, default=0)


class _Cached:
    """Computes each position once."""

    def __init__(self, model: Decoder, texts: list[Text]) -> None:
        self._model, self._running, self._step = model, texts, Step(model)
        longest = max(len(text.ids) for text in texts)
        self._padding = [longest - len(text.ids) for text in texts]
        self._cache = model.new_cache(len(texts), longest + max(text.room for text in texts), self._padding)

    @torch.inference_mode()
    def first(self) -> Tensor:
        """Logits behind the prompts, [B, V]."""
        padded = [[0] * padding + text.ids for padding, text in zip(self._padding, self._running, strict=True)]
        return prefill(self._model, torch.tensor(padded, device=self._model.embed.weight.device), self._cache)

    @torch.inference_mode()
    def next(self, rows: list[int]) -> Tensor:
        """Logits behind the newest token of these rows, which alone go on."""
        if len(rows) < len(self._running):
            self._cache.select(rows)
            self._running = [self._running[row] for row in rows]
        newest = [text.tokens[-1] for text in self._running]
        return self._step(torch.tensor(newest, device=self._model.embed.weight.device), self._cache)


class _Anew:
    """Computes all positions for each token: for models without a cache."""

    def __init__(self, model: nn.Module, texts: list[Text]) -> None:
        self._model, self._running = model, texts

    @torch.inference_mode()
    def first(self) -> Tensor:
        """Logits behind all that there is, [B, V]."""
        return _last_logits(self._model, [[*text.ids, *text.tokens] for text in self._running])

    def next(self, rows: list[int]) -> Tensor:
        """The same for these rows, which alone go on."""
        self._running = [self._running[row] for row in rows]
        return self.first()


def _last_logits(model: nn.Module, sequences: list[list[int]]) -> Tensor:
    """Logits behind the last token of each sequence, [B, V]."""
    device = next(model.parameters()).device
    tokens_BL = pad_sequence([torch.tensor(tokens) for tokens in sequences], batch_first=True).to(device)
    last_B = torch.tensor([len(tokens) - 1 for tokens in sequences], device=device)
    logits_BLV: Tensor = model(tokens_BL)
    return logits_BLV[torch.arange(len(sequences), device=device), last_B]
