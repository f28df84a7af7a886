"""Text from a decoder: greedy or sampled, several prompts at once, each piece as it comes.

A text begins with end_of_text, as every document that the model read did, and goes on behind its prompt until the model says
end_of_text, a stop string appears, or its tokens or the model's context are used up. What a prompt gets does not depend on the
prompts beside it: each token is drawn by a hash of (seed, prompt number, place), and attention sees no padding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from plait.data.tokenizer import Tokenizer
from plait.tasks.sampling import Sampling
from plait.tasks.texts import Reason, Text, begin, write

__all__ = ["Completion", "Reason", "Sampling", "generate", "stream"]

OnText = Callable[[int, str], None]


@dataclass(frozen=True)
class Completion:
    """What was written behind a prompt. tokens: all that were chosen, end_of_text and stop strings included."""

    prompt: str | list[int]
    text: str
    tokens: list[int]
    reason: Reason


def generate(
    model: nn.Module,
    tokenizer: Tokenizer,
    prompts: Sequence[str | list[int]],
    settings: Sampling | None = None,
    on_text: OnText | None = None,
) -> list[Completion]:
    """Go on from each prompt. on_text is told (prompt number, piece) as soon as a piece of text is certain.

    prompts: texts, or tokens. model: a decoder, or one's own, which then computes all positions anew for each token. Raises
    UserError: a prompt longer than the model's context.
    """
    settings = settings or Sampling()
    texts = [begin(model, tokenizer, prompt, settings, number) for number, prompt in enumerate(prompts)]
    for pieces in write(model, texts):
        for text, piece in pieces:
            if on_text is not None:
                on_text(text.number, piece)
    return [Completion(prompt, text.shown, text.tokens, _ended(text)) for prompt, text in zip(prompts, texts, strict=True)]


def stream(model: nn.Module, tokenizer: Tokenizer, prompt: str | list[int], settings: Sampling | None = None) -> Iterator[str]:
    """The pieces of one completion, each as soon as it is certain."""
    for pieces in write(model, [begin(model, tokenizer, prompt, settings or Sampling())]):
        yield from (piece for _, piece in pieces)


def _ended(text: Text) -> Reason:
    assert text.reason is not None
    return text.reason
