"""A parameter server: keeps buckets of parameters with their optimizer state, and does what the ledger says.

    worker                            server                                ledger
      here                    ──►       known by its replica and rank
      fill                    ──►       a slice of its own for each rank   ──►  Filled
      push                    ──►       kept                               ──►  Received
                                        Add, Apply, Drop, Hand             ◄──  in the order of its telling
      parameters of a version ◄──       after Apply, or Hand

A server knows no model: a slice is what one rank of every replica holds, named parameters in flat buckets. Several servers have
different buckets of each slice and do the same things in the same order, so that version n is the same moment on all.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import zmq
from torch import Tensor
from torch.nn import Parameter

from plait import spec
from plait.ledger.messages import Add, Apply, Drop, Fill, Filled, Forget, Hand, Left, Received, Summed
from plait.ledger.messages import Message as Word
from plait.ledger.wire import LedgerClient
from plait.replica.optim import build_optimizer, clip_factor, create_state, optimizer_state, restore_state, set_rate
from plait.sync.compress import Codec, build_codec
from plait.sync.line import Listener, Message
from plait.sync.slices import pack_state, unpack_state

log = logging.getLogger("plait")


class Server:
    """`serve` until all workers have left."""

    def __init__(self, run: spec.Run, listener: Listener, ledger: LedgerClient) -> None:
        self._run = run
        self._ranks = run.layout.ranks
        self._listener = listener
        self._ledger = ledger
        self._codecs = [build_codec(agreement.compress, agreement.top_k or 0.01) for agreement in run.sync.agreements]
        """by phase"""
        self._orders: deque[Word] = deque()
        self._left = False
        self._waiting: list[Message] = []
        """what workers sent for an era that this server has not been told of, or is not filled for"""
        self._era = 0
        self._slices: dict[int, Slice] = {}
        self._pushes: dict[tuple[int, int], Push] = {}
        """by unit and rank"""
        self._summing: int | None = None
        self._peers: dict[tuple[int, int], tuple[int, str]] = {}
        """by replica and rank: since which number, and the name at the listener"""
        self._owed: dict[tuple[int, int], tuple[dict[str, Any], list[Tensor]]] = {}

    def serve(self) -> None:
        poller = zmq.Poller()
        poller.register(self._ledger.socket, zmq.POLLIN)
        poller.register(self._listener.socket, zmq.POLLIN)
        while not self._left:
            poller.poll()
            self._hear()
            while messages := self._listener.receive():
                for message in messages:
                    self._take(message)
            self._obey()

    # --- what comes ------------------------------------------------------------------------------------------------

    def _hear(self) -> None:
        """What was to be done before a new beginning is void: some of it may wait for what will never come."""
        while self._ledger.socket.poll(0):
            order = self._ledger.receive()
            if isinstance(order, Fill):
                self._orders.clear()
            self._orders.append(order)

    def _take(self, message: Message) -> None:
        """Malformed heads are the sender's mistake: it is told, and this goes on."""
        try:
            self._sort(message)
        except (LookupError, TypeError, ValueError, RuntimeError) as error:
            log.warning("a parameter server turned away what %s sent: %s", message.peer, error)
            self._listener.send(message.peer, {"kind": "refused", "why": f"{type(error).__name__}: {error}"})
            message.release()

    def _sort(self, message: Message) -> None:
        head = message.head
        match head["kind"]:
            case "here":
                self._greet((int(head["replica"]), int(head["rank"])), int(head["since"]), message.peer)
            case "fill" | "push" if head["era"] < self._era:
                message.release()
            case "fill" if head["era"] == self._era:
                self._fill(head, message)
            case "push" if head["era"] == self._era and self._filled:
                self._keep(head, message)
            case "fill" | "push":
                self._waiting.append(message)
            case _:
                raise ValueError(f"a message of kind {head['kind']!r}")

    def _greet(self, member: tuple[int, int], since: int, peer: str) -> None:
        """A greeting of an earlier life may come after that of a later one, or after a new beginning."""
        if since < max(self._era, self._peers.get(member, (0, ""))[0]):
            return
        self._peers[member] = since, peer
        if member in self._owed:
            self._listener.send(peer, *self._owed.pop(member))

    def _fill(self, head: dict[str, Any], message: Message) -> None:
        self._slices[int(head["rank"])] = Slice(self._run, head, message.tensors)
        message.release()
        if self._filled:
            self._ledger.tell(Filled(self._era))
            self._take_waiting()

    def _keep(self, head: dict[str, Any], message: Message) -> None:
        """A push, all of it: from now on it is the ledger's to say what becomes of it."""
        unit, rank = int(head["unit"]), int(head["rank"])
        codec = None if head["phase"] is None else self._codecs[head["phase"]]
        gradients = self._slices[rank].read(message.tensors, head["parts"], codec)
        self._pushes[unit, rank] = Push(message, gradients)
        self._ledger.tell(Received(unit, rank))

    def _take_waiting(self) -> None:
        waiting, self._waiting = self._waiting, []
        for message in waiting:
            self._take(message)

    @property
    def _filled(self) -> bool:
        return len(self._slices) == self._ranks

    # --- what is to be done ------------------------------------------------------------------------------------

    def _obey(self) -> None:
        """In order; all but a new beginning waits until there is something to do it with."""
        while self._orders and (self._filled or isinstance(self._orders[0], Fill | Left)):
            match self._orders.popleft():
                case Left():
                    self._left = True
                case Fill(era):
                    self._begin_again(era)
                case Add(unit, step, last):
                    self._add(unit, step, last)
                case Apply() as apply:
                    self._apply(apply)
                case Drop(unit):
                    self._forget(unit)
                case Hand(version, to, whole):
                    self._hand(version, to, whole)
                case Forget(replica, before):
                    self._forget_peers(before, replica)

    def _begin_again(self, era: int) -> None:
        self._era = era
        self._slices, self._summing = {}, None
        self._owed.clear()
        self._forget_peers(era)
        for push in self._pushes.values():
            push.message.release()
        self._pushes = {}
        self._take_waiting()

    def _add(self, unit: int, step: int, last: bool) -> None:
        for rank, part in self._slices.items():
            if self._summing != step:
                part.zero()
            self._use(unit, rank, part)
        self._summing = step
        if last:
            self._ledger.tell(Summed(step, math.fsum(part.squared_norm() for part in self._slices.values())))

    def _apply(self, order: Apply) -> None:
        if order.unit is not None:
            for rank, part in self._slices.items():
                part.zero()
                self._use(order.unit, rank, part)
        if order.decision == "commit":
            factor = clip_factor(self._run.train.clip, order.grad_norm)
            for part in self._slices.values():
                part.step(factor, order.lr)
        self._summing = None
        self._hand(order.version, order.to, order.whole)

    def _use(self, unit: int, rank: int, part: Slice) -> None:
        push = self._pushes.pop((unit, rank))
        part.add(push.gradients)
        push.gradients = []
        push.message.release()

    def _forget(self, unit: int) -> None:
        for rank in range(self._ranks):
            if (push := self._pushes.pop((unit, rank), None)) is not None:
                push.gradients = []
                push.message.release()

    def _forget_peers(self, before: int, of_replica: int | None = None) -> None:
        """Lines of an earlier life: who had them comes back on another, and what was sent on these would be lost."""
        for member, (since, _) in list(self._peers.items()):
            if since < before and of_replica in (None, member[0]):
                del self._peers[member]

    def _hand(self, version: int, to: Iterable[int], whole: Sequence[int]) -> None:
        for rank, part in self._slices.items():
            plain = [replica for replica in to if replica not in whole]
            if plain:
                self._send({"kind": "parameters", "version": version, "state": None}, part.values, plain, rank)
            if whole:
                state, flats = pack_state(part.state())
                self._send({"kind": "parameters", "version": version, "state": state}, [*part.values, *flats], whole, rank)

    def _send(self, head: dict[str, Any], tensors: list[Tensor], replicas: Sequence[int], rank: int) -> None:
        """Who is not here yet gets a copy of what there is now, when it is."""
        here = {replica: self._peers[replica, rank][1] for replica in replicas if (replica, rank) in self._peers}
        self._listener.send_all(list(here.values()), head, tensors)
        for replica in replicas:
            if replica not in here:
                self._owed[replica, rank] = head, [tensor.clone() for tensor in tensors]


