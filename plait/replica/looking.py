"""Looking up from a micro-batch: between a model's blocks, forward and backward, something else may be asked.

    forward    block ? block ? block ? head
    backward   block ? block ? block ?        ?: whether the unit still counts

On a host a micro-batch may take a second, and who waits for its end to hear that a peer is gone makes all wait. On a GPU it takes little,
and is only queued by those who could ask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn


class Looking:
    """Within `ask`, calls what that is given before each of `blocks` is computed, forward and backward. What it raises ends the pass,
    whose gradients are then of no use."""

    def __init__(self, blocks: nn.ModuleList) -> None:
        self._question: Callable[[], None] | None = None
        for block in blocks:
            block.register_forward_pre_hook(lambda *_: self._look())
            block.register_forward_hook(self._watch_gradient)

    @contextmanager
    def ask(self, question: Callable[[], None]) -> Iterator[None]:
        self._question = question
        try:
            yield
        finally:
            self._question = None

    def _watch_gradient(self, _: nn.Module, __: object, output: object) -> None:
        """It comes when backward is about to enter the block."""
        if self._question is not None and isinstance(output, Tensor) and output.requires_grad:
            output.register_hook(lambda _: self._look())

    def _look(self) -> None:
        if self._question is not None:
            self._question()
