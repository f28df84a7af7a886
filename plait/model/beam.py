"""Beam search: what an encoder-decoder writes from a source, the likeliest of several texts that are followed at once.

    source ─ read once ─┬─ beam 0   The house ...     log p of a text so far; each step keeps the best of all their continuations
                        ├─ beam 1   A house ...
                        └─ beam 2   The building ...

A finished text is worth (sum of log p) / (tokens)^alpha: alpha 0 prefers short texts, 1 the best mean. A source is done when none of its
beams can still become worth more than the worst of its finished texts, so many of which are kept as there are beams. (Wu et al. 2016, 7,
with the tokens themselves as the length, as transformers has it.) Several sources are read and written together, those of like lengths; one
that is done leaves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from plait.errors import UserError
from plait.model.seq2seq import Reading, Seq2Seq

BATCH = 16
Candidate = tuple[int, int, float]
"""Which beam goes on, with which token, and log p of all."""


@dataclass(frozen=True)
class Beams:
    """How texts are looked for. Raises UserError for settings that mean nothing.

    beams: how many are followed; 1 is greedy. alpha: of the length penalty. tokens: most of a text.
    """

    beams: int = 4
    alpha: float = 1.0
    tokens: int = 200

    def __post_init__(self) -> None:
        for name in ("beams", "tokens"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} = {getattr(self, name)}: must be at least 1")


@dataclass(frozen=True)
class Written:
    """A text that was found. score: what it is worth."""

    tokens: list[int]
    score: float


@torch.inference_mode()
def search(
    model: Seq2Seq,
    sources: list[list[int]],
    begin: int,
    end: int,
    settings: Beams,
    batch: int = BATCH,
    told: Callable[[int], None] = lambda done: None,
) -> list[Written]:
    """The best text for each source, which all end with `end`; texts start behind `begin`. batch: sources at once. told: how many are
    done."""
    training = model.training
    model.eval()
    found: dict[int, Written] = {}
    along = sorted(range(len(sources)), key=lambda number: len(sources[number]))
    try:
        for first in range(0, len(along), batch):
            some = along[first : first + batch]
            found |= zip(some, _search_some(model, [sources[number] for number in some], begin, end, settings), strict=True)
            told(len(found))
    finally:
        model.train(training)
    return [found[number] for number in range(len(sources))]


class _Search:
    """Of one source the texts that are followed, and the best finished ones, so many as there are beams."""

    def __init__(self, end: int, settings: Beams) -> None:
        self._end, self._most, self._alpha = end, settings.beams, settings.alpha
        self._texts: list[list[int]] = [[]] * self._most
        self._log_p = [0.0] * self._most
        self._finished: list[Written] = []

    def go_on(self, candidates: list[Candidate]) -> list[Candidate] | None:
        """The continuations, best first, that are followed, one a beam; None when the best text is found."""
        followed: list[Candidate] = []
        for rank, (beam, token, log_p) in enumerate(candidates):
            if token == self._end and rank < self._most:
                self._finish([*self._texts[beam], token], log_p)
            elif token != self._end and len(followed) < self._most:
                followed.append((beam, token, log_p))
        if self._beats(followed[0][2], len(self._texts[0]) + 1):
            return None
        self._texts = [[*self._texts[beam], token] for beam, token, _ in followed]
        self._log_p = [log_p for _, _, log_p in followed]
        return followed

    def cut_off(self) -> None:
        """There is no more room: texts are finished as they are."""
        for text, log_p in zip(self._texts, self._log_p, strict=True):
            self._finish(text, log_p)

    @property
    def best(self) -> Written:
        return self._finished[0]

    def _finish(self, tokens: list[int], log_p: float) -> None:
        self._finished.append(Written(tokens, log_p / len(tokens) ** self._alpha))
        self._finished = sorted(self._finished, key=lambda text: -text.score)[: self._most]

    def _beats(self, log_p: float, length: int) -> bool:
        """Whether no text that goes on from the best one under way can be worth as much as the worst that is kept."""
        return len(self._finished) == self._most and self._finished[-1].score >= log_p / length**self._alpha


def _search_some(model: Seq2Seq, sources: list[list[int]], begin: int, end: int, settings: Beams) -> list[Written]:
    K, device = settings.beams, next(model.parameters()).device
    reading = _read(model, sources, settings, device)
    searches = [_Search(end, settings) for _ in sources]
    running = searches
    # All beams begin alike: only one may go on, or all would find the same.
    log_p_BK = torch.full((len(sources), K), -torch.inf, dtype=torch.float64, device=device)
    log_p_BK[:, 0] = 0.0
    last_N = torch.full((len(sources) * K,), begin, device=device)
    for _ in range(settings.tokens):
        log_p_NV = reading.next(last_N).double().log_softmax(-1)
        each = [search.go_on(some) for search, some in zip(running, _candidates(log_p_BK, log_p_NV), strict=True)]
        followed = [(place, some) for place, some in enumerate(each) if some is not None]
        running = [running[place] for place, _ in followed]
        if not running:
            break
        reading.select([place * K + beam for place, some in followed for beam, _, _ in some])
        last_N = torch.tensor([token for _, some in followed for _, token, _ in some], device=device)
        log_p_BK = torch.tensor([[log_p for _, _, log_p in some] for _, some in followed], dtype=torch.float64, device=device)
    for search in running:
        search.cut_off()
    return [search.best for search in searches]


def _read(model: Seq2Seq, sources: list[list[int]], settings: Beams, device: torch.device) -> Reading:
    lengths = [len(source) for source in sources]
    padded = [[*source, *[0] * (max(lengths) - len(source))] for source in sources]
    tokens_BS, lengths_B = torch.tensor(padded, device=device), torch.tensor(lengths, device=device)
    return model.read(tokens_BS, settings.beams, settings.tokens, lengths_B if min(lengths) < max(lengths) else None)


def _candidates(log_p_BK: Tensor, log_p_NV: Tensor) -> list[list[Candidate]]:
    """Of each source the best continuations of all its beams, twice as many as there are beams."""
    (B, K), V = log_p_BK.shape, log_p_NV.shape[1]
    summed_BN = (log_p_BK[..., None] + log_p_NV.view(B, K, V)).flatten(1)
    best_BC, place_BC = summed_BN.topk(min(2 * K, summed_BN.shape[1]))
    beams, tokens = (place_BC // V).tolist(), (place_BC % V).tolist()
    return [list(zip(*three, strict=True)) for three in zip(beams, tokens, best_BC.tolist(), strict=True)]
