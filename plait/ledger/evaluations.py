"""Evaluations under way: who has been told to measure a part, and what they found.

    verdict of a unit, with sequences to measure ─► Measured, of that unit ─► once all have told: Evaluated

Who is asked may be lost, or be called back to a checkpoint before it has measured; what comes of an evaluation that is void is not heard.
"""

from __future__ import annotations

from collections.abc import Callable

from plait.events import Event
from plait.ledger.measures import evaluated
from plait.ledger.messages import Measured, Member, Outbox, Verdict

Score = Callable[[list[list[str]]], dict[str, float]]


class Evaluations:
    """ranks: of a replica. score: what translations are worth."""

    def __init__(
        self, record: Callable[[Event], None], clock: Callable[[], float], ranks: int, score: Score = lambda translated: {}
    ) -> None:
        self._record = record
        self._score = score
        self._clock = clock
        self._ranks = ranks
        self._asked: dict[int, dict[tuple[int, Member], Measured | None]] = {}
        """by step, of each unit and member what it told; None as long as it has not"""

    def note(self, outbox: Outbox) -> None:
        """What is about to be sent: requests, and rollbacks, which make void what was asked of later steps."""
        for member, message in outbox:
            if not isinstance(message, Verdict):
                continue
            if message.decision == "rollback":
                self._asked = {step: asked for step, asked in self._asked.items() if step <= message.step}
            if message.evaluate is not None:
                self._asked.setdefault(message.step, {})[message.unit, member] = None

    def under_way(self, step: int) -> bool:
        return step in self._asked

    def take(self, member: Member, part: Measured, more_to_ask: bool) -> None:
        """A part is in; with the last one the whole is recorded. more_to_ask: somebody is still to be told to measure."""
        asked = self._asked.get(part.step, {})
        if (part.unit, member) not in asked:
            return
        asked[part.unit, member] = part
        told = [(other, one) for (_, other), one in asked.items() if one is not None]
        if more_to_ask or len(told) < len(asked):
            return
        del self._asked[part.step]
        ordered = [one for _, one in sorted(told, key=lambda each: (each[0], each[1].unit))]
        scores = self._score([each for one in ordered for each in one.translated])
        self._record(evaluated(self._clock(), ordered, scores))

    def forget(self, replica: int) -> None:
        """It is gone: what all its ranks have told counts, the rest another measures."""
        for asked in self._asked.values():
            told = [unit for (unit, member), one in asked.items() if member[0] == replica and one is not None]
            for unit, member in [key for key in asked if key[1][0] == replica]:
                if told.count(unit) < self._ranks:
                    del asked[unit, member]

    def forget_all(self) -> None:
        self._asked.clear()
