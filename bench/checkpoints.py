"""What checkpoints cost: 25M parameters, one each 50 steps, while training goes on; and the same training without them."""

from __future__ import annotations

import statistics

from contest import PlaitTraining, contest, ratios
from place import MIDDLE, Figure, Place

STALLED = 0.05
EVERY = 50


def measure(place: Place) -> list[Figure]:
    every = 10 if place.effort.tiny else EVERY
    run_file = place.run_file(MIDDLE, train={"batch": 4, "micro_batch": 4})
    saving = PlaitTraining(run_file, place.new("out"), f'checkpoint.every="{every} steps"', name="saving")
    rounds = max(2, place.effort.rounds // 2)
    with saving, PlaitTraining(run_file, place.new("out"), name="plain") as plain:
        rates = contest([saving, plain], rounds, 0.0, every + 1)
        seconds = [every * 4 * 128 / rate for rate in rates[0]]
        stalled = [saved["stalled"] / statistics.median(seconds) for saved in saving.saved]
    size = f"{saving.saved[-1]['bytes'] / 2**20:,.0f} MiB in {statistics.median(saved['seconds'] for saved in saving.saved):.1f} s"
    return [
        Figure.of(f"stalled by checkpoints, 25M parameters, one each {every} steps", STALLED, stalled, at_least=False, detail=size),
        Figure.of("with checkpoints / without, tokens/s", 1 - STALLED, ratios(rates), detail="the writer's share of the cores included"),
    ]
