"""What members and the ledger say to each other: plain values, no code, JSON on the wire.

member                                    ledger
  Join        ───────────────────────────►
              ◄───────────────────────────  Verdict      "begin", with the first work, once all are here
  Vote, Broken ──────────────────────────►
              ◄───────────────────────────  Verdict      for all members of the unit; carries the next work
              ◄───────────────────────────  Verdict      "void", "rollback": at any time, the unit does not count
  Measured, Kept, Unkept, Asked, Link, Failed, Left ─►   facts, unanswered
              ◄───────────────────────────  Closed       at any time: stop now

parameter server                          ledger
  Received, Summed ──────────────────────►               handed the state; a push is whole here; the norm of a sum
              ◄───────────────────────────  Fill, Add, Apply, Drop, Hand, Forget   in the order in which they are to be done
              ◄───────────────────────────  Left         all workers have
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from plait.events import Load, Ranges

Member = tuple[int, int]
"""(replica, rank within it); a parameter server is (-1, number)."""
SERVING = -1

Decision = Literal["begin", "commit", "skip", "rollback", "counted", "void"]
"""begin: there was no unit yet. counted: a push is in, or there was none, and what it is a piece of goes on. void: one who held a share is
gone, and the unit is done again."""
Request = Literal["save", "stop"]
Check = Literal["", "whole", "each", "heal"]
"""Of a lease of nothing: answered with the fingerprint of all that replicas hold alike, with one of each tensor, or once the new ones have
been handed the others' state."""


@dataclass(frozen=True, slots=True)
class Part:
    """What a replica computes of one step.

    ranges: its positions in the global batch of `step`. whole: positions whose target tokens are the divisor of its losses.
    """

    step: int
    ranges: Ranges
    whole: Ranges


@dataclass(frozen=True, slots=True)
class Work:
    """A lease: this replica's part of one unit, in steps one after the other (one, but for a round).

    unit: the lease's number; numbers rise through a run, whatever they count. phase: of the run, by which replicas agree. era: the number
    of what parameter servers were filled with. fill: this replica hands its state to them before anything else. owing_nothing: pushes
    bring all that compression has held back, since a checkpoint follows. peers: replicas that hold the unit together; with a lease of
    nothing they are to meet. new: those of them that have no state yet. measure: the link, when they have met. last: there will be
    no other; it is answered when all that was asked before is done. skipped: samples of the run's order that its steps
    leave out. check: replicas are compared.
    """

    unit: int
    generation: int
    parts: list[Part]
    phase: int = 0
    era: int = 0
    fill: bool = False
    owing_nothing: bool = False
    peers: list[int] = field(default_factory=list)
    new: list[int] = field(default_factory=list)
    measure: bool = False
    last: bool = False
    skipped: Ranges = field(default_factory=list)
    check: Check = ""

    @property
    def step(self) -> int:
        """The last one; 0 for a lease of nothing, which is answered when there is work."""
        return self.parts[-1].step if self.parts else 0


@dataclass(frozen=True, slots=True)
class Join:
    """address: where a parameter server listens to workers."""

    host: str
    pid: int
    device: str
    parameters: int
    address: str = ""


