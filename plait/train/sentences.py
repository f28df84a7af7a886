"""Sentences of the validation split that a translator translates amid training, each rank of each replica its share of them."""

from __future__ import annotations

import numpy as np

from plait import spec
from plait.data import vocabulary
from plait.data.pairs import texts
from plait.data.tokens import Prepared
from plait.events import Ranges
from plait.ledger.progress import progress
from plait.model.beam import Beams, search
from plait.model.seq2seq import Seq2Seq
from plait.replica.gather import gathered
from plait.replica.replica import Replica


class Sentences:
    """So many pairs, spread evenly over the split's; those of several languages in proportion."""

    def __init__(self, run: spec.Run, prepared: Prepared, count: int) -> None:
        self._run = run
        split = prepared.split("validation", run.data.sequence)
        self._tokenizer = prepared.tokenizer()
        named = zip(split.names, split.sources, strict=True)
        every = [(name, *pair) for name, file in named for pair in texts(file, self._tokenizer)]
        size = min(count, len(every))
        self._chosen = [every[int(place)] for place in np.arange(size) * len(every) // size]
        self._most, self._tokens = run.data.sequence - 1, run.data.objective.target or run.data.sequence

    def translated(self, replica: Replica, ranges: Ranges, size: int) -> list[list[str]]:
        """[pair of languages, right translation, the model's] of those that fall to `ranges` of an evaluation of `size` sequences, and of
        them to this rank. All ranks of the replica call this together: where it is spread, each gathers the whole model for the while."""
        model = gathered(self._run, replica.assembly, replica.device)
        assert isinstance(model, Seq2Seq)
        mine = self._shared(ranges, size, replica.mesh.rank, replica.mesh.ranks)
        begin, end = vocabulary.begin(self._tokenizer), self._tokenizer.end_of_text
        sources = [[*ids.tolist()[: self._most], end] for ids in self._tokenizer.encode([source for _, source, _ in mine])]
        settings, told = Beams(1, 1.0, self._tokens), lambda count: progress(f"translated {count} validation sentences")
        found = search(model, sources, begin, end, settings, told=told) if mine else []
        said = [self._tokenizer.decode([token for token in each.tokens if token != end]).strip() for each in found]
        return [[pair, right, text] for (pair, _, right), text in zip(mine, said, strict=True)]

    def _shared(self, ranges: Ranges, size: int, rank: int, ranks: int) -> list[tuple[str, str, str]]:
        """What falls to a replica's ranges, and of that to one of its ranks."""
        count = len(self._chosen)
        replicas = [each for first, end in ranges for each in self._chosen[first * count // size : end * count // size]]
        return replicas[rank * len(replicas) // ranks : (rank + 1) * len(replicas) // ranks]
