"""Sums of buckets over replicas, while backward goes on.

As they are, buckets are all-reduced in place. Encoded, they go through one thread, which a member has beside backward, and are summed
decoded: sums of encoded values would not fit what they are encoded in. A dense bucket is cut into a chunk for each member:

    member 0   a0 b0 c0   ─┐ encoded  ┌─►  a0 + a1 + a2 = A  ─┐ encoded  ┌─►  A B C
    member 1   a1 b1 c1   ─┼─ swap ───┼─►  b0 + b1 + b2 = B  ─┼─ gather ─┼─►  A B C
    member 2   a2 b2 c2   ─┘          └─►  c0 + c1 + c2 = C  ─┘          └─►  A B C

A sparse one is gathered whole, as sums of sparse chunks are not sparse. Sums are taken in the members' order, and who encodes a sum
decodes it as all others do: all hold the same bits. While one bucket travels, the next is encoded:

    bucket 0   encode  ~~~~~~  sum, encode         ~~~~~~  decode
    bucket 1           encode  ~~~~~~  sum, encode         ~~~~~~  decode
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import torch
import torch.distributed
from torch import Tensor
from torch.distributed import ProcessGroup

from plait.ledger.progress import progress
from plait.replica.transport import Pool
from plait.sync.compress import BLOCK, Codec
from plait.sync.exchange import Exchange, losses
from plait.sync.feedback import Feedback
from plait.sync.link import Link, Span, all_reduce_traffic
from plait.sync.sender import Job, Sender, Steps
from plait.sync.strategy import PeerLost


class Reducer:
    """Sums flat buckets over the replicas of a bare group, in place, in the order in which they are launched; alone they are sums already.

    sent: bytes that this member sent since `begin`. seconds: those in which a bucket was under way, from launch to done; overlapped
    with backward or not. residuals: what compression holds back, by key; in the order of the bucket's values.
    """

    def __init__(self, group: ProcessGroup | None = None, codec: Codec | None = None, link: Link | None = None, seed: int = 0) -> None:
        self._codec, self._link = codec, link
        self._feedback = Feedback(codec, seed)
        self.regroup(group)

    def regroup(self, group: ProcessGroup | None) -> None:
        """Another group, between two units. What compression holds back stays: it is this member's."""
        self._way: _Plain | _Encoded | None = None
        if group is not None and self._codec is None:
            self._way = _Plain(group, self._link)
        elif group is not None and self._codec is not None:
            self._way = _Encoded(group, self._codec, self._feedback, self._link)

    @property
    def feeds_back(self) -> bool:
        """Whether anything is ever held back."""
        return self._feedback.feeds_back

    @property
    def sent(self) -> int:
        return self._way.sent if self._way else 0

    @property
    def seconds(self) -> float:
        return self._way.span.seconds if self._way else 0.0

    @property
    def residuals(self) -> dict[int, Tensor]:
        return self._feedback.residuals

    @residuals.setter
    def residuals(self, residuals: dict[int, Tensor]) -> None:
        self._feedback.residuals = residuals

    def begin(self, unit: int) -> None:
        """Nothing is launched yet. unit: its number, so that no rounding is like another."""
        if self._way:
            self._way.begin(unit)

    def launch(self, bucket: Tensor, key: int) -> None:
        """Returns at once; nobody touches the bucket until `wait` has returned. key: the same on all replicas."""
        if self._way is None:
            self._feedback.pay_back(bucket, key)
        elif bucket.numel():
            self._way.launch(bucket, key)
        else:
            self._feedback.encode(bucket, key, ())  # what it holds back is as empty

    def wait(self) -> None:
        """All launched buckets hold the sums. Raises PeerLost."""
        if self._way:
            self._way.wait()

    def keep(self, committed: bool) -> None:
        """The verdict: residuals of this unit count from now on, or never did."""
        self._feedback.keep(committed)


class _Plain:
    """One all-reduce for each bucket, in the backend's own threads."""

    def __init__(self, group: ProcessGroup, link: Link | None) -> None:
        self._group = group
        self._link = link
        self.span = Span()
        self.begin(0)

    def begin(self, unit: int) -> None:
        self.span.clear()
        self.sent = 0
        self._launched: list[_AllReduce] = []
        self._arrives = 0.0
        self._failure: RuntimeError | None = None

    def launch(self, bucket: Tensor, key: int) -> None:
        """What breaks here is raised by `wait`: this is called from within backward."""
        if self._failure is None:
            size, messages = all_reduce_traffic(bucket.nbytes, self._group.size())
            if self._link:  # one all-reduce at a time, as gloo's one thread does it
                self._arrives = self._link.book(size, messages, after=self._arrives)
            try:
                self._launched.append(_AllReduce(bucket, self._group, self._arrives))
                self.sent += size
            except RuntimeError as error:
                self._failure = error

    def wait(self) -> None:
        with losses():
            for number, each in enumerate(self._launched, 1):
                progress(f"all-reduce of bucket {number} of {len(self._launched)}", "peers")
                each.work.wait()
        if self._failure is not None:
            raise PeerLost(str(self._failure)) from self._failure
        if self._link:
            self._link.hold(self._arrives)
        for each in self._launched:
            self.span.add(*each.interval())


