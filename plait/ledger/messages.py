"""What members and the ledger say to each other: plain values, no code, JSON on the wire.

member                                    ledger
  Join        ───────────────────────────►
              ◄───────────────────────────  Lease        the first work, once all are here
  Vote        ───────────────────────────►
              ◄───────────────────────────  Verdict      for all members of the unit; carries the next work
  Measured, Kept, Unkept, Asked, Failed, Left ─►         facts, unanswered
              ◄───────────────────────────  Closed       at any time: stop now
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any, Literal

from plait.events import Load, Ranges

Member = tuple[int, int]
"""(replica, rank within it); a parameter server is (-1, number)."""
SERVER: Member = (-1, 0)

Decision = Literal["commit", "skip", "rollback"]
Request = Literal["save", "stop"]


@dataclass(frozen=True, slots=True)
class Work:
    """A lease: this replica's part of one unit.

    unit: the lease's number. ranges: this replica's positions in the global batch of `step`; whole: those of the unit,
    which all its members share and whose target tokens are the divisor of the loss.
    """

    unit: int
    generation: int
    step: int
    ranges: Ranges
    whole: Ranges


@dataclass(frozen=True, slots=True)
class Join:
    host: str
    pid: int
    device: str
    parameters: int


@dataclass(frozen=True, slots=True)
class Vote:
    """One rank is done with its part of a unit, and its gradients are reduced.

    loss_sum: over the targets of its ranges. squared_norm: its part of the squared global norm of the reduced gradient.
    seconds: of its work on the unit; waited: of these, for others. memory: peak bytes so far. request: a signal it got.
    load: tokens that it sent to each expert, by layer; none for a layer without a mixture of experts, or that it does not hold.
    busy: seconds that it computed, of the seconds `under_way` that the micro-batches took on it, in a pipeline; zeros elsewhere.
    """

    unit: int
    loss_sum: float
    squared_norm: float
    lr: float
    seconds: float
    waited: float = 0.0
    memory: int = 0
    request: Request | None = None
    load: Load = field(default_factory=list)
    busy: float = 0.0
    under_way: float = 0.0


@dataclass(frozen=True, slots=True)
class Lease:
    work: Work | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the ledger decided of a unit, and what follows in this order.

    grad_norm: global, before clipping. to_step: where a rollback leads. evaluate: this replica's validation sequences, or
    None. save: a checkpoint is due, with `position` inside, from which a ledger goes on. work: the next lease; None ends the run.
    load: with a commit, that of the votes together.
    """

    unit: int
    step: int
    decision: Decision
    grad_norm: float
    to_step: int = 0
    evaluate: Ranges | None = None
    save: bool = False
    position: dict[str, Any] | None = None
    work: Work | None = None
    load: Load = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Measured:
    """One replica's part of an evaluation: sums over its targets."""

    step: int
    split: str
    loss_sum: float
    correct: int
    targets: int


@dataclass(frozen=True, slots=True)
class Kept:
    """A checkpoint is complete."""

    step: int
    path: str
    bytes: int
    seconds: float
    stalled: float


@dataclass(frozen=True, slots=True)
class Unkept:
    """A checkpoint could not be written."""

    step: int
    why: str


@dataclass(frozen=True, slots=True)
class Asked:
    """Someone asks for a save, or for a save and a stop, at the next safe point."""

    request: Request


@dataclass(frozen=True, slots=True)
class Failed:
    """This member raised; the text is its traceback.

    cause: "itself"; "peer", when a collective broke because another one is gone; "user", when the text is a user's mistake.
    """

    why: str
    cause: Literal["itself", "peer", "user"] = "itself"


@dataclass(frozen=True, slots=True)
class Left:
    """This member has done all that was asked of it and goes."""


@dataclass(frozen=True, slots=True)
class Closed:
    why: str


Message = Join | Vote | Lease | Verdict | Measured | Kept | Unkept | Asked | Failed | Left | Closed
_KINDS: dict[str, type] = {
    kind.__name__: kind for kind in (Join, Vote, Lease, Verdict, Measured, Kept, Unkept, Asked, Failed, Left, Closed)
}


def name(member: Member) -> str:
    """How a member is called in messages to a person."""
    return "the parameter server" if member == SERVER else f"replica {member[0]} rank {member[1]}"


def encode(message: Message) -> bytes:
    return json.dumps({"kind": type(message).__name__, **dataclasses.asdict(message)}).encode()


def decode(frame: bytes) -> Message:
    """The message of a frame. Raises ValueError on anything else than one."""
    try:
        values = json.loads(frame)
        kind = _KINDS[values.pop("kind")]
        if values.get("work") is not None:
            values["work"] = Work(**values["work"])
        message: Message = kind(**values)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"no message: {error}") from None
    return message
