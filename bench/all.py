"""`make bench`: every benchmark, one table, and results.json beside this file.

    python bench/all.py [--quick] [--only NAME ...] [--corpus GLOB]

Each prints ratios against a bare alternative, measured in turns within this run: medians over rounds, with the least and the most.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import torch
from place import CORPUS, Effort, Figure, Place
from rich.console import Console
from rich.table import Table

BENCHMARKS = (
    "one_process",
    "against_transformers",
    "classifying",
    "two_replicas",
    "tensor",
    "shard",
    "pipeline",
    "buckets",
    "line",
    "sync",
    "elastic",
    "balance",
    "dealing",
    "corruption",
    "first_step",
    "loader",
    "checkpoints",
    "preparing",
    "cleaning",
    "store",
    "huggingface",
    "generate",
    "gpu",
)
FULL = Effort(rounds=6, seconds=4.0)
QUICK = Effort(rounds=2, seconds=1.0)
TINY = Effort(rounds=1, seconds=0.1, tiny=True)


def main() -> None:
    arguments = _arguments()
    effort = TINY if arguments.tiny else QUICK if arguments.quick else FULL
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="plait-bench-") as folder:
        for name in arguments.only or BENCHMARKS:
            began = time.monotonic()
            place = Place(Path(folder) / name, Path(folder) / "prepared", effort, arguments.corpus)
            place.folder.mkdir()
            rows = importlib.import_module(name).measure(place)
            figures += rows
            print(f"{name}: {time.monotonic() - began:.0f} s; " + "; ".join(map(str, rows)), flush=True)
            _keep(figures, Path(arguments.results))
    _show(figures)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="plait's benchmarks")
    parser.add_argument("--quick", action="store_true", help="shorter and rougher")
    parser.add_argument("--tiny", action="store_true", help="only to see that everything runs")
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS)
    parser.add_argument("--corpus", default=CORPUS, help="a path or glob of text")
    parser.add_argument("--results", default=Path(__file__).with_name("results.json"))
    return parser.parse_args()


def _keep(figures: list[Figure], path: Path) -> None:
    """Written after each benchmark: a run that is cut off keeps what it measured."""
    results = {"machine": _machine(), "figures": [{**asdict(figure), "met": figure.met} for figure in figures]}
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def _show(figures: list[Figure]) -> None:
    table = Table(title=_machine())
    for title in ("what", "goal", "median", "least to most", "", ""):
        table.add_column(title)
    for figure in figures:
        goal = f"{'>=' if figure.at_least else '<='} {figure.goal:g}"
        mark = "[green]met[/]" if figure.met else "[red]missed[/]"
        spread = f"{figure.low:.3g} to {figure.high:.3g}"
        table.add_row(figure.what, goal, f"{figure.value:.3g}", spread, mark, figure.detail)
    Console(width=180).print(table)


def _machine() -> str:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    cores = len(os.sched_getaffinity(0))
    return f"{cores} cores {platform.machine()}, {device}, Python {platform.python_version()}, torch {torch.__version__}"


if __name__ == "__main__":
    main()
