"""Micro-batches as units, for syncs that commit them one by one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from plait.events import Ranges
from plait.ledger import shares
from plait.ledger.messages import Vote, Work
from plait.ledger.plan import Plan


class Pieces:
    """Micro-batches as units: leased in order, committed in any, gathered into steps."""

    def __init__(self, plan: Plan, position: dict[str, Any] | None) -> None:
        self._plan = plan
        self.leased: dict[int, tuple[int, Work]] = {}
        self._done: dict[int, list[tuple[int, list[int], Vote, bool]]] = {}
        """by step: replica, range, vote, skipped"""
        position = position or {"step": 0}
        for step, entries in position.get("open", {}).items():
            self._done[int(step)] = [(replica, span, Vote(**vote), skipped) for replica, span, vote, skipped in entries]
        self._queue = self._to_do(position["step"])

    @property
    def idle(self) -> bool:
        return not self.leased

    def lease(self, unit: int, generation: int, replica: int) -> Work | None:
        for step, span in self._queue:
            work = Work(unit, generation, step, [span], [span])
            self.leased[unit] = (replica, work)
            return work
        return None

    def commit(self, vote: Vote, skipped: bool) -> None:
        replica, work = self.leased.pop(vote.unit)
        self._done.setdefault(work.step, []).append((replica, work.ranges[0], vote, skipped))

    def finished(self, step: int) -> tuple[int, list[Vote], dict[int, Ranges], bool] | None:
        """The votes of a step whose pieces are all in."""
        entries = self._done.get(step, [])
        if step > self._plan.steps or sum(end - first for _, (first, end), _, _ in entries) < self._plan.size(step):
            return None
        del self._done[step]
        by_replica: dict[int, Ranges] = {}
        for replica, span, _, _ in entries:
            by_replica.setdefault(replica, []).append(list(span))
        votes = [vote for _, _, vote, _ in entries]
        return step, votes, {key: shares.merge(spans) for key, spans in by_replica.items()}, all(entry[3] for entry in entries)

    def position(self, step: int) -> dict[str, Any]:
        """What a later ledger needs to lease exactly the pieces that are not in yet."""
        return {
            "step": step,
            "open": {
                str(open_step): [[replica, span, _as_dict(vote), skipped] for replica, span, vote, skipped in entries]
                for open_step, entries in self._done.items()
            },
        }

    def _to_do(self, committed: int) -> Iterator[tuple[int, list[int]]]:
        """(step, range) of each piece that is not in yet, made as it is asked for."""
        assert self._plan.piece is not None
        for step in range(committed + 1, self._plan.steps + 1):
            done = [span for _, span, _, _ in self._done.get(step, [])]
            for span in shares.pieces(shares.gaps(self._plan.size(step), done), self._plan.piece):
                yield step, span


def _as_dict(vote: Vote) -> dict[str, Any]:
    return {field: getattr(vote, field) for field in Vote.__dataclass_fields__}
