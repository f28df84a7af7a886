"""Events: facts of a run that are written down, one JSON object a line.

`events.jsonl` is a contract: names and fields below are kept. Watching, auditing and drawing read events;
nothing else is asked how a run went. Numbers that are not finite are written as null.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

Ranges = list[list[int]]  # half-open [first, end) positions in a global batch
Load = list[list[int]]  # tokens by layer and expert


@dataclass(frozen=True, slots=True)
class Event:
    """The root of events; `time` is seconds since the epoch."""

    time: float

    def to_json(self) -> str:
        values = {item.name: _finite(getattr(self, item.name)) for item in dataclasses.fields(self)}
        return json.dumps({"event": type(self).__name__, **values}, allow_nan=False, separators=(",", ":"))


@dataclass(frozen=True, slots=True)
class Started(Event):
    """A run begins: what it counts, where it computes, and the layout of each replica: lengths of the mesh's axes, of those above 1."""

    version: str
    replicas: int
    parameters: int
    steps: int
    device: str
    layout: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Resumed(Event):
    """The run goes on from a checkpoint, in this layout: Steps after `from_step` that stand before this line are void."""

    from_step: int
    replicas: int = 1
    layout: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Step(Event):
    """A committed step. Steps are numbered from 1.

    loss: mean over the target tokens of the global batch. grad_norm: global, before clipping. tokens, seconds: of this
    step. mfu: share of the devices' peak, or null where it is unknown. shares: positions in the global batch by replica.
    skipped: its loss or gradient was not finite, and no parameter changed. memory: peak bytes by replica.
    computed, waited, data: seconds in the step that each replica spent in forward and backward passes, in waiting for the others, and in
    reading its samples: of its ranks the one with most. load: tokens of the global batch sent to
    each expert, by layer; none for layers without a mixture of experts. bubble: of replicas whose layers are a pipeline, the share of
    its time in which a rank had nothing to compute, the mean over ranks. sync: how replicas agreed, in which phase of the run.
    sent: bytes that each replica sent for it, and parameter servers to it; communicating: seconds in which some of it was under way,
    hidden behind computing or not. slowest: the replica whose computing ended last. staleness: of gradients that a server applied as
    they came, how many were so many updates old. samples: of the run's order, those that it took.
    """

    step: int
    generation: int
    loss: float
    grad_norm: float
    lr: float
    tokens: int
    seconds: float
    tokens_per_s: float
    mfu: float | None
    shares: dict[str, Ranges]
    skipped: bool = False
    memory: dict[str, int] = field(default_factory=dict)
    waited: dict[str, float] = field(default_factory=dict)
    load: Load = field(default_factory=list)
    bubble: dict[str, float] = field(default_factory=dict)
    sync: str = "allreduce"
    phase: int = 0
    sent: dict[str, int] = field(default_factory=dict)
    communicating: dict[str, float] = field(default_factory=dict)
    slowest: str | None = None
    staleness: dict[str, int] = field(default_factory=dict)
    computed: dict[str, float] = field(default_factory=dict)
    data: dict[str, float] = field(default_factory=dict)
    samples: Ranges = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Evaluated(Event):
    """Parameters after `step` on a split; accuracy is the share of next tokens told right, or of labels, or of ends of answers; null where
    numbers are told. tokens: targets. scores: of a translator whose sentences are translated, BLEU and chrF, of 100; by pair of languages
    where there are several. f1: of labels, the mean of the F1 of each; null elsewhere."""

    step: int
    split: str
    loss: float
    perplexity: float
    accuracy: float | None
    tokens: int
    scores: dict[str, float] = field(default_factory=dict)
    f1: float | None = None


@dataclass(frozen=True, slots=True)
class Saved(Event):
    """A checkpoint is complete: its manifest stands. seconds: writing it; stalled: training held up by it."""

    step: int
    path: str
    bytes: int
    seconds: float
    stalled: float


