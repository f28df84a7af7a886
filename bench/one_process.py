"""What plait costs: `plait train` in one process against a bare loop over the same module."""

from __future__ import annotations

import os

from contest import PlaitTraining, contest, ratios, script
from place import DEMO, Figure, Place

GOAL = 0.98


def measure(place: Place) -> list[Figure]:
    return [_compare(place, precision) for precision in ("fp32", "bf16")]


def _compare(place: Place, precision: str) -> Figure:
    threads = len(os.sched_getaffinity(0))
    run_file = place.run_file(DEMO, train={"precision": precision})
    bare = script(place, "bare", {"run_file": str(run_file), "batch": 16, "threads": threads})
    with PlaitTraining(run_file, place.new("out")) as plait, bare:
        rates = contest([plait, bare], place.effort.rounds, place.effort.seconds)
    what = f"plait train / bare loop, one process, {precision}"
    return Figure.of(what, GOAL, ratios(rates), detail=f"{max(rates[0]):,.0f} tokens/s")
