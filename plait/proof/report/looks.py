"""How variants look, and what all sections share."""

from __future__ import annotations

from plait.proof.comparison import Comparison, Result
from plait.proof.report.markup import text
from plait.proof.report.plots import Look

_COLOURS = {"local_sgd": 1, "diloco": 2, "synchronous": 3, "bounded": 4, "asynchronous": 5, "allreduce": 0, "phases": 6}
_DASHES = {"bf16": "9 3", "fp16": "9 3 2 3", "int8": "5 3", "topk": "2 2.5"}
DASH = "–"
"""What is not known."""


def looks(comparison: Comparison) -> dict[str, Look]:
    """Of each variant: the strategy's colour and the codec's dash; of runs that exist, one after the other."""
    if comparison.existing:
        dashes = ["", *_DASHES.values()]
        names = [result.variant.name for result in comparison.results]
        return {name: Look(number % 7, dashes[number // 7 % len(dashes)]) for number, name in enumerate(names)}
    parts = [(result.variant.name, *result.variant.name.partition("/")) for result in comparison.results]
    return {name: Look(_COLOURS[mode], _DASHES.get(codec, "")) for name, mode, _, codec in parts}


def key(result: Result, comparison: Comparison) -> str:
    look = looks(comparison)[result.variant.name]
    return f'<svg class="key" viewBox="0 0 22 8" aria-hidden="true"><line {look.stroke} x1="0" x2="22" y1="4" y2="4"/></svg>'


def figure(caption: str, svg: str) -> str:
    return f"<figure><figcaption>{text(caption)}</figcaption>{svg}</figure>"


def what(comparison: Comparison) -> str:
    return "run" if comparison.existing else "sync"
