"""What a corpus holds, told from its records: how much was read and what stayed, why the rest went, how long, in which languages, and how
evenly its tokens lie over documents and sources, before and after."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from plait.data import records
from plait.data.objective import Translation
from plait.data.pairs import Pairs
from plait.data.rows import Conversations
from plait.data.skew import Pieces
from plait.data.splits import SPLITS
from plait.data.tokens import Prepared, TokenFile

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


@dataclass(frozen=True)
class Lengths:
    """Of documents, in characters or tokens. quantiles: at QUANTILES. bins: documents of 2^n to 2^(n+1) - 1. longest_share: of everything,
    what the longest hundredth holds. gini: 0 where all are equally long, near 1 where a few hold everything."""

    documents: int
    total: int
    mean: float
    quantiles: list[float]
    bins: list[int]
    longest_share: float
    gini: float

    @classmethod
    def of(cls, lengths: np.ndarray) -> Lengths:
        ordered = np.sort(lengths[lengths > 0]).astype(np.float64)
        count, total = len(ordered), float(ordered.sum())
        if not count:
            return cls(0, 0, 0.0, [0.0] * len(QUANTILES), [], 0.0, 0.0)
        longest = float(ordered[-max(1, count // 100) :].sum()) / total
        gini = float(2 * (np.arange(1, count + 1) * ordered).sum() / (count * total) - (count + 1) / count)
        bins = np.bincount(np.log2(ordered).astype(np.int64)).tolist()
        return cls(count, int(total), total / count, np.quantile(ordered, QUANTILES).tolist(), bins, longest, gini)


@dataclass(frozen=True)
class SourceShare:
    """One source: documents read and kept, characters read, tokens of all splits, and its share of all before and after."""

    name: str
    read: int
    kept: int
    characters: int
    tokens: int
    share_before: float
    share_after: float


@dataclass(frozen=True)
class Packing:
    """Conversations or pairs of the training split in rows. filled: the share of places that hold tokens, which is the share of the work
    that is of use where padding is computed. cut: longer than a row, and cut or left out."""

    packed: bool
    rows: int
    filled: float
    cut: int


@dataclass(frozen=True)
class Statistics:
    """reasons: why documents were dropped. changes: how many each step changed. languages: of all documents, and of those that stayed.
    filling: of conversations and of pairs, one a row and packed. pieces: what those of a step cost, where rows are of unlike lengths."""

    read: int
    kept: int
    reasons: dict[str, int]
    changes: dict[str, int]
    broken: dict[str, int]
    languages: dict[str, tuple[int, int]]
    splits: dict[str, tuple[int, int]]
    sources: list[SourceShare]
    before: Lengths
    after: Lengths
    tokens: Lengths
    filling: list[Packing]
    pieces: list[Pieces]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def of(prepared: Prepared, pieces: Sequence[Pieces] = ()) -> Statistics:
    """Raises DataError: prepared before records were kept."""
    rows = prepared.records()
    lineage = prepared.manifest.lineage
    assert lineage is not None
    kept = rows["reason"] == records.KEPT
    reasons = np.bincount(rows["reason"], minlength=len(lineage.reasons) + 1)[1:].tolist()
    return Statistics(
        read=len(rows),
        kept=int(kept.sum()),
        reasons=_falling(dict(zip(lineage.reasons, reasons, strict=True))),
        changes={step.name: step.documents for step in lineage.steps if step.kind == "changes"},
        broken=lineage.broken,
        languages=_languages(rows, kept),
        splits={split: (prepared.documents(split), prepared.tokens(split)) for split in SPLITS},
        sources=_sources(rows, kept, lineage.sources),
        before=Lengths.of(rows["before"]),
        after=Lengths.of(rows["after"][kept]),
        tokens=Lengths.of(rows["tokens"][kept]),
        filling=_filling(prepared),
        pieces=list(pieces),
    )


def _filling(prepared: Prepared) -> list[Packing]:
    """Both ways, whichever of them the run file asks for; empty where documents are texts."""
    if prepared.sequence is None or not prepared.whole:
        return []
    split, length, found = prepared.split("train", prepared.sequence), prepared.sequence, []
    if isinstance(split.masking, Translation):
        return [_of_pairs(split.sources, replace(split.masking, packed=packed)) for packed in (False, True)]
    files = split.sources
    for packed in (False, True):
        each = [Conversations(file, length, packed) for file in files]
        rows = sum(source.length for source in each)
        found.append(
            Packing(packed, rows, sum(int(source.lengths.sum()) for source in each) / (rows * length), sum(source.cut for source in each))
        )
    return found


def _of_pairs(files: list[TokenFile], sides: Translation) -> Packing:
    each = [Pairs(file, sides).filling for file in files]
    rows = sum(filling.rows for filling in each)
    filled = sum(filling.read + filling.told for filling in each) / (rows * (sides.source + sides.target))
    return Packing(sides.packed, rows, filled, sum(filling.longer for filling in each))


def _falling(counts: dict[str, int]) -> dict[str, int]:
    return dict(sorted(((name, count) for name, count in counts.items() if count), key=lambda each: -each[1]))


def _languages(rows: np.ndarray, kept: np.ndarray) -> dict[str, tuple[int, int]]:
    """Empty where nobody asked for a language."""
    if not rows["language"].any():
        return {}
    read = Counter(rows["language"].tolist())
    stayed = Counter(rows["language"][kept].tolist())
    return {language.decode() or "none": (count, stayed[language]) for language, count in read.most_common()}


def _sources(rows: np.ndarray, kept: np.ndarray, names: list[str]) -> list[SourceShare]:
    read, stayed = (np.bincount(source, minlength=len(names)) for source in (rows["source"], rows["source"][kept]))
    characters = np.bincount(rows["source"], rows["before"], len(names))
    tokens = np.bincount(rows["source"], rows["tokens"], len(names))
    shares = zip(characters / max(1, characters.sum()), tokens / max(1, tokens.sum()), strict=True)
    return [
        SourceShare(name, int(read[at]), int(stayed[at]), int(characters[at]), int(tokens[at]), float(before), float(after))
        for at, (name, (before, after)) in enumerate(zip(names, shares, strict=True))
    ]
