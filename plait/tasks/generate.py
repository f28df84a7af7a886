"""Text from a decoder: greedy or sampled, several prompts at once, each piece as it comes.

A text begins with end_of_text, as every document that the model read did, and goes on behind its prompt until the model says
end_of_text, a stop string appears, or its tokens or the model's context are used up. What a prompt gets does not depend on the
prompts beside it: each token is drawn by a hash of (seed, prompt number, place), and attention sees no padding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from plait.data.tokenizer import TextStream, Tokenizer
from plait.errors import UserError
from plait.model.decode import Step, prefill
from plait.model.decoder import Decoder
from plait.model.layered import Layered

Reason = Literal["end", "stop", "tokens", "context"]
OnText = Callable[[int, str], None]


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. Raises UserError for settings that mean nothing.

    tokens: most to write. temperature: 0 is greedy. top_k: among the k likeliest. top_p: among the likeliest that together
    have at least this probability. stop: texts before which to stop; they are not shown. seed: of the draws.
    """

    tokens: int = 200
    temperature: float = 0.8
    top_k: int | None = None
    top_p: float | None = None
    stop: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        for name, wrong, right in (
            ("tokens", self.tokens < 1, "at least 1"),
            ("temperature", not 0 <= self.temperature < float("inf"), "0 (greedy) or more"),
            ("top_k", self.top_k is not None and self.top_k < 1, "at least 1"),
            ("top_p", self.top_p is not None and not 0 < self.top_p <= 1, "more than 0 and at most 1"),
            ("stop", not isinstance(self.stop, tuple) or not all(self.stop), "a tuple of texts that are not empty"),
        ):
            if wrong:
                raise UserError(f"{name} = {getattr(self, name)!r}: must be {right}")


@dataclass(frozen=True)
class Completion:
    """What was written behind a prompt. tokens: all that were chosen, end_of_text and stop strings included."""

    prompt: str
    text: str
    tokens: list[int]
    reason: Reason


def generate(
    model: nn.Module,
    tokenizer: Tokenizer,
    prompts: list[str],
    settings: Sampling | None = None,
    on_text: OnText | None = None,
) -> list[Completion]:
    """Go on from each prompt. on_text is told (prompt number, piece) as soon as a piece of text is certain.

    model: a decoder, or one's own, which then computes all positions anew for each token. Raises UserError: a prompt longer than
    the model's context.
    """
    texts = _texts(model, tokenizer, prompts, settings or Sampling())
    for number, piece in _write(model, texts):
        if on_text is not None:
            on_text(number, piece)
    return [text.completion() for text in texts]


def stream(model: nn.Module, tokenizer: Tokenizer, prompt: str, settings: Sampling | None = None) -> Iterator[str]:
    """The pieces of one completion, each as soon as it is certain."""
    for _, piece in _write(model, _texts(model, tokenizer, [prompt], settings or Sampling())):
        yield piece


def _texts(model: nn.Module, tokenizer: Tokenizer, prompts: list[str], settings: Sampling) -> list[_Text]:
    if isinstance(model, Layered) and not model.model.causal:
        wants = "writes by beams: plait.tasks.beam" if model.model.family == "t5" else "tells tokens that are hidden, and writes no text"
        raise UserError(f'model.family = "{model.model.family}" {wants}')
    context: int | None = getattr(model, "context", None)
    encoded = [[tokenizer.end_of_text, *ids.tolist()] for ids in tokenizer.encode(prompts)]
    for number, ids in enumerate(encoded):
        if context is not None and len(ids) > context:
            raise UserError(
                f"prompt {number + 1}: its {len(ids)} tokens, the one that begins every text included, are more than "
                f"the model's context of {context}; shorten it"
            )
    return [_Text(*numbered, ids, tokenizer, settings, context) for numbered, ids in zip(enumerate(prompts), encoded, strict=True)]


def _write(model: nn.Module, texts: list[_Text]) -> Iterator[tuple[int, str]]:
    """Token by token, for all texts that are not done; yields pieces of text that are certain."""
    if not texts:
        return
    training = model.training
    model.eval()
    try:
        running, steps = texts, _Cached(model, texts) if isinstance(model, Decoder) else _Anew(model, texts)
        logits_BV = steps.first()
        while running:
            for text, token in zip(running, _choose(logits_BV, running), strict=True):
                yield from text.push(token)
            rows = [row for row, text in enumerate(running) if text.reason is None]
            running = [running[row] for row in rows]
            if running:
                logits_BV = steps.next(rows)
    finally:
        model.train(training)


