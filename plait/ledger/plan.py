"""What a ledger needs to know of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from plait.events import Ranges
from plait.ledger.balance import Policy
from plait.ledger.messages import SERVING, Member


@dataclass(frozen=True)
class Agreement:
    """How replicas agree in one phase.

    unit: what commits whole. every: steps in a round. served: pushes go to parameter servers. staleness: most updates between a push's
    parameters and its own, None for any number. damped: late pushes count for less. until: the last step of the phase, or until_loss,
    until_waiting: what the mean over the last steps must pass; None in the last phase.
    """

    mode: str = "allreduce"
    unit: Literal["step", "round", "piece"] = "step"
    every: int = 1
    served: bool = False
    piece: int = 1
    """sequences in a push"""
    staleness: int | None = None
    damped: bool = False
    until: int | None = None
    until_loss: float | None = None
    until_waiting: float | None = None


@dataclass(frozen=True)
class SpikeRules:
    """loss, grad_norm: robust deviations above the running median that are too many, None for any number. skips: steps whose data is left
    out, the spike's own and those before it. limit: spikes after one checkpoint."""

    loss: float | None = None
    grad_norm: float | None = None
    skips: int = 2
    limit: int = 3


@dataclass(frozen=True)
class Plan:
    """Numbers, and pure functions of the step."""

    replicas: int
    """the most that there are at once"""
    ranks: int
    """ranks in each replica"""
    steps: int
    size: Callable[[int], int]
    """sequences in the global batch of a step"""
    targets: Callable[[int], int]
    """target tokens in the global batch of a step"""
    capacity: tuple[float, ...]
    """relative shares, by replica, as stated"""
    save_every: int | None
    evaluate_every: int | None
    evaluation_size: int
    """validation sequences of one evaluation"""
    nonfinite_limit: int
    version: str
    flops_per_token: float
    peak_flops: Callable[[str], float | None]
    """of one device, by its name"""
    agreements: tuple[Agreement, ...] = (Agreement(),)
    """one for each phase of the run"""
    servers: int = 0
    """parameter servers, which are there in every phase"""
    bucket_bytes: int = 0
    """of a bucket to begin with, where the size is tuned; 0 where it stays"""
    balance: Policy = "static"
    micro_batch: int = 1
    """sequences computed at once; 1 where each replica finds out for itself"""
    grain: int = 1
    """sequences of which shares that follow speeds are made up, at least"""
    elastic: bool = False
    """whether who is lost is replaced, and the others go on meanwhile"""
    beginning: int | None = None
    """replicas that are there from the beginning; the others come later"""
    fewest: int = 1
    """replicas that a unit needs"""
    spikes: SpikeRules = SpikeRules()
    skipped: Ranges = field(default_factory=list)
    """samples of the run's order that are left out from the beginning"""
    samples: Callable[[int], Ranges] = lambda step: []
    """of the run's order, those that a step takes"""
    leave_out: Callable[[Ranges], None] = lambda ranges: None
    """`samples` and `targets` are from now on of a run that leaves these out, and no others"""
    check_every: int | None = None
    """steps between two comparisons of replicas' state; one comes before each checkpoint too"""
    score: Callable[[list[list[str]]], dict[str, float]] = lambda translated: {}
    """what translations are worth, by name"""
    layout: dict[str, int] = field(default_factory=dict)
    """axes of a replica's mesh that are longer than 1, in the order in which ranks are counted"""

    @property
    def workers(self) -> list[Member]:
        """Every rank of every replica."""
        return [(replica, rank) for replica in range(self.replicas) for rank in range(self.ranks)]

    @property
    def late(self) -> list[Member]:
        """Ranks of replicas that come when the run has begun."""
        return [member for member in self.workers if self.beginning is not None and member[0] >= self.beginning]

    @property
    def serving(self) -> list[Member]:
        return [(SERVING, number) for number in range(self.servers)]

    @property
    def members(self) -> list[Member]:
        """All who take part."""
        return [*self.workers, *self.serving]
