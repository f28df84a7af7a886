"""`plait train` on a BERT classifier against transformers' Trainer: equal model, batches, dtype, threads; without dropout, and with it."""

from __future__ import annotations

import json
import os
from pathlib import Path

from contest import PlaitTraining, contest, ratios, script
from place import Figure, Place

from plait import spec
from plait.data import sources

GOAL = 1.05
BERT = {"family": "bert", "layers": 4, "width": 256, "heads": 4}
PIECE = 1200
"""Characters of a sample: more than a sequence holds, so that none is padded."""


def measure(place: Place) -> list[Figure]:
    rows = _rows(place)
    return [_compare(place, rows, dropout) for dropout in (0.0, 0.1)]


def _compare(place: Place, rows: Path, dropout: float) -> Figure:
    data = {"corpus": [str(rows)], "objective": {"kind": "classify"}}
    run_file = place.run_file({**BERT, "dropout": dropout}, data=data)
    trainer = script(place, "trainer_of_labels", {"run_file": str(run_file), "threads": len(os.sched_getaffinity(0))})
    with PlaitTraining(run_file, place.new("out")) as plait, trainer:
        rates = contest([plait, trainer], place.effort.rounds, place.effort.seconds)
    what = f"plait train / transformers' Trainer, a BERT classifier, fp32, dropout {dropout}"
    return Figure.of(what, GOAL, ratios(rates), detail=f"{max(rates[0]):,.0f} rows/s")


def _rows(place: Place) -> Path:
    """The corpus in pieces, each with a label that its text tells."""
    data = spec.Data(corpus=[place.corpus])
    texts = [document.text for file in sources.every_file(sources.resolve(data)) for document in sources.documents(file, data)]
    whole = "\n".join(texts)
    pieces = [whole[first : first + PIECE] for first in range(0, len(whole) - PIECE, PIECE)]
    path = place.new("rows", ".jsonl")
    path.write_text("\n".join(json.dumps({"text": piece, "label": "many" if piece.count("e") > PIECE / 10 else "few"}) for piece in pieces))
    return path
