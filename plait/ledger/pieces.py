"""Pieces of global batches: which are out, which are in, what is still to do."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from plait.events import Ranges
from plait.ledger import shares
from plait.ledger.measures import Told
from plait.ledger.messages import Did, Vote
from plait.ledger.plan import Plan


@dataclass(frozen=True, order=True)
class Piece:
    """Positions [first, end) of a step's global batch."""

    step: int
    first: int
    end: int

    @property
    def span(self) -> list[int]:
        return [self.first, self.end]


@dataclass(frozen=True)
class Entry:
    """A piece that counts: by which replica, and what its ranks said of it."""

    piece: Piece
    replica: int
    told: list[Told]
    skipped: bool = False
    late: int = 0


class Pieces:
    """Cut as they are handed out, in order; counted in any, and gathered into steps. What was handed out and is lost is joined to what
    is left, and cut anew.

    open_pieces: entries of steps that were not whole when a checkpoint was saved.
    """

    def __init__(self, plan: Plan, committed: int, last: int, open_pieces: dict[str, Any]) -> None:
        self._plan = plan
        self._entries: dict[int, list[Entry]] = {}
        for step, entries in open_pieces.items():
            self._entries[int(step)] = [_entry(int(step), values) for values in entries]
        self._left: list[Piece] = []
        """of steps that have been begun, in order; none touches another"""
        self._highest = committed
        self._fresh = range(committed + 1, last + 1)

    def next(self, most: int) -> int | None:
        """The step of the next piece, if it is not above `most`."""
        while not self._left and self._fresh and self._fresh[0] <= most:
            step, self._fresh = self._fresh[0], self._fresh[1:]
            done = [entry.piece.span for entry in self._entries.get(step, [])]
            self._left = [Piece(step, first, end) for first, end in shares.gaps(self._plan.size(step), done)]
        return self._left[0].step if self._left and self._left[0].step <= most else None

    def take(self, most: int, size: int) -> Piece | None:
        """The next piece of a step not above `most`, of `size` positions where there are so many together."""
        if self.next(most) is None:
            return None
        first = self._left.pop(0)
        piece = Piece(first.step, first.first, min(first.first + size, first.end))
        if piece.end < first.end:
            self._left.insert(0, Piece(first.step, piece.end, first.end))
        self._highest = max(self._highest, piece.step)
        return piece

    def give_back(self, piece: Piece) -> None:
        spans: dict[int, Ranges] = {}
        for each in sorted([*self._left, piece]):
            spans.setdefault(each.step, []).append(each.span)
        self._left = [Piece(step, first, end) for step, ranges in spans.items() for first, end in shares.merge(ranges)]

    def left(self, step: int) -> int:
        """Positions of a step that has been begun that are not handed out."""
        return sum(piece.end - piece.first for piece in self._left if piece.step == step)

    def begun(self, step: int) -> bool:
        """Whether a piece of a step has been handed out."""
        return self._highest >= step

    def count(self, entry: Entry) -> None:
        self._entries.setdefault(entry.piece.step, []).append(entry)

    def whole(self, step: int) -> list[Entry] | None:
        """The entries of a step, once all are in; they are forgotten here."""
        if not self.all_in(step):
            return None
        return self._entries.pop(step)

    def all_in(self, step: int) -> bool:
        entries = self._entries.get(step, [])
        return step <= self._plan.steps and sum(entry.piece.end - entry.piece.first for entry in entries) == self._plan.size(step)

    def position(self) -> dict[str, Any]:
        """What of steps that are not whole is in already, as plain data."""
        return {
            str(step): [[entry.replica, entry.piece.span, _plain(entry.told), entry.skipped, entry.late] for entry in entries]
            for step, entries in self._entries.items()
        }

    def covered(self) -> dict[int, Ranges]:
        """Positions that are in, of steps that are not whole."""
        return {step: shares.merge([entry.piece.span for entry in entries]) for step, entries in self._entries.items()}


def ranges_by_replica(entries: list[Entry]) -> dict[int, Ranges]:
    spans: dict[int, Ranges] = {}
    for entry in entries:
        spans.setdefault(entry.replica, []).append(entry.piece.span)
    return {replica: shares.merge(each) for replica, each in spans.items()}


def _entry(step: int, values: list[Any]) -> Entry:
    replica, (first, end), told, skipped, late = values
    return Entry(Piece(step, first, end), replica, [_told(*each) for each in told], skipped, late)


def _plain(told: list[Told]) -> list[list[Any]]:
    return [[list(each.member), asdict(each.did), asdict(replace(each.vote, did=[]))] for each in told]


def _told(member: list[int], did: dict[str, Any], vote: dict[str, Any]) -> Told:
    return Told((member[0], member[1]), Did(**did), Vote(**vote))
