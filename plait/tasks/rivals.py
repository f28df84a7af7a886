"""A translator measured on a split, beside what anyone could do without it: copying the source, and looking up the nearest one.

source ─┬─ beams ─────────────────────────────────────────────► BLEU, chrF
        ├─ as it is ──────────────────────────────────────────► BLEU, chrF
        └─ most similar source of the training split ─ its target ─► BLEU, chrF
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from plait.data.pairs import texts
from plait.data.scoring import Scorer, Scores
from plait.data.tokens import Prepared
from plait.tasks.beam import Beams
from plait.tasks.neighbours import Neighbours
from plait.tasks.trained import Trained
from plait.tasks.translate import Translator, prefixes

MEMORY = 100_000
"""Training pairs of a source among which the nearest is looked for, spread evenly over it."""
Pairs = list[tuple[str, str]]


@dataclass(frozen=True)
class Compared:
    """One pair of languages, by its source's name. signature: how scores were counted."""

    pair: str
    sentences: int
    model: Scores
    copied: Scores
    nearest: Scores
    signature: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def compare(
    trained: Trained,
    prepared: Prepared,
    split: str,
    settings: Beams | None = None,
    limit: int | None = None,
) -> list[Compared]:
    """Every pair of languages of a split. limit: sentences of each, spread evenly over it; all when left out."""
    before, learned = prefixes(trained.run.data), pairs_of(trained, prepared, "train", MEMORY)
    found = []
    for name, some in pairs_of(trained, prepared, split, limit):
        memory = [pair for other, pairs in learned for pair in pairs if before[other] == before[name]]
        found.append(_compared(name, some, Translator(trained, before[name], settings or Beams()), memory or [("", "")]))
    return found


def pairs_of(trained: Trained, prepared: Prepared, split: str, most: int | None = None) -> list[tuple[str, Pairs]]:
    """The pairs of a split as texts, by the name of their source, so many of each at most; as they were tokenised."""
    whole, before, tokenizer = prepared.split(split, trained.run.data.sequence), prefixes(trained.run.data), trained.tokenizer
    return [
        (name, [(source.removeprefix(before[name]), target) for source, target in texts(file, tokenizer, most)])
        for name, file in zip(whole.names, whole.sources, strict=True)
    ]


def _compared(name: str, pairs: Pairs, translator: Translator, learned: Pairs) -> Compared:
    sources, targets = [source for source, _ in pairs], [target for _, target in pairs]
    scorer = Scorer(targets)
    translations = translator.translate(sources)
    neighbours = Neighbours([source for source, _ in learned])
    nearest = [learned[neighbours.nearest(source)][1] for source in sources]
    model, copied, looked_up = (scorer.scores(each) for each in (translations, sources, nearest))
    return Compared(name, len(pairs), model, copied, looked_up, scorer.signature)