@dataclass
class Push:
    """The gradients of one rank, by bucket: views of the message, or what its payloads were decoded to."""

    message: Message
    gradients: list[Tensor]


@dataclass
class _Bucket:
    """Views of the flat values are parameters, and of the flat gradient their gradients."""

    named: list[tuple[str, Parameter]]
    values: Tensor
    gradient: Tensor
    counted: bool


class Slice:
    """What one rank of every replica holds of this server's buckets."""

    def __init__(self, run: spec.Run, head: dict[str, Any], tensors: Sequence[Tensor]) -> None:
        described = head["buckets"]
        self._buckets = [_bucket(each, values) for each, values in zip(described, tensors, strict=False)]
        self._named = [named for bucket in self._buckets for named in bucket.named]
        self._optimizer: torch.optim.Optimizer | None = None
        if self._named:  # there may be more servers than buckets
            self._optimizer = build_optimizer(run.train.optimizer, self._named, "cpu", factor=run.rate_factor)
            create_state(self._optimizer)
            restore_state(self._optimizer, self._named, unpack_state(head["state"], tensors[len(described) :]))

    @property
    def values(self) -> list[Tensor]:
        return [bucket.values for bucket in self._buckets]

    def state(self) -> dict[str, Any]:
        return {} if self._optimizer is None else optimizer_state(self._optimizer, self._named)

    def zero(self) -> None:
        for bucket in self._buckets:
            bucket.gradient.zero_()

    def read(self, tensors: Sequence[Tensor], parts: Sequence[int], codec: Codec | None) -> list[Tensor]:
        """The gradients that a push brings: so many tensors for each bucket. Raises ValueError where they do not fit."""
        if len(parts) != len(self._buckets) or sum(parts) != len(tensors):
            raise ValueError(f"{len(tensors)} tensors for {len(parts)} buckets, where {len(self._buckets)} are kept")
        gradients, left = [], list(tensors)
        for count, bucket in zip(parts, self._buckets, strict=True):
            payload, left = left[:count], left[count:]
            gradients.append(_decoded(payload, bucket.gradient, codec))
        return gradients

    def add(self, gradients: Sequence[Tensor]) -> None:
        for bucket, gradient in zip(self._buckets, gradients, strict=True):
            bucket.gradient += gradient

    def squared_norm(self) -> float:
        """Of this slice's part of the gradient, where this rank counts it."""
        counted = [bucket.gradient for bucket in self._buckets if bucket.counted]
        if not counted:
            return 0.0
        norms = torch.stack(torch._foreach_norm(counted)).double()
        return float((norms * norms).sum())

    def step(self, factor: float, lr: float) -> None:
        if self._optimizer is None:
            return
        if factor < 1.0:
            torch._foreach_mul_([bucket.gradient for bucket in self._buckets], factor)
        set_rate(self._optimizer, lr)
        self._optimizer.step()


def _bucket(described: dict[str, Any], values: Tensor) -> _Bucket:
    """Over memory of its own: what came is valid only so long as its message."""
    values = values.clone()
    gradient = torch.zeros_like(values)
    shapes = [torch.Size(shape) for shape in described["shapes"]]
    named: list[tuple[str, Parameter]] = []
    first = 0
    for path, shape in zip(described["paths"], shapes, strict=True):
        end = first + shape.numel()
        parameter = Parameter(values[first:end].view(shape))
        parameter.grad = gradient[first:end].view(shape)
        named.append((path, parameter))
        first = end
    if first != values.numel():
        raise ValueError(f"a bucket of {values.numel()} values for shapes of {first}")
    return _Bucket(named, values, gradient, bool(described["counted"]))


def _decoded(payload: list[Tensor], like: Tensor, codec: Codec | None) -> Tensor:
    if codec is not None:
        out = torch.empty_like(like)
        codec.decode(payload, out)
        return out
    if len(payload) != 1 or payload[0].shape != like.shape or payload[0].dtype != like.dtype:
        raise ValueError(f"{[(list(tensor.shape), tensor.dtype) for tensor in payload]} where {list(like.shape)} {like.dtype} is kept")
    return payload[0]
