"""What dealing gains: conversations of very unlike lengths, a row each, against the same rows padded; and what pieces cost."""

from __future__ import annotations

import json
import os
import random
import statistics
from pathlib import Path

import numpy as np
from contest import PlaitTraining, contest, ratios
from place import DEMO, REPOSITORY, Figure, Place

import plait
from plait import spec
from plait.data import dealing, sources
from plait.data.batches import Batches
from plait.data.dealing import Cost
from plait.plan import counts

GAINED, EVEN_SHARES, EVEN = 1.0, 1.05, 1.2
LONGEST, BATCH, MICRO_BATCH = 256, 64, 8
STEPS, SHARES = 20, 4


def measure(place: Place) -> list[Figure]:
    run_file = _run_file(place)
    os.environ["PYTHONPATH"] = str(REPOSITORY)  # the tests' worker
    padding = PlaitTraining(run_file, place.new("padded"), worker="tests.padding:kept")
    with PlaitTraining(run_file, place.new("dealt")) as dealt, padding:
        rates = contest([dealt, padding], place.effort.rounds, place.effort.seconds)
    what = "rows of unlike lengths, dealt / padded, tokens/s"
    return [Figure.of(what, GAINED, ratios(rates), detail=f"{max(rates[0]):,.0f} learned tokens/s"), *_even(spec.load(run_file))]


def _even(run: spec.Run) -> list[Figure]:
    """The costliest of a step's pieces by their mean, over some steps; of the same rows as they come besides."""
    prepared = plait.prepare(run)
    batches = Batches(prepared.split("train", run.data.sequence), run.train, prepared.fingerprint)
    cost = Cost(run.data.sequence, dealing.PADDED_TO, counts.knee(run.model, prepared.vocabulary))
    shares: dict[str, list[float]] = {"come": [], "dealt": []}
    pieces: dict[str, list[float]] = {"come": [], "dealt": []}
    for step in range(1, STEPS + 1):
        lengths = batches.lengths(step)
        assert lengths is not None
        came = np.random.default_rng(step).permutation(lengths)
        for order, rows in (("come", came), ("dealt", lengths)):
            shares[order].append(_uneven([cost.of(cost.widths(share)).sum() for share in np.array_split(rows, SHARES)]))
        dealt = [lengths[rows] for rows in dealing.micro_batches(lengths, MICRO_BATCH, cost)]
        for order, cut in (("come", np.split(came, range(MICRO_BATCH, BATCH, MICRO_BATCH))), ("dealt", dealt)):
            pieces[order].append(_uneven([len(rows) * cost.of(cost.widths(rows)).max() for rows in cut]))
    return [
        _figure(f"costliest / mean of {SHARES} shares of a step, dealt", EVEN_SHARES, shares),
        _figure("costliest / mean of a step's micro-batches, dealt", EVEN, pieces),
    ]


def _figure(what: str, goal: float, found: dict[str, list[float]]) -> Figure:
    came = f"{statistics.median(found['come']):.2f} ({min(found['come']):.2f} to {max(found['come']):.2f}) as rows come"
    return Figure.of(what, goal, found["dealt"], at_least=False, detail=came)


def _uneven(costs: list[float]) -> float:
    return float(max(costs) / (sum(costs) / len(costs)))


def _run_file(place: Place) -> Path:
    """Conversations whose lengths are log-normal, out of the corpus."""
    data = spec.Data(corpus=[place.corpus])
    texts = [document.text for file in sources.every_file(sources.resolve(data)) for document in sources.documents(file, data)]
    words, chance = " ".join(texts).split(), random.Random(1)
    rows, at = [], 0
    for _ in range(400 if place.effort.tiny else 4000):
        count = min(int(chance.lognormvariate(3.2, 1.0)) + 1, LONGEST)
        at = at if at + count < len(words) else 0
        rows.append(json.dumps({"prompt": "Go on.", "answer": " ".join(words[at : at + count])}))
        at += count
    path = place.new("uneven", ".jsonl")
    path.write_text("\n".join(rows), encoding="utf-8")
    own = {"corpus": [str(path)], "chat": {}, "sequence": LONGEST, "prepared": str(place.new("prepared"))}
    return place.run_file(DEMO, data=own, train={"batch": BATCH, "micro_batch": MICRO_BATCH})
