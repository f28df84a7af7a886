"""Beam search: what an encoder-decoder writes from a source, the likeliest of several texts that are followed at once.

    source ─ read once ─┬─ beam 0   The house ...     log p of a text so far; each step keeps the best of all their continuations
                        ├─ beam 1   A house ...
                        └─ beam 2   The building ...

A finished text is worth (sum of log p) / (tokens)^alpha: alpha 0 prefers short texts, 1 the best mean. A row is done when none of its beams
can still become worth more than the worst of its finished texts, so many of which are kept as there are beams. (Wu et al. 2016, 7, with the
tokens themselves as the length, as transformers has it.)
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from plait.data.tokenizer import Tokenizer
from plait.data.vocabulary import PADDING
from plait.errors import UserError
from plait.model.seq2seq import Seq2Seq


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


def write(model: Seq2Seq, tokenizer: Tokenizer, sources: list[str], settings: Beams | None = None) -> list[str]:
    """The likeliest text for each source."""
    begin, end = tokenizer.token(PADDING), tokenizer.end_of_text
    encoded = [[*ids.tolist(), end] for ids in tokenizer.encode(sources)]
    found = search(model, encoded, end if begin is None else begin, end, settings or Beams())
    return [tokenizer.decode([token for token in best.tokens if token != end]) for best in found]


@torch.inference_mode()
def search(model: Seq2Seq, sources: list[list[int]], begin: int, end: int, settings: Beams) -> list[Written]:
    """The best text for each source, which all end with `end`; texts start behind `begin`."""
    training = model.training
    model.eval()
    try:
        device = next(model.parameters()).device
        return [_search_one(model, torch.tensor([source], device=device), begin, end, settings) for source in sources]
    finally:
        model.train(training)


@dataclass
class _Finished:
    """The best finished texts of a source, so many as there are beams."""

    most: int
    alpha: float
    texts: list[Written] = field(default_factory=list)

    def add(self, tokens: list[int], log_p: float) -> None:
        self.texts.append(Written(tokens, log_p / len(tokens) ** self.alpha))
        self.texts = sorted(self.texts, key=lambda text: -text.score)[: self.most]

    def beats(self, log_p: float, length: int) -> bool:
        """Whether no text that goes on from the best one under way can be worth as much as the worst that is kept."""
        return len(self.texts) == self.most and self.texts[-1].score >= log_p / length**self.alpha


def _search_one(model: Seq2Seq, source_1S: Tensor, begin: int, end: int, settings: Beams) -> Written:
    K = settings.beams
    reading = model.read(source_1S, rows=K, tokens=settings.tokens)
    finished = _Finished(K, settings.alpha)
    texts: list[list[int]] = [[] for _ in range(K)]
    # All beams begin alike: only one may go on, or all would find the same.
    log_p_K = torch.full((K,), -torch.inf, dtype=torch.float64, device=source_1S.device)
    log_p_K[0] = 0.0
    last_K = torch.full((K,), begin, device=source_1S.device)
    for length in range(1, settings.tokens + 1):
        log_p_KV = log_p_K[:, None] + reading.next(last_K).double().log_softmax(-1)
        best_2K, place_2K = log_p_KV.flatten().topk(min(2 * K, log_p_KV.numel()))
        rows, tokens = (place_2K // log_p_KV.shape[1]).tolist(), (place_2K % log_p_KV.shape[1]).tolist()
        going_on: list[tuple[int, int, float]] = []
        for rank, (row, token, log_p) in enumerate(zip(rows, tokens, best_2K.tolist(), strict=True)):
            if token == end and rank < K:
                finished.add([*texts[row], token], log_p)
            elif token != end and len(going_on) < K:
                going_on.append((row, token, log_p))
        if finished.beats(going_on[0][2], length):
            break
        texts = [[*texts[row], token] for row, token, _ in going_on]
        log_p_K = torch.tensor([log_p for _, _, log_p in going_on], dtype=torch.float64, device=source_1S.device)
        last_K = torch.tensor([token for _, token, _ in going_on], device=source_1S.device)
        reading.select([row for row, _, _ in going_on])
    else:
        for text, log_p in zip(texts, log_p_K.tolist(), strict=True):
            finished.add(text, log_p)
    return finished.texts[0]
