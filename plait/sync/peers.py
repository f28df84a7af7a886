"""The replicas of one generation: who they are, and the bare group in which this rank meets the same rank of all others.

    generation 3   0 1 2        replica 1 dies
    generation 4   0 2          connections to it break, the others drop the group and make another, in milliseconds
    generation 5   0 1 2        one that came in its place is met between two units

A meeting is called by a lease of nothing. It is over when all have answered; while connections are being made the ledger is listened
to, as another may die amid it, and the meeting with it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol

import torch
from torch.distributed import ProcessGroup

from plait.ledger.messages import Link as Measured
from plait.ledger.messages import Message, Verdict, Vote, Work
from plait.ledger.progress import progress
from plait.replica import device as devices
from plait.sync import link
from plait.sync.exchange import losses
from plait.sync.strategy import PeerLost

Make = Callable[[int, int, int], ProcessGroup]
"""Of (rank, size, generation)."""
Follow = Callable[[ProcessGroup | None], None]
_PATIENCE = 2e-3
"""Seconds between two looks at what the ledger says."""


class Ledger(Protocol):
    """The part of a ledger's client that a meeting needs."""

    def tell(self, message: Message) -> None: ...
    def vote(self, vote: Vote) -> Verdict: ...
    def called(self) -> bool: ...


class Peers:
    """`replica` is this one; `members` are those it agrees with, itself included. make: their group.

    device: where buckets are. emulated: a link that is slower than there is, which is measured too.
    """

    def __init__(
        self, replica: int, replicas: int, ledger: Ledger, make: Make, device: torch.device, emulated: link.Link | None = None
    ) -> None:
        self.members = list(range(replicas))
        self.group: ProcessGroup | None = None
        self.replica = replica
        self._ledger = ledger
        self._make = make
        self.device = device
        self._emulated = emulated
        self._followers: list[Follow] = []

    @property
    def size(self) -> int:
        return len(self.members)

    @property
    def place(self) -> int:
        """This replica's, among the members."""
        return self.members.index(self.replica)

    def follow(self, follower: Follow) -> None:
        """Told of each group that takes the place of another; None for no group, of a replica alone or between two."""
        self._followers.append(follower)

    def note(self, work: Work) -> None:
        """Who the members will be, before they meet: what is loaded from a checkpoint is dealt among them."""
        if work.peers:
            self.members = work.peers

    def meet(self, work: Work) -> Verdict:
        """Answer a lease of nothing, met or parted as it says; returns what the ledger says then. Raises PeerLost."""
        self.part()
        progress(f"meets the others of generation {work.generation}", "peers")
        if len(work.peers) > 1:
            self._use(self._group(work))
            if work.measure:
                self._measure()
        return self._ledger.vote(Vote(work.unit, [], 0.0))

    def part(self) -> None:
        """Connections are closed once nothing refers to the group: the others see it."""
        self._use(None)

    def abort(self) -> None:
        """From another thread: NCCL waits for a peer that is gone, where gloo sees its connection break."""
        group = self.group
        if group is not None and devices.backend(self.device) == "nccl":
            group.abort()

    def _use(self, group: ProcessGroup | None) -> None:
        self.group = group
        for follower in self._followers:
            follower(group)

    def _group(self, work: Work) -> ProcessGroup:
        """In a thread of its own, which is left alone should the ledger call this one away."""
        made: list[ProcessGroup] = []
        failed: list[str] = []
        done = threading.Event()

        def make() -> None:
            try:
                made.append(self._make(self.place, self.size, work.generation))
            except RuntimeError as error:
                failed.append(str(error))
            done.set()

        threading.Thread(target=make, name=f"meeting of generation {work.generation}", daemon=True).start()
        while not done.wait(_PATIENCE):
            if self._ledger.called():
                raise PeerLost("the meeting is void")
        if failed:
            raise PeerLost(failed[0])
        return made[0]

    def _measure(self) -> None:
        assert self.group is not None
        with losses():
            measured = link.measure(self.group, self.device, emulated=self._emulated)
        if self.place == 0:
            backend = devices.backend(self.device)
            self._ledger.tell(Measured(measured.latency, measured.bandwidth, backend, self._emulated is not None))
