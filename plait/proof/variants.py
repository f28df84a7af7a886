"""Variants of a run: a strategy each, and what it compresses; their [sync], of the run file and of defaults.

reference   allreduce, nothing compressed
name        "diloco", "allreduce/int8": a strategy, a server's by its update, and a codec
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from plait import spec
from plait.errors import RunFileError, UserError

REFERENCE = "allreduce"
STRATEGIES = ("allreduce", "local_sgd", "diloco", "synchronous", "bounded", "asynchronous")
CODECS = ("none", "bf16", "fp16", "int8", "topk")
ROUND = {"local_sgd": 16, "diloco": 50}
"""Steps between two averages where the run file has none; an eighth of the run if that is less."""
_SERVED = ("synchronous", "bounded", "asynchronous")


@dataclass(frozen=True)
class Variant:
    """One way to agree. sync: its [sync]; chosen: settings of it that neither the run file nor its name gave."""

    name: str
    sync: dict[str, Any]
    chosen: dict[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The name as a folder may have it."""
        return self.name.replace("/", "-")


def chosen_names(sync: Sequence[str], compress: Sequence[str] = ()) -> list[str]:
    """Names of variants, the reference first, each once. Raises UserError for an unknown one, listing those that are known."""
    asked = [_name(text, "--sync") for text in sync]
    asked += [_name(text, "--compress", "" if "/" in text else f"{REFERENCE}/") for text in compress]
    return list(dict.fromkeys([REFERENCE, *asked]))


def variant(run: spec.Run, name: str, steps: int) -> Variant:
    """A strategy's [sync]: what the run file says that belongs to it, and for the rest a default. steps: of the whole run.

    Nothing is compressed but where the name says so.
    """
    mode, _, codec = name.partition("/")
    if mode == "phases" and run.sync.strategy != "phases":
        raise RunFileError('--sync phases: the run file has no phases; write sync.strategy = "phases" and sync.phases')
    kept = _belonging(run, mode, codec)
    chosen = {key: value for key, value in _defaults(run, mode, steps).items() if key not in kept}
    compress = {"compress": codec} if codec else {}
    strategy: dict[str, Any] = {"strategy": "server", "update": mode} if mode in _SERVED else {"strategy": mode}
    return Variant(name, {**strategy, **kept, **chosen, **compress}, chosen)


def _name(text: str, option: str, before: str = "") -> str:
    mode, slash, codec = (before + text.strip()).partition("/")
    mode = "synchronous" if mode == "server" else mode
    if mode not in (*STRATEGIES, "phases"):
        raise UserError(f"{option} {text}: {mode or 'nothing'} is no strategy; known are {', '.join(STRATEGIES)}, and phases")
    if (slash and codec not in CODECS) or (slash and mode == "phases"):
        known = "phases have a codec each, in the run file" if mode == "phases" else f"known are {', '.join(CODECS)}"
        raise UserError(f"{option} {text}: {codec or 'nothing'} is no codec here; {known}")
    return mode if codec in ("", "none") else f"{mode}/{codec}"


def _belonging(run: spec.Run, mode: str, codec: str) -> dict[str, Any]:
    """Settings of the run file's [sync] that mean something under another strategy."""
    given = run.resolved()["sync"]
    strategy = "server" if mode in _SERVED else mode
    belongs = {"bucket_mib", "link"} | {key for key, strategies in spec.Sync.OF_STRATEGY.items() if strategy in strategies}
    belongs |= {"servers"} if mode in _SERVED else {"phases"} if mode == "phases" else set()
    belongs |= {"top_k"} if codec == "topk" else set()
    belongs -= {"update", *({"staleness"} if mode != "bounded" else ()), *({"damping"} if mode == "synchronous" else ())}
    return {key: value for key, value in given.items() if key in belongs}


def _defaults(run: spec.Run, mode: str, steps: int) -> dict[str, Any]:
    if mode in ROUND:
        return {"every": f"{max(1, min(ROUND[mode], steps // 8))} steps"}
    return {"staleness": max(4, run.layout.replicas - 1)} if mode == "bounded" else {}
