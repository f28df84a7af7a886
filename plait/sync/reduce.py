"""Sums of buckets over replicas, while backward goes on.

As they are, buckets are all-reduced in place. Encoded, they go through one thread, which a member has beside backward, and are summed
decoded: sums of encoded values would not fit what they are encoded in. A dense bucket is cut into a chunk for each member:

    member 0   a0 b0 c0   ─┐ encoded  ┌─►  a0 + a1 + a2 = A  ─┐ encoded  ┌─►  A B C
    member 1   a1 b1 c1   ─┼─ swap ───┼─►  b0 + b1 + b2 = B  ─┼─ gather ─┼─►  A B C
    member 2   a2 b2 c2   ─┘          └─►  c0 + c1 + c2 = C  ─┘          └─►  A B C

A sparse one is gathered whole, as sums of sparse chunks are not sparse. Sums are taken in the members' order, and who encodes a sum
decodes it as all others do: all hold the same bits.
"""

from __future__ import annotations

import queue
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

import torch
import torch.distributed
from torch import Tensor
from torch.distributed import ProcessGroup, Work

from plait.replica.transport import Pool
from plait.sync.compress import BLOCK, Codec
from plait.sync.feedback import Feedback
from plait.sync.link import Link, Span, all_reduce_traffic
from plait.sync.strategy import PeerLost


class Reducer:
    """Sums flat buckets over the replicas of a bare group, in place, in the order in which they are launched.

    sent: bytes that this member sent since `begin`. seconds: those in which a bucket was under way, from launch to done; overlapped
    with backward or not. residuals: what compression holds back, by key; in the order of the bucket's values.
    """

    def __init__(self, group: ProcessGroup, codec: Codec | None = None, link: Link | None = None, seed: int = 0) -> None:
        self._group = group
        self._feedback = Feedback(codec, seed)
        self._way: _Plain | _Encoded = _Plain(group, link) if codec is None else _Encoded(group, codec, self._feedback, link)

    @property
    def sent(self) -> int:
        return self._way.sent

    @property
    def seconds(self) -> float:
        return self._way.span.seconds

    @property
    def residuals(self) -> dict[int, Tensor]:
        return self._feedback.residuals

    @residuals.setter
    def residuals(self, residuals: dict[int, Tensor]) -> None:
        self._feedback.residuals = residuals

    def begin(self, unit: int) -> None:
        """Nothing is launched yet. unit: its number, so that no rounding is like another."""
        self._way.begin(unit)

    def launch(self, bucket: Tensor, key: int) -> None:
        """Returns at once; nobody touches the bucket until `wait` has returned. key: the same on all replicas."""
        if bucket.numel():
            self._way.launch(bucket, key)

    def wait(self) -> None:
        """All launched buckets hold the sums. Raises PeerLost."""
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
        for each in self._launched:
            _await(each.work)
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
        self._sender = _Sender()
        self._launched: list[Future[None]] = []
        self._unit = 0
        self.span = Span()

    @property
    def sent(self) -> int:
        return self._exchange.sent

    def begin(self, unit: int) -> None:
        self._unit = unit
        self._launched = []
        self._exchange.sent = 0
        self.span.clear()

    def launch(self, bucket: Tensor, key: int) -> None:
        began = time.monotonic()
        reduce = self._gather_sparse if self._codec.feeds_back else self._sum_chunks

        def act() -> None:
            reduce(bucket, key)

        def done() -> None:
            self.span.add(began, time.monotonic())

        self._launched.append(self._sender.submit(_Job(act, done, bucket.device)))

    def wait(self) -> None:
        for each in self._launched:
            each.result()

    def _sum_chunks(self, bucket_N: Tensor, key: int) -> None:
        chunks = cut(bucket_N, self._size)
        own_C = chunks[self._rank]
        rows = [self._encode(chunk, key, member) if member != self._rank else _NOTHING for member, chunk in enumerate(chunks)]
        parts = [self._row(own_C) if member != self._rank else _NOTHING for member in range(self._size)]
        self._exchange(rows, parts)
        self._add_up(parts, own_C)
        sums = [self._row(chunk) for chunk in chunks]
        sums[self._rank] = self._encode(own_C, key, self._rank)
        self._exchange([sums[self._rank]] * self._size, sums)
        for row, chunk in zip(sums, chunks, strict=True):
            self._decode(row, chunk)

    def _gather_sparse(self, bucket_N: Tensor, key: int) -> None:
        rows = [self._row(bucket_N) for _ in range(self._size)]
        rows[self._rank] = self._encode(bucket_N, key, self._rank)
        self._exchange([rows[self._rank]] * self._size, rows)
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


