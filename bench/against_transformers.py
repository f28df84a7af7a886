"""`plait train` against transformers' Trainer: an equal GPT-2, batch, dtype and threads; eager, and both compiled."""

from __future__ import annotations

import os

from contest import PlaitTraining, contest, ratios, script
from place import Figure, Place

GOAL = 1.1
GPT2 = {"family": "gpt2", "layers": 4, "width": 256, "heads": 4}


def measure(place: Place) -> list[Figure]:
    return [_compare(place, compiled) for compiled in (False, True)]


def _compare(place: Place, compiled: bool) -> Figure:
    run_file = place.run_file({**GPT2}, train={"compile": compiled})
    trainer = script(place, "trainer", {"run_file": str(run_file), "threads": len(os.sched_getaffinity(0))})
    with PlaitTraining(run_file, place.new("out")) as plait, trainer:
        rates = contest([plait, trainer], place.effort.rounds, place.effort.seconds)
    what = f"plait train / transformers' Trainer, GPT-2, fp32, {'compiled' if compiled else 'eager'}"
    return Figure.of(what, GOAL, ratios(rates), detail=f"{max(rates[0]):,.0f} tokens/s")
