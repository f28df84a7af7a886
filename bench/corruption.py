"""What it costs to find silent corruption: the fingerprint of a replica's state, against the steps between two of them."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from place import SMALL, Figure, Place

import plait
from plait import spec
from plait.data.batches import Batches
from plait.replica.fingerprint import fingerprints
from plait.replica.replica import Replica

SHARE, OF_ONE = 0.002, 0.2
EVERY = 100
"""Steps between two comparisons, when the run file says nothing."""


def measure(place: Place) -> list[Figure]:
    torch.set_num_threads(1)
    run = spec.load(place.run_file(SMALL))
    prepared = plait.prepare(run)
    batches = Batches(prepared.split("train", run.data.sequence), run.train, prepared.fingerprint)
    replica = Replica(run, prepared.vocabulary, torch.device("cpu"))
    batch = batches.read(1, 0, batches.size(1))

    def step() -> None:
        replica.begin(batches.targets(1), 1)
        replica.accumulate(batch)
        replica.finish()
        replica.apply(1.0, 1e-4)

    step()
    state = replica.state()
    ratios = []
    for _ in range(place.effort.rounds):
        stepping, hashing = _seconds(step, place), _seconds(lambda: fingerprints(state, each=False), place)
        ratios.append(hashing / stepping)
    what = "fingerprint of 10M parameters and AdamW's state / a step of 2048 tokens"
    share = f"share of the time that comparing takes, each {EVERY} steps"
    return [
        Figure.of(what, OF_ONE, ratios, at_least=False),
        Figure.of(share, SHARE, [ratio / EVERY for ratio in ratios], at_least=False),
    ]


def _seconds(do: Callable[[], None], place: Place) -> float:
    """The quickest of a turn."""
    taken = []
    end = time.perf_counter() + place.effort.seconds
    while not taken or time.perf_counter() < end:
        began = time.perf_counter()
        do()
        taken.append(time.perf_counter() - began)
    return min(taken)
