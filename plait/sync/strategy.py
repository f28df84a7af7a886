"""The seam between replicas: what a strategy of synchronisation does in a unit."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Protocol

from plait.errors import PlaitError
from plait.events import Ranges
from plait.ledger.messages import Message, Part, Verdict, Vote, Work
from plait.replica.replica import Replica


class PeerLost(PlaitError):
    """A collective broke since another replica is gone; who it was is for the ledger to say."""


Rate = Callable[[int], float]
"""The learning rate of a step."""
Sparsity = Callable[[int], float | None]
"""The share of pruned matrices that is to be zero after a step; None where it stays."""
Targets = Callable[[int, Ranges | None], int]
"""Target tokens at positions of a step's global batch, or in all of it."""
State = dict[str, Any]


@dataclass(frozen=True)
class Traffic:
    """Of one unit. sent: bytes; communicating: seconds in which something was under way; waited: those that nothing hid."""

    sent: int = 0
    communicating: float = 0.0
    waited: float = 0.0


class Votes(Protocol):
    """The part of a ledger's client that a strategy needs."""

    def vote(self, vote: Vote) -> Verdict: ...
    def tell(self, message: Message) -> None: ...
    def hear(self) -> Verdict: ...
    def called(self) -> bool: ...


Report = Callable[[Traffic], Vote]
"""Makes the vote of a unit, from what the loop measured and what the strategy did."""


class Sync(Protocol):
    """`enter`, then units, then `leave`. `end` comes after a part's last micro-batch, `settle` after a unit's last part."""

    def meet(self, servers: list[str]) -> None:
        """Where parameter servers listen."""

    def join(self, verdict: Verdict, replica: Replica) -> Verdict:
        """What the ledger answered to a member that joined, before anything else; or what it answered then."""

    def enter(self, replica: Replica, owed: State) -> None:
        """From now on, afresh. Parameters and optimizer state are the same on all replicas. owed: gradients by path that compression
        held back of this replica's in the phase before, to be sent with the next."""

    def begin(self, work: Work, replica: Replica) -> Verdict | None:
        """A unit begins; or a verdict came instead, and the unit is void."""

    def end(self, part: Part, replica: Replica) -> float:
        """A step's micro-batches have come. Returns this rank's share of the squared norm of the gradient that was, or will be,
        applied."""

    def settle(self, work: Work, replica: Replica, ledger: Votes, report: Report) -> Verdict:
        """Agree with the other replicas, ask the ledger, and follow its verdict."""

    def void(self, replica: Replica) -> None:
        """The unit that was begun does not count, however far it came: all is as before it."""

    def leave(self, replica: Replica) -> State:
        """No longer. Parameters and optimizer state are the same on all replicas again. Returns gradients that are owed."""

    def alike(self, replica: Replica) -> State:
        """What all replicas hold alike between two units, to the last bit."""

    def state(self, replica: Replica) -> State:
        """What a checkpoint keeps besides the replica's own state, on the first replica; called on all at once."""

    def state_to_load(self, replica: Replica, names: Collection[str]) -> State:
        """Tensors for those of a checkpoint's names that this replica needs, to be loaded into and given to `restore`."""

    def resize(self, replica: Replica, bucket_bytes: int) -> None:
        """Buckets of another size, between two units."""

    def restore(self, replica: Replica, state: State) -> None: ...

    def close(self) -> None: ...