@dataclass(frozen=True, slots=True)
class SaveFailed(Event):
    """A checkpoint could not be written; the last good one stays the newest."""

    step: int
    why: str


@dataclass(frozen=True, slots=True)
class Copied(Event):
    """The checkpoint of `step` is complete in the second home too. seconds: since it was begun there."""

    step: int
    url: str
    bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class CopyFailed(Event):
    """The checkpoint of `step` could not be copied to the second home; it is tried again, or the next one instead."""

    step: int
    why: str


@dataclass(frozen=True, slots=True)
class Damaged(Event):
    """A checkpoint is not what was written, and is passed over. path: its folder, or its URL in the second home."""

    step: int
    path: str
    why: str


@dataclass(frozen=True, slots=True)
class Fetched(Event):
    """The checkpoint of `step` was brought back from the second home, to be resumed from."""

    step: int
    url: str
    bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class RolledBack(Event):
    """Back to a checkpoint, or the beginning: Steps after `to_step` that stand before this line are void. lost: by step, the positions
    whose gradients had been applied since, step recorded or not; they are computed again."""

    to_step: int
    why: str
    lost: dict[str, Ranges] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Joined(Event):
    """A replica's rank is here."""

    replica: int
    rank: int
    host: str
    pid: int
    device: str


@dataclass(frozen=True, slots=True)
class Lost(Event):
    """A replica's rank died or failed."""

    replica: int
    rank: int
    why: str


@dataclass(frozen=True, slots=True)
class Hung(Event):
    """A replica's rank made no progress for so many seconds, and is killed. stack: where it is, innermost first; or what the system says
    of a process that does not answer."""

    replica: int
    rank: int
    host: str
    pid: int
    seconds: float
    doing: str
    step: int
    stack: str


@dataclass(frozen=True, slots=True)
class Corrupted(Event):
    """Replicas that must be alike after `step` were not. replica, rank, host: who differs from the majority; null and empty where there
    is none. differs: what of its state does, by name. since: the last step after which all were known to be alike; the curve from there on
    is touched, unless it is rolled back. repaired: "rolled back" or "healed", when the majority's state was taken over."""

    step: int
    replica: int | None
    rank: int
    host: str
    differs: list[str]
    since: int
    repaired: str


@dataclass(frozen=True, slots=True)
class Spiked(Event):
    """The loss, or the norm of the gradient, of `step` was beyond its bound; a roll-back follows, and data is left out. what: "loss" or
    "grad_norm"; value: what it was; usual: the running median. skipped: samples of the run's order that are left out from now on, those
    of earlier spikes too."""

    step: int
    what: str
    value: float
    usual: float
    bound: float
    skipped: Ranges


@dataclass(frozen=True, slots=True)
class Straggler(Event):
    """A replica stays slower than the others, or does so no longer: told once each. rank: its slowest. phase: "computing", "data" or
    "sending". seconds: that it takes there for a sample; usual: the median of the others'; slower: one over the other. action: what is
    done about it."""

    step: int
    replica: int
    rank: int
    host: str
    pid: int
    phase: str
    seconds: float
    usual: float
    slower: float
    action: str
    recovered: bool = False


@dataclass(frozen=True, slots=True)
class Regrouped(Event):
    """Another membership, after `step`: the replicas that go on together; `new` ones take the state from the others."""

    generation: int
    step: int
    replicas: list[int]
    new: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Waiting(Event):
    """Too few replicas are left, and the run waits for others."""

    replicas: int
    fewest: int


@dataclass(frozen=True, slots=True)
class LowDisk(Event):
    """A disk is low: of the file system of `folder`, `free` bytes are left, fewer than `wanted`. checkpoint: bytes that the next save takes
    there; 0 where none is kept there. Told again once there was room in between, or once the next save has no room any more."""

    folder: str
    free: int
    wanted: int
    checkpoint: int