class _Text:
    """One prompt and what has been written behind it. `reason` is None until it is done."""

    def __init__(self, number: int, prompt: str, ids: list[int], tokenizer: Tokenizer, settings: Sampling, context: int | None) -> None:
        self.number, self.prompt, self.ids, self.settings = number, prompt, ids, settings
        self.tokens: list[int] = []
        self.reason: Reason | None = None
        self._end_of_text = tokenizer.end_of_text
        self.room = settings.tokens if context is None else min(settings.tokens, context - len(ids) + 1)
        self._stream = TextStream(tokenizer)
        for token in ids[-8:]:  # the first piece may hang on what stands before it, a word's leading space
            self._stream.push(token)
        self._shown: list[str] = []
        self._held = ""

    def push(self, token: int) -> Iterator[tuple[int, str]]:
        """Take the next token; yields the text that is now certain."""
        self.tokens.append(token)
        if token == self._end_of_text:
            self.reason = "end"
        else:
            self._held += self._stream.push(token)
            if len(self.tokens) == self.room:
                self.reason = "tokens" if self.room == self.settings.tokens else "context"
        if self.reason is not None:
            self._held += self._stream.flush()
        piece = self._certain()
        if piece:
            self._shown.append(piece)
            yield self.number, piece

    def completion(self) -> Completion:
        assert self.reason is not None
        return Completion(self.prompt, "".join(self._shown), self.tokens, self.reason)

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

    def __init__(self, model: Decoder, texts: list[_Text]) -> None:
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

    def __init__(self, model: nn.Module, texts: list[_Text]) -> None:
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


def _choose(logits_BV: Tensor, texts: list[_Text]) -> list[int]:
    settings = texts[0].settings
    if settings.temperature == 0:
        chosen: list[int] = logits_BV.argmax(-1).tolist()
        return chosen
    draws_B1 = torch.tensor([[_draw(settings.seed, text.number, len(text.tokens))] for text in texts], dtype=torch.float64)
    return _sample(logits_BV.to("cpu", torch.float64), settings, draws_B1)


def _sample(logits_BV: Tensor, settings: Sampling, draws_B1: Tensor) -> list[int]:
    """The token at which the cumulative probability of the candidates passes the draw from [0, 1)."""
    logits_BC, tokens_BC = _candidates(logits_BV, settings)
    # The likeliest is moved to zero first, so that no temperature, however low, makes infinities of two.
    p_BC = ((logits_BC - logits_BC.amax(-1, keepdim=True)) / settings.temperature).softmax(-1)
    total_BC = p_BC.cumsum(-1)
    if settings.top_p is not None:
        p_BC = p_BC.masked_fill(total_BC - p_BC >= settings.top_p * total_BC[:, -1:], 0.0)
        total_BC = p_BC.cumsum(-1)
    chosen_B1 = torch.searchsorted(total_BC, draws_B1 * total_BC[:, -1:], right=True)
    last_B1 = p_BC.shape[-1] - 1 - (p_BC.flip(-1) > 0).to(torch.uint8).argmax(-1, keepdim=True)  # a draw next to 1 may be rounded past it
    chosen_B1 = chosen_B1.minimum(last_B1)
    chosen: list[int] = (chosen_B1 if tokens_BC is None else tokens_BC.gather(1, chosen_B1))[:, 0].tolist()
    return chosen


def _candidates(logits_BV: Tensor, settings: Sampling) -> tuple[Tensor, Tensor | None]:
    """Logits to choose among and their tokens, likeliest first; all in their own order, and None, where no order is needed."""
    if settings.top_k is not None:
        return logits_BV.topk(min(settings.top_k, logits_BV.shape[-1]))
    if settings.top_p is None or settings.top_p == 1:
        return logits_BV, None
    return logits_BV.sort(dim=-1, descending=True, stable=True)


def _draw(seed: int, number: int, place: int) -> float:
    """From [0, 1), for the token at a place behind a prompt: a hash, so that it hangs on nothing else."""
    key = hashlib.blake2b(f"generate {seed} {number} {place}".encode(), digest_size=8).digest()
    return (int.from_bytes(key, "little") >> 11) / 2**53