@dataclass(frozen=True, slots=True)
class Did:
    """A rank's sums over one part: of losses over the targets of its ranges, and its share of the squared global norm of the gradient
    that was, or will be, applied. load: tokens that it sent to each expert, by layer; none for a layer without a mixture of experts,
    or that it does not hold."""

    loss_sum: float
    squared_norm: float
    lr: float
    load: Load = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Vote:
    """One rank is done with its part of a unit, and what it sends has been sent.

    seconds: of its work on the unit; of these, waited: for others, computed: in forward and backward passes, data: in reading samples;
    communicating: in which something of it was under way. sent: bytes.
    memory: peak bytes so far. request: a signal it got. busy: seconds that it computed, of the seconds `under_way` that the
    micro-batches took on it, in a pipeline; zeros elsewhere. fingerprints: what a check asks for.
    """

    unit: int
    did: list[Did]
    seconds: float
    waited: float = 0.0
    memory: int = 0
    request: Request | None = None
    busy: float = 0.0
    under_way: float = 0.0
    sent: int = 0
    communicating: float = 0.0
    computed: float = 0.0
    data: float = 0.0
    fingerprints: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Broken:
    """What this member's replica holds with others broke, and it waits to be told what follows: who is gone is not for it to say."""

    unit: int
    why: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the ledger decided of a unit, and what follows in this order.

    grad_norm: global, before clipping. servers: where they listen, where that is news. version: of the parameters that they send, to be
    waited for. to_step: where a rollback leads.
    evaluate: this replica's validation sequences, or None. save: a checkpoint is due; who writes it has its `position`, from which a ledger
    goes on. bucket_bytes: a new size for buckets, 0 for none. work: the next lease; None ends the run. load: with a commit, that of the
    votes together.
    """

    unit: int
    step: int
    decision: Decision
    grad_norm: float
    to_step: int | None = None
    evaluate: Ranges | None = None
    save: bool = False
    position: dict[str, Any] | None = None
    work: Work | None = None
    load: Load = field(default_factory=list)
    version: int | None = None
    servers: list[str] = field(default_factory=list)
    bucket_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Received:
    """A server holds all that one rank pushed of a unit."""

    unit: int
    rank: int


@dataclass(frozen=True, slots=True)
class Summed:
    """This server's share of the squared norm of a step's gradient, once all pushes are in."""

    step: int
    squared_norm: float


@dataclass(frozen=True, slots=True)
class Filled:
    """This server has the state it was to be handed."""

    era: int


@dataclass(frozen=True, slots=True)
class Fill:
    """A server forgets all it has, who its workers are too, and waits for the state that a replica hands it."""

    era: int


@dataclass(frozen=True, slots=True)
class Add:
    """A server adds a push to the sum of `step`; after the last it tells the norm."""

    unit: int
    step: int
    last: bool


@dataclass(frozen=True, slots=True)
class Apply:
    """A server applies the push of a unit, or the sum of a step where `unit` is None, unless it is skipped; parameters are then of
    `version`, and go to the ranks of replicas `to`, with optimizer state to those in `whole`."""

    unit: int | None
    decision: Decision
    grad_norm: float
    lr: float
    version: int
    to: list[int]
    whole: list[int]


@dataclass(frozen=True, slots=True)
class Drop:
    """A push, or what came of it, is of no use any more."""

    unit: int


@dataclass(frozen=True, slots=True)
class Forget:
    """A replica is gone: who began before the number `before` as its rank, is no longer."""

    replica: int
    before: int


@dataclass(frozen=True, slots=True)
class Hand:
    """A server sends what it has now to the ranks of a replica."""

    version: int
    to: list[int]
    whole: list[int]


@dataclass(frozen=True, slots=True)
class Measured:
    """One rank's part of an evaluation: sums over its targets. unit: of the verdict that asked for it. correct: None where none is right
    or wrong. translated: [pair of languages, right translation, the model's]. confusion: of labels, how many of each (row) were told to be
    each (column)."""

    step: int
    unit: int
    split: str
    loss_sum: float
    correct: int | None
    targets: int
    translated: list[list[str]] = field(default_factory=list)
    confusion: list[list[int]] = field(default_factory=list)


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
    """A checkpoint could not be written. again: it is worth another try."""

    step: int
    why: str
    again: bool = False


@dataclass(frozen=True, slots=True)
class Asked:
    """Someone asks for a save, or for a save and a stop, at the next safe point."""

    request: Request


@dataclass(frozen=True, slots=True)
class Link:
    """The link between replicas, as it was measured."""

    latency: float
    bandwidth: float
    backend: str
    emulated: bool


@dataclass(frozen=True, slots=True)
class Failed:
    """This member raised; the text is its traceback.

    cause: "itself"; "peer", when a collective broke because another one is gone; "user", when the text is a user's mistake.
    """

    why: str
    cause: Literal["itself", "peer", "user"] = "itself"


@dataclass(frozen=True, slots=True)
class Beat:
    """A worker lives, and does what it says, for so many seconds now. waiting: for "peers" or the "ledger"; empty where it is itself at
    work. step: the last that it began; units: that it has settled. stack: where its main thread is, when it has been there for long.
    collective: of its replica's ranks, in which it is at this moment."""

    doing: str
    waiting: str
    seconds: float
    step: int
    units: int
    stack: str
    collective: str = ""


@dataclass(frozen=True, slots=True)
class Left:
    """This member has done all that was asked of it and goes."""


@dataclass(frozen=True, slots=True)
class Closed:
    why: str


Message = (
    Join
    | Vote
    | Broken
    | Verdict
    | Measured
    | Kept
    | Unkept
    | Asked
    | Link
    | Failed
    | Beat
    | Left
    | Closed
    | Received
    | Summed
    | Filled
    | Fill
    | Add
    | Apply
    | Drop
    | Forget
    | Hand
)
Outbox = list[tuple[Member, Message]]
_KINDS: dict[str, type] = {kind.__name__: kind for kind in get_args(Message)}


def name(member: Member) -> str:
    """How a member is called in messages to a person."""
    replica, number = member
    if replica != SERVING:
        return f"replica {replica} rank {number}"
    return f"parameter server {number}" if number else "the parameter server"


def encode(message: Message) -> bytes:
    return json.dumps({"kind": type(message).__name__, **dataclasses.asdict(message)}).encode()


def decode(frame: bytes) -> Message:
    """The message of a frame. Raises ValueError on anything else than one."""
    try:
        values = json.loads(frame)
        kind = _KINDS[values.pop("kind")]
        if values.get("work") is not None:
            values["work"] = _work(values["work"])
        if kind is Vote:
            values["did"] = [Did(**each) for each in values["did"]]
        message: Message = kind(**values)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"no message: {error}") from None
    return message


def _work(values: dict[str, Any]) -> Work:
    return Work(**{**values, "parts": [Part(**part) for part in values["parts"]]})