class _AllReduce:
    """arrives: not before."""

    def __init__(self, bucket: Tensor, group: ProcessGroup, arrives: float) -> None:
        self._arrives = arrives
        self._mark = _event if bucket.is_cuda else time.monotonic
        self._began_at = time.monotonic()
        self._began: Any = self._mark()
        self._ended: Any = None
        self.work = group.allreduce([bucket])
        # NCCL's futures call back at once, with a current stream on which the collective comes before what is recorded now.
        self.work.get_future().add_done_callback(self._end)

    def interval(self) -> tuple[float, float]:
        """On time.monotonic()'s clock, once it was waited for."""
        ended: float
        if self._ended is None:  # it may be waited for before its callback has run
            ended = time.monotonic()
        elif isinstance(self._ended, float):
            ended = self._ended
        else:
            self._ended.synchronize()
            ended = self._began_at + self._began.elapsed_time(self._ended) / 1e3
        return self._began_at, max(ended, self._arrives)

    def _end(self, _: object) -> None:
        self._ended = self._mark()


def _event() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


class _Encoded:
    """Encoding, exchange and decoding, bucket by bucket, in one thread."""

    def __init__(self, group: ProcessGroup, codec: Codec, feedback: Feedback, link: Link | None) -> None:
        self._rank, self._size = group.rank(), group.size()
        self._codec = codec
        self._feedback = feedback
        self._exchange = Exchange(group, link)
        self._pool = Pool()
        self._sender = Sender()
        self._launched: list[Future[None]] = []
        self._unit = 0
        self.span = Span()

    @property
    def feeds_back(self) -> bool:
        """Whether anything is ever held back."""
        return self._feedback.feeds_back

    @property
    def sent(self) -> int:
        return self._exchange.sent

    def begin(self, unit: int) -> None:
        self._unit = unit
        self._launched = []
        self._exchange.sent = 0
        self.span.clear()

    def launch(self, bucket: Tensor, key: int) -> None:
        reduce = self._gather_sparse if self._codec.feeds_back else self._sum_chunks
        steps = reduce(bucket, key, tag=2 * len(self._launched))
        self._launched.append(self._sender.submit(Job(steps, self.span, bucket.device)))

    def wait(self) -> None:
        for number, each in enumerate(self._launched, 1):
            progress(f"exchange of bucket {number} of {len(self._launched)}", "peers")
            each.result()

    def _sum_chunks(self, bucket_N: Tensor, key: int, tag: int) -> Steps:
        chunks = cut(bucket_N, self._size)
        own_C = chunks[self._rank]
        rows = [self._encode(chunk, key, member) if member != self._rank else _NOTHING for member, chunk in enumerate(chunks)]
        parts = [self._row(own_C) if member != self._rank else _NOTHING for member in range(self._size)]
        yield self._exchange(rows, parts, tag)
        self._add_up(parts, own_C)
        sums = [self._row(chunk) for chunk in chunks]
        sums[self._rank] = self._encode(own_C, key, self._rank)
        yield self._exchange([sums[self._rank]] * self._size, sums, tag + 1)
        for row, chunk in zip(sums, chunks, strict=True):
            self._decode(row, chunk)

    def _gather_sparse(self, bucket_N: Tensor, key: int, tag: int) -> Steps:
        rows = [self._row(bucket_N) for _ in range(self._size)]
        rows[self._rank] = self._encode(bucket_N, key, self._rank)
        yield self._exchange([rows[self._rank]] * self._size, rows, tag)
        bucket_N.zero_()
        values_N = torch.empty_like(bucket_N)
        for row in rows:
            self._decode(row, values_N)
            bucket_N += values_N

    def _add_up(self, parts: Sequence[Tensor], own_C: Tensor) -> None:
        """To `own_C` what the others have of it, in the members' order; its own is taken as it is, and not encoded."""
        sum_C, values_C = torch.zeros_like(own_C), torch.empty_like(own_C)
        for member, row in enumerate(parts):
            if member == self._rank:
                sum_C += own_C
            else:
                self._decode(row, values_C)
                sum_C += values_C
        own_C.copy_(sum_C)

    def _encode(self, values_N: Tensor, key: int, to: int) -> Tensor:
        """The bytes of a payload, for one member; what is for this one's own chunk is for all."""
        if not len(values_N):
            return _NOTHING
        payload = self._feedback.encode(values_N, key, (self._unit, self._rank, to))
        row = self._row(values_N)
        for place, part in zip(self._parts(row, values_N), payload, strict=True):
            place.copy_(part)
        return row

    def _decode(self, row: Tensor, values_N: Tensor) -> None:
        if len(values_N):
            self._codec.decode(self._parts(row, values_N), values_N)

    def _row(self, values_N: Tensor) -> Tensor:
        """Bytes for the payload of such values; a chunk of none has none."""
        if not len(values_N):
            return _NOTHING
        return self._pool.take([self._codec.size(len(values_N), values_N.dtype)], torch.uint8, values_N.device)

    def _parts(self, row: Tensor, values_N: Tensor) -> list[Tensor]:
        """The tensors of a payload, as views of its bytes: wider dtypes come first, so that each lies at a multiple of its width."""
        flats = self._codec.parts(len(values_N), values_N.dtype)
        pieces = row.split([length * dtype.itemsize for length, dtype in flats])
        return [piece.view(dtype) for piece, (_, dtype) in zip(pieces, flats, strict=True)]


_NOTHING = torch.empty(0, dtype=torch.uint8)


def cut(values_N: Tensor, members: int) -> list[Tensor]:
    """A chunk for each member, in whole blocks; the last ones are shorter, or empty."""
    length = -(-len(values_N) // (members * BLOCK)) * BLOCK
    return [values_N[member * length : (member + 1) * length] for member in range(members)]
