"""Two replicas, a core each, against what the machine can do at most: two bare loops at once that never speak to each other."""

from __future__ import annotations

from contest import PlaitTraining, contest, ratios, script
from place import SMALL, Figure, Place

GOAL = 0.93
BATCH = 32


def measure(place: Place) -> list[Figure]:
    run_file = place.run_file(SMALL, train={"batch": BATCH}, layout={"replicas": 2}, cluster={"threads": 1})
    config = {"run_file": str(run_file), "batch": BATCH // 2, "threads": 1}
    with PlaitTraining(run_file, place.new("out")) as plait, script(place, "bare", config, config) as bare:
        rates = contest([plait, bare], place.effort.rounds, 2.5 * place.effort.seconds)
    return [Figure.of("2 replicas / 2 bare loops at once, 10M parameters", GOAL, ratios(rates), detail=f"{max(rates[0]):,.0f} tokens/s")]