@dataclass(frozen=True, slots=True)
class Linked(Event):
    """The link between replicas, measured before the first step: seconds of the smallest message, bytes a second of large ones.
    emulated: made slower on purpose."""

    latency: float
    bandwidth: float
    backend: str
    emulated: bool


@dataclass(frozen=True, slots=True)
class Retuned(Event):
    """Buckets have another size after `step`."""

    step: int
    bucket_mib: float
    why: str


@dataclass(frozen=True, slots=True)
class Rebalanced(Event):
    """Steps after `step` are dealt in another way. policy: "static", as stated or as measured once; "dynamic", by speeds as they are.
    shares: of the next step, by replica. piece: sequences of which shares are made up. Where pieces are leased one by one, shares are those
    of speeds, and piece is that of a usual replica."""

    step: int
    policy: str
    shares: dict[str, float]
    piece: int
    why: str


@dataclass(frozen=True, slots=True)
class Switched(Event):
    """After `step` replicas agree in another way."""

    step: int
    phase: int
    sync: str
    why: str


@dataclass(frozen=True, slots=True)
class Stopped(Event):
    """The run stopped on request after `step`, saved; the same command resumes it."""

    step: int
    why: str


@dataclass(frozen=True, slots=True)
class Failed(Event):
    """The run ended badly after `step`: what was committed since its last checkpoint is done again by the same command."""

    step: int
    why: str


@dataclass(frozen=True, slots=True)
class Finished(Event):
    """The run reached its duration."""

    step: int


KINDS: tuple[type[Event], ...] = (
    Joined,
    Started,
    Resumed,
    Linked,
    Step,
    Evaluated,
    Saved,
    SaveFailed,
    Copied,
    CopyFailed,
    Damaged,
    Fetched,
    RolledBack,
    Retuned,
    Rebalanced,
    Switched,
    Lost,
    Hung,
    Corrupted,
    Spiked,
    Straggler,
    Regrouped,
    Waiting,
    LowDisk,
    Stopped,
    Failed,
    Finished,
)
_KNOWN = {kind.__name__: kind for kind in KINDS}
_VOIDING: dict[type[Event], str] = {Resumed: "from_step", RolledBack: "to_step"}


class Unreadable(ValueError):
    """A line that is no event of this version."""

    place: ClassVar[str] = "events.jsonl"


def parse(line: str) -> Event:
    """The event of one line. Raises Unreadable."""
    try:
        values: dict[str, Any] = json.loads(line)
        kind = _KNOWN[values.pop("event")]
        return kind(**values)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Unreadable(f"{line[:120]!r}: {error}") from None


def read(lines: Iterable[str]) -> Iterator[Event]:
    """The events of a journal; a last line that a kill cut short is left out."""
    for line in lines:
        if line.endswith("\n"):
            yield parse(line)


def committed(events: Iterable[Event]) -> list[Step]:
    """The Steps that count, in order: those that no later Resumed or RolledBack made void."""
    steps: list[Step] = []
    for event in events:
        if isinstance(event, Step):
            steps.append(event)
        elif type(event) in _VOIDING:
            last = getattr(event, _VOIDING[type(event)])
            steps = [step for step in steps if step.step <= last]
    return steps


def void_checkpoints(events: Iterable[Event], kind: type[Saved] | type[Copied]) -> set[int]:
    """Steps whose last checkpoint of this kind is of a curve that is void: a later Resumed or RolledBack led to before it, or it was
    being written when that happened."""
    last, standing, void = 0, set[int](), set[int]()
    for event in events:
        if isinstance(event, Step):
            last = event.step
        elif type(event) in _VOIDING:
            last = getattr(event, _VOIDING[type(event)])
            void |= {step for step in standing if step > last}
        elif isinstance(event, kind):
            standing.add(event.step)
            (void.discard if event.step <= last else void.add)(event.step)
    return void


def perplexity(loss: float) -> float:
    """exp(loss), where that is a number at all."""
    return math.exp(loss) if loss < 700 else math.inf


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
