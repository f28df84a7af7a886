"""The seam between replicas: what a synchronisation strategy does in a unit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from plait.errors import PlaitError
from plait.ledger.messages import Verdict, Vote, Work
from plait.replica.replica import Replica


class PeerLost(PlaitError):
    """A collective broke since another replica is gone; who it was is for the ledger to say."""


Rate = Callable[[int], float]
"""The learning rate of a step."""


class Votes(Protocol):
    """The part of a ledger's client that a strategy needs."""

    def vote(self, vote: Vote) -> Verdict: ...


class Report(Protocol):
    """Makes the vote of a unit: what the loop measured beside what the strategy says."""

    def __call__(self, squared_norm: float, waited: float, /) -> Vote: ...


class Sync(Protocol):
    """`begin` comes before the unit's first micro-batch, `settle` after its last."""

    def begin(self, work: Work, replica: Replica) -> None: ...

    def settle(self, work: Work, replica: Replica, ledger: Votes, report: Report) -> Verdict:
        """Agree with the other replicas, ask the ledger, and follow its verdict."""

    def state(self) -> dict[str, Any]: ...

    def close(self) -> None: ...
