"""What checkpoints cost a training of 25M parameters that saves one each 50 steps.

Each save is followed by a window of steps; the median step of the run is the pace without one:

    lost = (time of the window - steps x pace) / (steps x pace)        the writer's share of the cores included
"""

from __future__ import annotations

import statistics
from itertools import pairwise

from contest import WARM, PlaitTraining
from place import MIDDLE, Figure, Place

STALLED = 0.05
EVERY = 50


def measure(place: Place) -> list[Figure]:
    every = 10 if place.effort.tiny else EVERY
    stalled, lost, size = _trained(place, every, "saving")
    _, copied, _ = _trained(place, every, "copying", f'checkpoint.copy="{place.new("there")}"')
    return [
        Figure.of(f"stalled by checkpoints, 25M parameters, one each {every} steps", STALLED, stalled, at_least=False, detail=size),
        Figure.of("lost to checkpoints, the writer's share of the cores included", STALLED, lost, at_least=False),
        Figure.of("lost to checkpoints that are copied to a second home on the same disk", STALLED, copied, at_least=False),
    ]


def _trained(place: Place, every: int, name: str, *overrides: str) -> tuple[list[float], list[float], str]:
    """Of each save what training was held up, of each window what was lost, both in parts of a window; and what a save takes."""
    run_file = place.run_file(MIDDLE, train={"batch": 4, "micro_batch": 4})
    with PlaitTraining(run_file, place.new(name), f'checkpoint.every="{every} steps"', *overrides, name=name) as saving:
        saving.run(WARM)
        [ticks] = saving.run(every * max(1, place.effort.rounds // 2) + 1)
        while not saving.saved:  # the last one may still be under way
            saving.run(1)
    steps = [end - start for (start, _), (end, _) in pairwise(ticks)]
    pace = every * statistics.median(steps)
    lost = [sum(steps[first : first + every]) / pace - 1 for first in range(0, len(steps) - every + 1, every)]
    size = f"{saving.saved[-1]['bytes'] / 2**20:,.0f} MiB in {statistics.median(saved['seconds'] for saved in saving.saved):.1f} s"
    return [saved["stalled"] / pace for saved in saving.saved], lost, size
