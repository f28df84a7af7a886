"""What TensorBoard, Weights & Biases and MLflow are told: an event as numbers with names, and a run's settings without secrets."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from plait import spec
from plait.events import Evaluated, Event, Rebalanced, Resumed, RolledBack, Saved, Step

_SECRET = re.compile(r"(^|_)(token|secret|password|passwd|key|credentials?|webhook|authorization)s?$", re.IGNORECASE)
_LOGIN = re.compile(r"(?<=://)[^/@\s]+@")


def metrics(event: Event) -> tuple[int, dict[str, float]] | None:
    """The step and the numbers of an event; None for one that has no curve."""
    if isinstance(event, Step):
        return event.step, {name: value for name, value in _step(event) if value is not None}
    if isinstance(event, Evaluated):
        values = {"loss": event.loss, "perplexity": event.perplexity, "accuracy": event.accuracy, "f1": event.f1, **event.scores}
        return event.step, {f"{event.split}/{name}": value for name, value in values.items() if value is not None}
    if isinstance(event, Rebalanced):
        return event.step, {f"share/replica_{replica}": share for replica, share in event.shares.items()}
    if isinstance(event, Saved):
        return event.step, {"checkpoint/seconds": event.seconds, "checkpoint/stalled": event.stalled}
    return None


def void_after(event: Event) -> int | None:
    """The last step that still counts, where the event makes later ones void."""
    if isinstance(event, Resumed):
        return event.from_step
    return event.to_step if isinstance(event, RolledBack) else None


def public_settings(run: spec.Run) -> dict[str, Any]:
    """The resolved settings with dotted names, fit to leave the machine: secrets and logins in URLs are masked."""
    return {key: _masked(key, value) for key, value in spec.flatten(run.resolved()).items()}


def _step(event: Step) -> Iterator[tuple[str, float | None]]:
    yield "train/loss", event.loss
    yield "train/grad_norm", event.grad_norm
    yield "train/lr", event.lr
    yield "speed/tokens_per_s", event.tokens_per_s
    yield "speed/mfu", event.mfu
    yield "speed/seconds", event.seconds
    yield "memory/peak_gib", max(event.memory.values()) / 2**30 if event.memory else None
    for name in ("computed", "waited", "data"):
        yield from ((f"{name}/replica_{replica}", seconds) for replica, seconds in getattr(event, name).items())
    yield from ((f"sent_mib/replica_{replica}", sent / 2**20) for replica, sent in event.sent.items() if sent)
    yield from ((f"communicating/replica_{replica}", seconds) for replica, seconds in event.communicating.items() if seconds)
    updates = sum(event.staleness.values())
    yield "staleness/mean", sum(int(late) * count for late, count in event.staleness.items()) / updates if updates else None
    busiest = [(layer, max(load) * len(load) / sum(load)) for layer, load in enumerate(event.load) if any(load)]
    yield from ((f"experts/layer_{layer}_busiest_over_mean", ratio) for layer, ratio in busiest)


def _masked(name: str, value: Any) -> Any:
    if _SECRET.search(name.rpartition(".")[2]):
        return "***"
    if isinstance(value, dict):
        return {inner: _masked(inner, found) for inner, found in value.items()}
    if isinstance(value, list):
        return [_masked("", item) for item in value]
    return _LOGIN.sub("***@", value) if isinstance(value, str) else value