class Exchange:
    """Rows of bytes from each member to each other. sent: bytes of those that this member sent."""

    def __init__(self, group: ProcessGroup, link: Link | None) -> None:
        self._group = group
        self._link = link
        self.sent = 0

    def __call__(self, rows: Sequence[Tensor], into: Sequence[Tensor]) -> None:
        """rows: for each member; into: from each. What is for itself or from itself is left alone, and what is empty does not travel."""
        size = sum(row.nbytes for member, row in enumerate(rows) if member != self._group.rank())
        until = self._link.book(size) if self._link else 0.0
        swap = swap_directly if all(row.device.type == "cpu" for row in rows) else swap_together
        try:
            swap(self._group, rows, into)
        except RuntimeError as error:
            raise PeerLost(str(error)) from error
        if self._link:
            self._link.hold(until)
        self.sent += size


def swap_directly(group: ProcessGroup, rows: Sequence[Tensor], into: Sequence[Tensor]) -> None:
    """A message for each row: through gloo a half to two thirds of what its all-to-all and its all-gather take."""
    others = [member for member in range(group.size()) if member != group.rank()]
    received = [group.recv([into[other]], other, 0) for other in others if into[other].numel()]
    sent = [group.send([rows[other]], other, 0) for other in others if rows[other].numel()]
    for work in (*received, *sent):
        work.wait()


def swap_together(group: ProcessGroup, rows: Sequence[Tensor], into: Sequence[Tensor]) -> None:
    """One all-to-all: what NCCL does best."""
    others = [member for member in range(group.size()) if member != group.rank()]
    sent, received = ([0 if member not in others else row.nbytes for member, row in enumerate(each)] for each in (rows, into))
    device = rows[others[0]].device
    came = torch.empty(sum(received), dtype=torch.uint8, device=device)
    group.alltoall_base(came, torch.cat([rows[other] for other in others]), received, sent).wait()
    for other, row in zip(others, came.split([received[other] for other in others]), strict=True):
        into[other].copy_(row)


class _Job(NamedTuple):
    """act: on what is ready on the device when the job is submitted. done: called when its work on the device is done too."""

    act: Callable[[], None]
    done: Callable[[], None]
    device: torch.device


class _Sender:
    """A thread for one job after the other, for as long as somebody holds this. After a job that failed none is done: its error
    is theirs too."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[tuple[_Job, torch.cuda.Event | None, Future[None]] | None] = queue.SimpleQueue()
        self._running = False

    def submit(self, job: _Job) -> Future[None]:
        if not self._running:
            self._running = True
            # A daemon: a process that fails must be able to end while others keep this thread waiting.
            threading.Thread(target=_work, args=(self._jobs,), name="plait-sender", daemon=True).start()
            weakref.finalize(self, self._jobs.put, None)
        future: Future[None] = Future()
        ready = torch.cuda.current_stream(job.device).record_event() if job.device.type == "cuda" else None
        self._jobs.put((job, ready, future))
        return future


def _work(jobs: queue.SimpleQueue[tuple[_Job, torch.cuda.Event | None, Future[None]] | None]) -> None:
    failure: BaseException | None = None
    streams: dict[torch.device, torch.cuda.Stream] = {}
    while (taken := jobs.get()) is not None:
        job, ready, future = taken
        try:
            if failure is not None:
                raise failure
            _do(job, ready, streams)
        except BaseException as error:
            failure = error
            future.set_exception(error)
        else:
            future.set_result(None)
        del taken, job, future  # they hold whose end this thread waits for


def _do(job: _Job, ready: torch.cuda.Event | None, streams: dict[torch.device, torch.cuda.Stream]) -> None:
    if ready is None:
        job.act()
    else:
        if job.device not in streams:
            streams[job.device] = torch.cuda.Stream(job.device)
        stream = streams[job.device]
        with torch.cuda.stream(stream):
            stream.wait_event(ready)
            job.act()
        stream.synchronize()
    job.done()


def _await(work: Work) -> None:
    try:
        work.wait()
    except RuntimeError as error:
        raise PeerLost(str(error)) from error
