"""The state of a replica, handed to those that come anew: in stripes, one from each of the others, while they compute.

    level 0   ▓▓▓ compute ▓▓▓▓▓▓   stripes 0 2 4 ─┐
    level 1   ▓▓▓ compute ▓▓▓▓▓▓   stripes 1 3 5 ─┴─► new: has all before the unit's verdict, and follows it as all do

What travels does not change between a lease and its verdict. Same ranks hold the same parts, so that each receives from its own peers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from plait.ledger.messages import Work
from plait.ledger.progress import progress
from plait.replica.placed import local_values
from plait.replica.replica import Replica
from plait.sync.exchange import losses
from plait.sync.peers import Peers
from plait.sync.strategy import PeerLost, State

STRIPE = 2**22
"""Elements."""
_TAG = 2**16
"""Apart from those of buckets."""


class Handing:
    """Of one unit: what level members of a group send, by tensors' names in order, and new ones receive.

    level, new: their places in the group. device: where it takes tensors.
    """

    def __init__(self, group: ProcessGroup, device: torch.device, level: list[int], new: list[int]) -> None:
        self._group, self._device, self._level, self._new = group, device, level, new
        self._under_way: list[Any] = []
        self._kept: list[Tensor] = []
        self._failure: str | None = None

    def send(self, state: State) -> None:
        """Begin to; what breaks is raised by `wait`, since ranks of one replica shall part at one place alone."""
        mine = self._level.index(self._group.rank())
        try:
            for number, (stripe, plain) in enumerate(_stripes(state)):
                if number % len(self._level) == mine:
                    self._send(stripe if plain is None else _text(plain), number, sized=plain is not None)
        except RuntimeError as error:
            self._failure = str(error)

    def finish(self) -> None:
        """Until all has been sent, or cannot be."""
        progress("hands over its state", "peers")
        try:
            for each in self._under_way:
                each.wait()
        except RuntimeError as error:
            self._failure = self._failure or str(error)
        self._under_way, self._kept = [], []

    def wait(self) -> None:
        """Until all has been sent. Raises PeerLost."""
        self.finish()
        if self._failure is not None:
            raise PeerLost(self._failure)

    def receive(self, state: State) -> None:
        """Into the tensors of `state`, in place; its plain values are replaced. Raises PeerLost."""
        progress("takes over the state of others", "peers")
        with losses():
            for number, (stripe, plain) in enumerate(_stripes(state)):
                source = self._level[number % len(self._level)]
                if plain is not None:
                    state[plain[0]] = json.loads(bytes(self._text(source, number).tolist()))[1]
                else:
                    self._take(stripe, source, number)
            for each in self._under_way:
                each.wait()

    def _send(self, values: Tensor, number: int, sized: bool) -> None:
        if sized:
            self._post(torch.tensor([values.numel()]), 2 * number)
        self._post(values, 2 * number + 1)

    def _post(self, values: Tensor, tag: int) -> None:
        values = values.to(self._device).contiguous()
        self._kept.append(values)
        self._under_way += [self._group.send([values], place, _TAG + tag) for place in self._new]

    def _take(self, stripe: Tensor, source: int, number: int) -> None:
        if stripe.is_contiguous() and stripe.device == self._device:
            self._under_way.append(self._group.recv([stripe], source, _TAG + 2 * number + 1))
        else:
            stripe.copy_(self._come(torch.empty_like(stripe, memory_format=torch.contiguous_format), source, 2 * number + 1))

    def _text(self, source: int, number: int) -> Tensor:
        size = self._come(torch.zeros(1, dtype=torch.int64), source, 2 * number)
        return self._come(torch.empty(int(size), dtype=torch.uint8), source, 2 * number + 1).cpu()

    def _come(self, values: Tensor, source: int, tag: int) -> Tensor:
        there = values.to(self._device)
        self._group.recv([there], source, _TAG + tag).wait()
        return there


def hand_over(peers: Peers, work: Work, replica: Replica, more: State) -> Handing | None:
    """What a unit with new members begins with: level ones send, and get what they must wait for; new ones have received all, but before
    the first step, when all are as new. more: what a strategy keeps besides. Raises PeerLost where this one is new."""
    if not work.new or work.parts[0].step == 1:
        return None
    handing = _among(peers, work)
    if peers.replica not in work.new:
        handing.send(replica.state() | more)
        return handing
    state = replica.state_to_load() | more
    handing.receive(state)
    replica.restore({name: value for name, value in state.items() if name not in more})
    return None


def heal(peers: Peers, work: Work, replica: Replica, alike: State) -> None:
    """What all are to hold alike goes to those that hold something else; what is a replica's own stays. Raises PeerLost."""
    handing = _among(peers, work)
    if peers.replica in work.new:
        handing.receive(alike)
        own = replica.state()
        replica.restore(own | {name: value for name, value in alike.items() if name in own})
    else:
        handing.send(alike)
        handing.wait()


def _among(peers: Peers, work: Work) -> Handing:
    assert peers.group is not None
    place = {number: place for place, number in enumerate(work.peers)}
    level = [place[number] for number in work.peers if number not in work.new]
    return Handing(peers.group, peers.device, level, [place[number] for number in work.new])


def _stripes(state: State) -> Iterator[tuple[Tensor, tuple[str, Any] | None]]:
    """Views of a state's tensors, in pieces; or a plain value with its name."""
    for name in sorted(state):
        value = local_values(state[name])
        if not isinstance(value, Tensor):
            yield torch.empty(0), (name, value)
        elif not value.is_contiguous() or value.numel() <= STRIPE:
            yield value.detach(), None
        else:
            for stripe in value.detach().view(-1).split(STRIPE):
                yield stripe, None


def _text(plain: tuple[str, Any]) -> Tensor:
    return torch.frombuffer(bytearray(json.dumps(plain).encode()), dtype=torch.uint8)
