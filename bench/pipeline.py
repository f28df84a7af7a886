"""The bubble of a pipeline: the share of its time in which ranks have nothing to compute, against what its schedule cannot avoid."""

from __future__ import annotations

import json
import statistics

from contest import WARM, PlaitTraining
from place import Figure, Place

RANKS, MICRO_BATCHES = 2, 8
IDEAL = (RANKS - 1) / (MICRO_BATCHES + RANKS - 1)
POINTS = 0.05
MODEL = {"family": "llama", "layers": 8, "width": 384, "heads": 6, "hidden": 1024}
STEPS = 6


def measure(place: Place) -> list[Figure]:
    return [_bubble(place, schedule) for schedule in ("1f1b", "gpipe")]


def _bubble(place: Place, schedule: str) -> Figure:
    """Of the Step events of a training that is otherwise alone."""
    layout = {"pipeline": RANKS, "schedule": schedule}
    train = {"batch": 4 * MICRO_BATCHES, "micro_batch": 4}
    out = place.new("out")
    run_file = place.run_file(MODEL, train=train, layout=layout, cluster={"threads": 1})
    with PlaitTraining(run_file, out) as plait:
        plait.run(WARM + STEPS * place.effort.rounds)
    events = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    bubbles = [event["bubble"]["0"] for event in events if event["event"] == "Step"][WARM:]
    what = f"pipeline = {RANKS}, {MICRO_BATCHES} micro-batches, {schedule}: bubble over the schedule's own {IDEAL:.1%}, in points"
    over = [bubble - IDEAL for bubble in bubbles]
    quarters = statistics.quantiles(over, n=4)
    median = statistics.median(over)
    return Figure(what, POINTS, median, quarters[0], quarters[2], at_least=False, detail=f"bubble {median + IDEAL:.1%}")
