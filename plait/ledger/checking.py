"""Whether replicas that must be alike are, judged by fingerprints of their state.

    rank 0 of      0: a1   1: a1   2: a1        alike
    rank 1 of      0: b2   1: b2   2: b7        replica 2 differs at rank 1: it is not sound, 0 and 1 are

Same ranks of all replicas hold the same parts. What more than half of them hold at a rank is right there; of two that differ nobody can
tell.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from plait import events
from plait.events import Event
from plait.ledger.messages import Member

Fingerprints = dict[str, str]
"""Of a rank's state: of all of it, or by name."""
IN_A_ROW = 3
"""Times that replicas may differ without having been alike between."""


@dataclass(frozen=True)
class Finding:
    """What differs. sound: replicas that hold what most do at each of their ranks; none where nobody can tell. odd: the names that differ,
    by who differs from most; by all that were asked where there are no sound ones."""

    sound: list[int]
    odd: dict[Member, list[str]]


class Checks:
    """What has come of comparisons. alike: the last step after which replicas were known to be. places: hosts and pids. failure: why there
    is no going on."""

    def __init__(self, record: Callable[[Event], None], clock: Callable[[], float], places: Mapping[Member, tuple[str, int]]) -> None:
        self._record, self._clock, self._places = record, clock, places
        self.alike = 0
        self.failure: str | None = None
        self._differed = 0
        """times in a row"""

    def passed(self, step: int) -> None:
        """Replicas are alike after a step."""
        self.alike, self._differed = step, 0

    def found(self, finding: Finding, step: int, can_heal: bool) -> bool:
        """They are not. can_heal: there is no checkpoint to return to. Returns whether the others' state is taken over; if not, all return.

        Whatever differs has been in sums since, so that all have been touched: only a checkpoint gives the true curve back. Each was
        compared before it was saved. Without one the beginning serves, unless steps that were good would be lost by it.
        """
        self._differed += 1
        heals = bool(finding.sound) and can_heal and self.alike > 0
        repaired = "healed" if heals else "rolled back"
        for (replica, rank), differs in finding.odd.items() if finding.sound else ():
            host, _ = self._places.get((replica, rank), ("", 0))
            self._record(events.Corrupted(self._clock(), step, replica, rank, host, differs, self.alike, repaired))
        if not finding.sound:
            differs = sorted({name for names in finding.odd.values() for name in names})
            self._record(events.Corrupted(self._clock(), step, None, 0, "", differs, self.alike, repaired))
        if self._differed >= IN_A_ROW:
            self.failure = _incurable(finding, self._differed)
        return heals


def compare(told: Mapping[Member, Fingerprints]) -> Finding | None:
    """None: all are alike."""
    odd: dict[Member, list[str]] = {}
    doubtful: dict[Member, list[str]] = {}
    for rank in sorted({rank for _, rank in told}):
        of_rank = {member: fingerprints for member, fingerprints in told.items() if member[1] == rank}
        right = _held_by_most(list(of_rank.values()))
        if right is None:
            names = _differing(list(of_rank.values()))
            doubtful |= dict.fromkeys(of_rank, names)
        else:
            odd |= {member: _differing([right, mine]) for member, mine in of_rank.items() if mine != right}
    if not odd and not doubtful:
        return None
    unsound = {replica for replica, _ in odd}
    sound = [] if doubtful else sorted({replica for replica, _ in told} - unsound)
    return Finding(sound, odd if sound else {**odd, **doubtful})


def _held_by_most(fingerprints: list[Fingerprints]) -> Fingerprints | None:
    """What more than half hold."""
    by_content = {tuple(sorted(each.items())): each for each in fingerprints}
    content, count = Counter(tuple(sorted(each.items())) for each in fingerprints).most_common(1)[0]
    return by_content[content] if 2 * count > len(fingerprints) else None


def _differing(fingerprints: list[Fingerprints]) -> list[str]:
    """Names that are not the same in all."""
    names = {name for each in fingerprints for name in each}
    return sorted(name for name in names if len({each.get(name) for each in fingerprints}) > 1)


def _incurable(finding: Finding, times: int) -> str:
    if finding.sound:
        who = " and ".join(sorted({f"replica {replica}" for replica, _ in finding.odd}))
        return f"{who} differed from the others {times} times in a row; what it runs on is not to be trusted: leave it out"
    return (
        f"replicas differed from one another {times} times in a row; either what one of them runs on is not to be trusted, or they run on "
        'unlike processors, which round differently: use alike ones, or elastic.check_every = "0 steps"'
    )
