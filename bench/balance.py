"""What it gains that shares follow speeds: two replicas, of which one is stopped for two thirds of the time, and two that are alike.

Tokens a second by the clock, of steps after the first ones, in which speeds are measured and shares change.
"""

from __future__ import annotations

from typing import Any

from place import DEMO, Figure, Place
from sync import SLOWED, _rate, _trained

from plait.cluster.nursery import Nursery

GAINED, LOST = 1.4, 0.97
WARM = 12
"""Steps."""


def measure(place: Place) -> list[Figure]:
    with Nursery(many=True) as nursery:
        runs = Runs(place, nursery)
        rows: list[Figure] = []
        for policy in ("dynamic", "auto"):
            what = f"balance.policy = {policy} / static, one of two replicas slowed {SLOWED}x, tokens/s"
            rows.append(runs.against_static(what, GAINED, policy, slowed=True))
        what = "pieces of a synchronous server, auto / static, one of two slowed, tokens/s"
        rows.append(runs.against_static(what, 1.0, "auto", slowed=True, sync={"strategy": "server", "push_every": 4}))
        rows.append(runs.against_static("balance.policy = dynamic / static, two that are alike, tokens/s", LOST, "dynamic", slowed=False))
        return rows


class Runs:
    def __init__(self, place: Place, nursery: Nursery) -> None:
        self._place = place
        self._nursery = nursery
        self._steps = WARM + (4 if place.effort.tiny else 40)

    def against_static(self, what: str, goal: float, policy: str, slowed: bool, sync: dict[str, Any] | None = None) -> Figure:
        """In turns."""
        pairs = [[self._tokens(each, slowed, sync or {}) for each in (policy, "static")] for _ in range(self._place.effort.rounds)]
        return Figure.of(what, goal, [balanced / static for balanced, static in pairs])

    def _tokens(self, policy: str, slowed: bool, sync: dict[str, Any]) -> float:
        settings = {"duration": f"{self._steps} steps", "batch": 16, "micro_batch": 2}
        sections = {"layout": {"replicas": 2}, "cluster": {"threads": 1}, "balance": {"policy": policy}, "sync": sync}
        run_file = self._place.run_file(DEMO, train=settings, **sections)
        return _rate(_trained(run_file, self._place.new("out"), self._nursery, slowed)[WARM:])
