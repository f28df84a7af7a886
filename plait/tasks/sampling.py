"""Which token comes next: the likeliest, or one that is drawn."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from plait.errors import UserError


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. Raises UserError for settings that mean nothing.

    tokens: most to write. temperature: 0 is greedy. top_k: among the k likeliest. top_p: among the likeliest that together
    have at least this probability. stop: texts before which to stop; they are not shown. ends: tokens that end a text besides end_of_text.
    seed: of the draws.
    """

    tokens: int = 200
    temperature: float = 0.8
    top_k: int | None = None
    top_p: float | None = None
    stop: tuple[str, ...] = ()
    ends: tuple[int, ...] = ()
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


def choose(logits_BV: Tensor, places: Sequence[tuple[Sampling, int, int]]) -> list[int]:
    """The next token of each row, of which are given: its settings, its text's number, and how many tokens have been written."""
    chosen = [0] * len(places)
    for settings in dict.fromkeys(settings for settings, _, _ in places):
        rows = [row for row, place in enumerate(places) if place[0] == settings]
        logits_bV = logits_BV if len(rows) == len(places) else logits_BV[rows]
        for row, token in zip(rows, _chosen(logits_bV, settings, [places[row][1:] for row in rows]), strict=True):
            chosen[row] = token
    return chosen


def _chosen(logits_BV: Tensor, settings: Sampling, places: list[tuple[int, int]]) -> list[int]:
    if settings.temperature == 0:
        likeliest: list[int] = logits_BV.argmax(-1).tolist()
        return likeliest
    draws_B1 = torch.tensor([[_draw(settings.seed, *place)] for place in places], dtype=torch.float64)
    return sample(logits_BV.to("cpu", torch.float64), settings, draws_B1)


def sample(logits_BV: Tensor, settings: Sampling, draws_B1: Tensor) -> list[int]:
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
