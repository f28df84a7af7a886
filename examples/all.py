"""Trains the examples, one after the other, and measures each beside what it must beat: `make examples`.

    python -m examples.all [NAME ...] [section.key=value ...]

What is there of runs/examples is found again: a training that was interrupted goes on. Figures are written to runs/examples/figures.json.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

from rich.console import Console
from rich.table import Table

import plait
from examples import measures
from examples.measures import Figure
from plait import spec
from plait.errors import PlaitError

OUT = Path("runs/examples")
FIGURES = OUT / "figures.json"


@dataclass(frozen=True)
class Example:
    """runs: run files that are trained one after the other, each from the one before, into runs/examples/NAME. measure: of the last one."""

    runs: tuple[str, ...]
    measure: Callable[[Path], list[Figure]]


EXAMPLES = {
    "austen": Example(("austen",), measures.generator),
    "verses": Example(("verses",), measures.composer),
    "sentiment": Example(("reviews_bert", "sentiment"), measures.classifier),
    "translator": Example(("translator",), measures.translator),
    "answers": Example(("answers",), measures.answerer),
}


def main(words: list[str]) -> None:
    overrides = [word for word in words if "=" in word]
    chosen = [word for word in words if "=" not in word] or list(EXAMPLES)
    if unknown := [name for name in chosen if name not in EXAMPLES]:
        raise SystemExit(f"examples/all.py: {unknown[0]}: is none of {', '.join(EXAMPLES)}")
    figures = {}
    for name in chosen:
        try:
            figures[name] = done(EXAMPLES[name], overrides)
        except PlaitError as error:
            print(f"examples/all.py: {name}: {error}", file=sys.stderr)
            raise SystemExit(error.exit_code) from None
    FIGURES.write_text(json.dumps({name: [asdict(each) for each in some] for name, some in figures.items()}, ensure_ascii=False, indent=1))
    Console(width=None if sys.stdout.isatty() else 140).print(table(figures))


def done(example: Example, overrides: list[str]) -> list[Figure]:
    base: list[str] = []
    for name in example.runs:
        print(f"\n$ plait train {' '.join([f'examples/{name}.toml', *base, *overrides])} --out {OUT / name}", flush=True)
        plait.train(spec.load(f"examples/{name}.toml", [*base, *overrides]), OUT / name)
        base = [f"finetune.from={OUT / name}"]  # of the run that is tuned from this one
    figures = example.measure(OUT / example.runs[-1])
    for each in figures:
        print(f"{each.name}: {each.shown}", flush=True)
    return figures


def table(figures: dict[str, list[Figure]]) -> Table:
    found = Table(box=None, pad_edge=False)
    for title, side in (("example", "left"), ("", "left"), ("model", "right"), ("beside", "left")):
        found.add_column(title, justify=side)
    for name, some in figures.items():
        for before, each in pairwise([None, *some]):
            assert each is not None
            found.add_row(name if before is None else "", each.name, each.value, each.beside)
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
