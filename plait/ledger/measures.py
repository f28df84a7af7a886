"""What ranks say of a step, and what of it is a replica's."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from plait.events import Evaluated, Load, perplexity
from plait.ledger.messages import Did, Measured, Member, Vote


class Told(NamedTuple):
    """What a rank said of one step: of its part of it, with what it measured over the unit, which may be longer."""

    member: Member
    did: Did
    vote: Vote
    share: float = 1.0
    """of the unit's measures that belong to this step"""


def norm_of_sum(told: Iterable[Told]) -> float:
    """Of one gradient, whose squares add up over a replica's ranks."""
    return math.sqrt(math.fsum(each.did.squared_norm for each in told))


def norm_of_mean(told: Iterable[Told], replicas: int) -> float:
    """The root of the mean over replicas that each have a gradient of their own."""
    return math.sqrt(math.fsum(each.did.squared_norm for each in told) / replicas)


def slowest_of(votes: Mapping[Member, Vote]) -> int | None:
    """The replica that computed longest, where there are several."""
    computing = {member: vote.seconds - vote.waited for member, vote in votes.items()}
    several = len({replica for replica, _ in votes}) > 1
    return max(computing, key=lambda member: computing[member])[0] if several else None


def sum_of_loads(done: Iterable[Did]) -> Load:
    """By layer and expert, over those that tell of a layer."""
    total: Load = []
    for did in done:
        total += [[] for _ in range(len(total), len(did.load))]
        for layer, load in enumerate(did.load):
            if load:
                total[layer] = [sum(both) for both in zip(total[layer] or [0] * len(load), load, strict=True)]
    return total


def evaluated(time: float, parts: Sequence[Measured], scores: dict[str, float]) -> Evaluated:
    """What the parts of an evaluation, in a fixed order, add up to. scores: of translations."""
    targets = sum(part.targets for part in parts)
    loss = math.fsum(part.loss_sum for part in parts) / targets
    rights = [part.correct for part in parts if part.correct is not None]
    accuracy = sum(rights) / targets if len(rights) == len(parts) else None
    confusions = [part.confusion for part in parts if part.confusion]
    f1 = macro_f1([[sum(cells) for cells in zip(*rows, strict=True)] for rows in zip(*confusions, strict=True)]) if confusions else None
    return Evaluated(time, parts[0].step, parts[0].split, loss, perplexity(loss), accuracy, targets, scores, f1)


def f1_of_labels(confusion: Sequence[Sequence[int]]) -> list[float]:
    """The harmonic mean of precision and recall of each label; 0 where it was never told right. confusion: [right][told]."""
    told = [sum(row[label] for row in confusion) for label in range(len(confusion))]
    both = [2 * row[label] / ((sum(row) + told[label]) or 1) for label, row in enumerate(confusion)]
    return both


def macro_f1(confusion: Sequence[Sequence[int]]) -> float:
    """The mean over labels that come, or were told."""
    come = [bool(sum(row) or sum(other[label] for other in confusion)) for label, row in enumerate(confusion)]
    scores = [score for score, comes in zip(f1_of_labels(confusion), come, strict=True) if comes]
    return math.fsum(scores) / len(scores)


@dataclass
class Measures:
    """Of one replica in one step. slowest: its rank that computed and read longest."""

    seconds: float = 0.0
    waited: float = 0.0
    communicating: float = 0.0
    computed: float = 0.0
    data: float = 0.0
    memory: int = 0
    sent: int = 0
    slowest: int = 0


def measures_of(told: Iterable[Told]) -> dict[int, Measures]:
    """Each rank's votes added up; of a replica's ranks the one with most, and of what they sent, the sum."""
    of_rank: dict[Member, Measures] = {}
    for member, _, vote, share in told:
        rank = of_rank.setdefault(member, Measures())
        for measure in ("seconds", "waited", "communicating", "computed", "data"):
            setattr(rank, measure, getattr(rank, measure) + getattr(vote, measure) * share)
        rank.sent += round(vote.sent * share)
        rank.memory = max(rank.memory, vote.memory)
    of_replica: dict[int, Measures] = {}
    for (replica, number), rank in sorted(of_rank.items()):
        whole = of_replica.setdefault(replica, Measures())
        if rank.computed + rank.data > whole.computed + whole.data:
            whole.slowest = number
        for measure in ("seconds", "waited", "communicating", "computed", "data", "memory"):
            setattr(whole, measure, max(getattr(whole, measure), getattr(rank, measure)))
        whole.sent += rank.sent
    return of_replica


def bubbles(told: Iterable[Told]) -> dict[str, float]:
    """A pipeline's time is that of its first rank, which begins first and ends last."""
    of_replica: dict[str, list[Vote]] = {}
    for (replica, _), _, vote, _ in told:
        of_replica.setdefault(str(replica), []).append(vote)
    whole = {replica: max(vote.under_way for vote in ranks) for replica, ranks in of_replica.items()}
    return {
        replica: 1.0 - math.fsum(vote.busy for vote in of_replica[replica]) / (len(of_replica[replica]) * seconds)
        for replica, seconds in whole.items()
        if seconds
    }
