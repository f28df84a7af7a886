"""Answers that stand in a passage: the span that an encoder's two scores, of first and of last tokens, say is best.

A passage that is too long is read in windows, as it was in training; the best span of all windows counts. What speaks for no answer is the
score of the first place, in the window where it is lowest (Devlin et al. 2019, 4.3; run_squad).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from plait.errors import UserError
from plait.tasks.classify import frame_of, needs_head, outputs_of
from plait.tasks.trained import Trained

LONGEST = 30
"""Tokens of an answer."""


@dataclass(frozen=True)
class Span:
    """answer: the text; "" where there is none. first, end: where it stands in the passage. score: of the best span, less that of none."""

    question: str
    answer: str
    first: int
    end: int
    score: float


def find(
    trained: Trained, asked: Sequence[tuple[str, str]], *, longest: int = LONGEST, none: float | None = None, batch: int = 32
) -> list[Span]:
    """Answers to (question, passage). none: there is no answer where the best span's score is not above that of none by more than this; a
    span is always given when left out. Raises UserError: a model without the head, an empty text.
    """
    needs_head(trained, "answer")
    if any(not part.strip() for both in asked for part in both):
        raise UserError("there is an empty question or passage")
    frame, stride = frame_of(trained), trained.run.data.objective.stride
    questions = trained.tokenizer.encode([question for question, _ in asked])
    located = [trained.tokenizer.located(passage) for _, passage in asked]
    windows = [
        (number, first, end)
        for number, (question, (ids, _)) in enumerate(zip(questions, located, strict=True))
        for first, end in frame.windows(len(question), len(ids), stride)
    ]
    rows = [frame.asked(questions[number], located[number][0][first:end]) for number, first, end in windows]
    best = [_Best() for _ in asked]
    for (number, first, end), row, outputs_RO in zip(windows, rows, outputs_of(trained, rows, batch), strict=True):
        best[number].take(outputs_RO.numpy(), first, end, len(row), longest)
    return [_told(*both, edges, found, none) for both, (_, edges), found in zip(asked, located, best, strict=True)]


class _Best:
    """The best span of some windows, in tokens of the passage, and the lowest score of none."""

    def __init__(self) -> None:
        self.score, self.none = -np.inf, np.inf
        self.span = (0, -1)

    def take(self, scores_R2: np.ndarray, first: int, end: int, row: int, longest: int) -> None:
        """scores_R2: of the places of a row of so many tokens, whose window [first, end) stands before its last one."""
        self.none = min(self.none, float(scores_R2[0].sum()))
        starts, ends = scores_R2[row - 1 - (end - first) : row - 1].T
        if not len(starts):
            return
        both = starts[:, None] + ends[None, :]
        valid = np.triu(np.ones_like(both, dtype=bool)) & ~np.triu(np.ones_like(both, dtype=bool), longest)
        place = int(np.where(valid, both, -np.inf).argmax())
        low, high = divmod(place, both.shape[1])
        if both[low, high] > self.score:
            self.score, self.span = float(both[low, high]), (first + low, first + high)


def _told(question: str, passage: str, edges: np.ndarray, best: _Best, none: float | None) -> Span:
    score = best.score - best.none
    if best.span[1] < best.span[0] or (none is not None and score <= none):
        return Span(question, "", 0, 0, score)
    first, end = int(edges[best.span[0], 0]), int(edges[best.span[1], 1])
    first += len(passage[first:end]) - len(passage[first:end].lstrip())  # a token may begin with a space
    return Span(question, passage[first:end].rstrip(), first, first + len(passage[first:end].rstrip()), score)
