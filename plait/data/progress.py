"""How far preparing is, for whoever wants to see it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Stage = Literal["reading", "cleaning", "comparing", "training the tokenizer", "tokenising", "writing"]


@dataclass(frozen=True)
class Progress:
    """Bytes are those of the source files, done in this stage."""

    done_bytes: int
    total_bytes: int
    documents: int
    tokens: int
    stage: Stage


Listener = Callable[[Progress], None]
