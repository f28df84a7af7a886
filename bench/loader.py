"""The loader alone against what training consumes."""

from __future__ import annotations

from contest import PlaitTraining, contest, ratios, script
from place import DEMO, Figure, Place

GOAL = 50.0


def measure(place: Place) -> list[Figure]:
    run_file = place.run_file(DEMO)
    with script(place, "loading", {"run_file": str(run_file)}) as loading, PlaitTraining(run_file, place.new("out")) as plait:
        rates = contest([loading, plait], place.effort.rounds, place.effort.seconds / 2)
    return [Figure.of("loader alone / training", GOAL, ratios(rates), detail=f"{max(rates[0]) / 1e6:,.0f}M tokens/s")]
