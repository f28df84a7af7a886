"""Where benchmarks run and how long: a scratch folder, a corpus, run files; and what a benchmark returns."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

import plait
from plait import spec

REPOSITORY = Path(__file__).resolve().parents[1]
CORPUS = str(REPOSITORY / "examples/corpora/austen/*.txt.zst")
SEQUENCE = 128
DEMO = {"family": "llama", "layers": 4, "width": 192, "heads": 6, "kv_heads": 2}
SMALL = {"family": "llama", "layers": 5, "width": 384, "heads": 6}
"""About 10M parameters, with a vocabulary of 2048."""
MIDDLE = {"family": "llama", "layers": 7, "width": 512, "heads": 8}
"""About 25M."""
TINY = {"layers": 2, "width": 32, "heads": 2, "kv_heads": 2}


@dataclass(frozen=True)
class Effort:
    """How long to measure. seconds: of one contender's turn. tiny: models of a few thousand parameters, to see that all runs."""

    rounds: int
    seconds: float
    tiny: bool = False


@dataclass(frozen=True)
class Figure:
    """One measured row. value: the median over rounds, in `low` to `high`; `at_least` tells which side of the goal is good."""

    what: str
    goal: float
    value: float
    low: float
    high: float
    at_least: bool = True
    detail: str = ""

    @classmethod
    def of(cls, what: str, goal: float, values: list[float], **others: Any) -> Figure:
        return cls(what, goal, statistics.median(values), min(values), max(values), **others)

    def __str__(self) -> str:
        return f"{self.what}: {self.value:.3g} ({self.low:.3g} to {self.high:.3g})"

    @property
    def met(self) -> bool:
        return self.value >= self.goal if self.at_least else self.value <= self.goal


class Place:
    """A scratch folder. `run_file` writes run files on one corpus, which is prepared once."""

    def __init__(self, folder: Path, prepared: Path, effort: Effort, corpus: str = CORPUS) -> None:
        self.folder = folder
        self.prepared = prepared
        self.effort = effort
        self.corpus = corpus
        self._made = 0

    def run_file(self, model: dict[str, Any], **sections: dict[str, Any]) -> Path:
        """A run file that never ends by itself; sections are laid over what is usual here."""
        tiny = TINY if self.effort.tiny else {}
        table: dict[str, Any] = {
            "model": {**model, **tiny},
            "data": {
                "corpus": [self.corpus],
                "tokenizer": {"train": 300 if self.effort.tiny else 2048},
                "sequence": SEQUENCE,
                "prepared": str(self.prepared),
            },
            "train": {"duration": "1M steps", "batch": 16, "micro_batch": 16, "schedule": {"name": "cosine", "warmup": "100 steps"}},
        }
        for name, section in sections.items():
            table[name] = {**table.get(name, {}), **section}
        path = self.new("run", ".toml")
        path.write_text(tomli_w.dumps(table), encoding="utf-8")
        plait.prepare(spec.load(path))
        return path

    def new(self, name: str, suffix: str = "") -> Path:
        """A path that nothing has yet."""
        self._made += 1
        return self.folder / f"{name}-{self._made}{suffix}"
