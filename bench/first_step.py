"""From the command to the first step, files cached and data prepared, against importing torch and building the model."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from contest import WARM, PlaitTraining
from place import DEMO, Figure, Place

GOAL = 2.0
BUILD = """
import sys, time, torch
from plait import spec
from plait.model.build import build
run = spec.load(sys.argv[1])
build(run.model, 2048, run.data.sequence, run.train.seed)
print(time.time())
"""


def measure(place: Place) -> list[Figure]:
    return [_compare(place, replicas) for replicas in (1, 2)]


def _compare(place: Place, replicas: int) -> Figure:
    run_file = place.run_file(DEMO, layout={"replicas": replicas})
    pairs = [(_parts(place, run_file), _building(run_file)) for _ in range(place.effort.rounds + 1)][1:]
    middle = [statistics.median(values) for values in zip(*(parts for parts, _ in pairs), strict=True)]
    detail = "claimed {:.2f} s, workers built {:.2f}, stepped {:.2f}; ".format(*middle)
    return Figure.of(
        f"command to first step / import torch and build, {replicas} replica{'s' * (replicas > 1)}",
        GOAL,
        [parts[-1] / building for parts, building in pairs],
        at_least=False,
        detail=detail + f"import and build {statistics.median(building for _, building in pairs):.2f}",
    )


def _building(run_file: Path) -> float:
    """Seconds until the model is built."""
    began = time.time()
    done = subprocess.run([sys.executable, "-c", BUILD, str(run_file)], check=True, capture_output=True, text=True)
    return float(done.stdout) - began


def _parts(place: Place, run_file: Path) -> tuple[float, float, float]:
    """Seconds from the command until the folder is claimed, all workers are there, and the first step is done."""
    out = place.new("out")
    began = time.time()
    with PlaitTraining(run_file, out) as plait:
        plait.run(WARM)
        events = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    joined = max(event["time"] for event in events if event["event"] == "Joined")
    stepped = next(event["time"] for event in events if event["event"] == "Step")
    return (out / "about.json").stat().st_mtime - began, joined - began, stepped - began
