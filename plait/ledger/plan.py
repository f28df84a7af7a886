"""What a ledger needs to know of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from plait.ledger.messages import Member


@dataclass(frozen=True)
class Plan:
    """Numbers, and pure functions of the step."""

    replicas: int
    ranks: int
    """ranks in each replica"""
    steps: int
    size: Callable[[int], int]
    """sequences in the global batch of a step"""
    targets: Callable[[int], int]
    """target tokens in the global batch of a step"""
    capacity: tuple[float, ...]
    save_every: int | None
    evaluate_every: int | None
    evaluation_size: int
    """validation sequences of one evaluation"""
    nonfinite_limit: int
    piece: int | None
    """sequences in a piece, where pieces are the unit"""
    version: str
    flops_per_token: float
    peak_flops: Callable[[str], float | None]
    """of one device, by its name"""
    layout: dict[str, int] = field(default_factory=dict)
    """axes of a replica's mesh that are longer than 1, in the order in which ranks are counted"""

    @property
    def members(self) -> list[Member]:
        """Every rank of every replica."""
        return [(replica, rank) for replica in range(self.replicas) for rank in range(self.ranks)]
