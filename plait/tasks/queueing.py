"""Requests for text, served together: those that come at once are one batch, and batches take turns, token by token.

    request ─┐                    ┌─ batch 1 ─ a token ─┐
    request ─┼─► waiting ─► begin ┤                     ├─► pieces to whoever asked
    request ─┘                    └─ batch 2 ─ a token ─┘

So nobody waits until another's text is complete, and a crowd costs as many forward passes as one. One thread computes; whoever asks hears
on a queue of their own.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from plait.data.tokenizer import Tokenizer
from plait.errors import UserError
from plait.tasks.sampling import Sampling
from plait.tasks.texts import Reason, Text, begin, write

MOST = 16
"""Texts in one batch."""


@dataclass
class Asked:
    """One request. pieces: text as it is written; None when it is complete."""

    prompt: str | list[int]
    settings: Sampling
    pieces: queue.SimpleQueue[str | None] = field(default_factory=queue.SimpleQueue)
    text: Text | None = None
    left: bool = False
    """Nobody listens any more."""
    error: Exception | None = None

    def __iter__(self) -> Iterator[str]:
        while (piece := self.pieces.get()) is not None:
            yield piece
        if self.error is not None:
            raise self.error

    @property
    def reason(self) -> Reason | None:
        return None if self.text is None else self.text.reason


class Queueing:
    """Computes in a thread of its own until it is closed."""

    def __init__(self, model: nn.Module, tokenizer: Tokenizer) -> None:
        self._model, self._tokenizer = model, tokenizer
        self._waiting: queue.Queue[Asked | None] = queue.Queue()
        self._thread = threading.Thread(target=self._compute, name="plait serve", daemon=True)
        self._thread.start()

    def ask(self, prompt: str | list[int], settings: Sampling) -> Asked:
        """Take a request. Raises UserError: a prompt that is longer than the model's context."""
        asked = Asked(prompt, settings)
        asked.text = begin(self._model, self._tokenizer, prompt, settings)
        self._waiting.put(asked)
        return asked

    def close(self) -> None:
        self._waiting.put(None)
        self._thread.join()

    def _compute(self) -> None:
        batches: list[_Batch] = []
        while True:
            arrived = self._arrived(block=not batches)
            if None in arrived:
                return
            some = [asked for asked in arrived if asked is not None]
            batches += [_Batch(self._model, some[first : first + MOST]) for first in range(0, len(some), MOST)]
            batches = [batch for batch in batches if batch.go_on()]

    def _arrived(self, block: bool) -> list[Asked | None]:
        """Who has come meanwhile; with nothing to do, the next to come and whoever comes with them."""
        arrived = [self._waiting.get()] if block else []
        while True:
            try:
                arrived.append(self._waiting.get_nowait())
            except queue.Empty:
                return arrived


class _Batch:
    def __init__(self, model: nn.Module, some: list[Asked]) -> None:
        self._asked = {id(asked.text): asked for asked in some}
        texts = [asked.text for asked in some if asked.text is not None]
        self._steps: Any = write(model, texts)

    def go_on(self) -> bool:
        """One token of each text; returns whether there is more to write."""
        if all(asked.left for asked in self._asked.values()):
            self._steps.close()
            return False
        try:
            pieces = next(self._steps, None)
        except Exception as error:  # it belongs to those who asked, not to this thread
            self._end(error)
            return False
        for text, piece in pieces or []:
            self._asked[id(text)].pieces.put(piece)
        for key in [key for key, asked in self._asked.items() if asked.reason is not None]:
            self._asked.pop(key).pieces.put(None)
        return pieces is not None and bool(self._asked)

    def _end(self, error: Exception) -> None:
        for asked in self._asked.values():
            asked.error = error if isinstance(error, UserError) else RuntimeError(f"{type(error).__name__}: {error}")
            asked.pieces.put(None)
