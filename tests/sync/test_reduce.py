"""Buckets that replicas sum: the same bits everywhere, as many bytes as said, and an error when a member is gone."""

from __future__ import annotations

import gc
import hashlib
import os
import threading
import time
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor

from plait.sync.compress import Name, build_codec
from plait.sync.exchange import swap_directly, swap_together
from plait.sync.link import Link
from plait.sync.reduce import Reducer, cut
from plait.sync.strategy import PeerLost
from plait.testing.processes import ProcessesFailed, run_distributed

HERE = "tests.sync.test_reduce:"
LOSSY: tuple[Name, ...] = ("bf16", "fp16", "int8", "topk")
NAMES: tuple[Name, ...] = ("none", *LOSSY)
LENGTHS = (1000, 1, 0, 257, 20_011, 512)
PRECISION = {"bf16": 2**-7, "fp16": 2**-9, "int8": 3e-2}
"""Of a sum, over its norm."""


def values(length: int, member: int, unit: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(1000 * length + 10 * unit + member)
    return torch.randn(length, generator=generator, dtype=dtype)


def whole(length: int, member: int) -> Tensor:
    """Numbers that any order sums to the same."""
    return (1000 * values(length, member)).round()


def sum_of(tensors: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(tensors)).sum(0)


def reduce(reducer: Reducer, buckets: list[Tensor], unit: int = 0) -> None:
    reducer.begin(unit)
    for key, bucket in enumerate(buckets):
        reducer.launch(bucket, key)
    reducer.wait()


def digest(tensors: list[Tensor]) -> str:
    return hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in tensors)).hexdigest()


# --- sums ------------------------------------------------------------------------------------------------------


def sums_of_whole_numbers(rank: int, size: int, group: Any) -> bool:
    buckets = [whole(length, rank) for length in LENGTHS]
    reduce(Reducer(group), buckets)
    expected = [sum_of(whole(length, member) for member in range(size)) for length in LENGTHS]
    return all(torch.equal(bucket, total) for bucket, total in zip(buckets, expected, strict=True))


@pytest.mark.parametrize("members", [2, 3])
def test_uncompressed_sums_are_exact(members: int) -> None:
    assert run_distributed(HERE + "sums_of_whole_numbers", members) == [True] * members


def sums_by_codec(rank: int, size: int, group: Any) -> dict[str, Any]:
    found = {}
    for name in NAMES:
        for dtype in (torch.float32, torch.float64):
            reducer = Reducer(group, build_codec(name, 0.1))
            buckets = [values(length, rank, dtype=dtype) for length in LENGTHS]
            reduce(reducer, buckets)
            expected = [sum_of(values(length, member, dtype=dtype) for member in range(size)) for length in LENGTHS]
            lost = [float((bucket - total).norm() / (total + 1e-9).norm()) for bucket, total in zip(buckets, expected, strict=True)]
            found[f"{name} {dtype}"] = [digest(buckets), max(lost)]
    return found


@pytest.mark.parametrize("members", [2, 3, 4])
def test_all_members_hold_the_same_bits(members: int) -> None:
    first, *others = run_distributed(HERE + "sums_by_codec", members)
    assert all(other == first for other in others)
    assert all(lost <= PRECISION[name] for key, (_, lost) in first.items() if (name := key.split()[0]) in PRECISION)


def two_units_of_int8(rank: int, size: int, group: Any) -> list[str]:
    found = []
    for seed, unit in ((0, 1), (0, 1), (0, 2), (5, 1)):
        bucket = values(1000, rank)
        reduce(Reducer(group, build_codec("int8"), seed=seed), [bucket], unit)
        found.append(digest([bucket]))
    return found


def test_rounding_follows_seed_and_unit() -> None:
    first, again, next_unit, other_seed = run_distributed(HERE + "two_units_of_int8", 2)[0]
    assert first == again
    assert len({first, next_unit, other_seed}) == 3


def not_finite(rank: int, size: int, group: Any) -> list[bool]:
    seen = []
    for name in NAMES:
        for bad in (float("nan"), float("inf")):
            bucket = values(1000, rank)
            if rank == 1:
                bucket[3] = bad
            reduce(Reducer(group, build_codec(name)), [bucket])
            seen.append(not bool(bucket.isfinite().all()))
    return seen


def test_what_is_not_finite_on_one_is_seen_by_all() -> None:
    assert run_distributed(HERE + "not_finite", 3) == [[True] * 2 * len(NAMES)] * 3


def launched_before_the_others(rank: int, size: int, group: Any) -> float:
    """Member 1 launches nothing before member 0 has launched all and says so."""
    reducers = [Reducer(group, build_codec(name)) for name in NAMES]
    buckets = [torch.ones(50_000) for _ in range(3 * len(reducers))]
    told = torch.zeros(1)
    for index, reducer in enumerate(reducers):
        if rank == 1:
            group.recv([told], 0, 99).wait()
        reducer.begin(0)
        for key in range(3):
            reducer.launch(buckets[3 * index + key], key)
        if rank == 0:
            group.send([told], 1, 99).wait()
        reducer.wait()
    return sum(float(bucket.sum()) for bucket in buckets[:12])


def test_launching_waits_for_nobody() -> None:
    found = run_distributed(HERE + "launched_before_the_others", 2, timeout=20.0)
    assert found == pytest.approx([12 * 100_000] * 2, rel=1e-3)


# --- error feedback ----------------------------------------------------------------------------------------------


def fed_back(rank: int, size: int, group: Any, units: int) -> dict[str, Any]:
    """Of all units: the sum of what was reduced; what was held back at the end."""
    reducer = Reducer(group, build_codec("topk", 0.03))
    total = torch.zeros(900, dtype=torch.float64)
    for unit in range(units):
        bucket = values(900, rank, unit)
        reduce(reducer, [bucket], unit)
        reducer.keep(True)
        total += bucket
    return {"total": total.tolist(), "residual": reducer.residuals[0].tolist()}


def test_what_is_held_back_is_sent_later() -> None:
    """Sums of what was sent, and what is still held back, make up all that was given."""
    units, members = 7, 3
    found = run_distributed(HERE + "fed_back", members, units=units)
    total = torch.tensor(found[0]["total"], dtype=torch.float64)
    held = sum_of(torch.tensor(member["residual"], dtype=torch.float64) for member in found)
    given = sum_of(values(900, member, unit) for member in range(members) for unit in range(units))
    assert float(held.norm()) > 1.0
    torch.testing.assert_close(total + held, given, rtol=0.0, atol=1e-12)


def thrown_away(rank: int, size: int, group: Any) -> list[bool]:
    reducer = Reducer(group, build_codec("topk", 0.03))
    reduce(reducer, [values(900, rank)])
    nothing_yet = reducer.residuals == {}
    reducer.keep(True)
    kept = reducer.residuals[0].clone()
    sums = []
    for _ in range(2):  # a unit that is skipped, and comes again
        bucket = values(900, rank, 1)
        reduce(reducer, [bucket], 1)
        reducer.keep(False)
        sums.append(bucket)
    restored = Reducer(group, build_codec("topk", 0.03))
    restored.residuals = {0: kept}
    again = values(900, rank, 1)
    reduce(restored, [again], 1)
    return [nothing_yet, torch.equal(reducer.residuals[0], kept), torch.equal(*sums), torch.equal(sums[0], again)]


def test_a_skipped_unit_leaves_residuals_alone() -> None:
    assert run_distributed(HERE + "thrown_away", 2) == [[True] * 4] * 2


def empty_bucket(rank: int, size: int, group: Any) -> list[int]:
    reducer = Reducer(group, build_codec("topk"))
    reduce(reducer, [torch.zeros(0), torch.ones(10)])
    reducer.keep(True)
    return [residual.numel() for residual in reducer.residuals.values()]


def test_an_empty_bucket_has_an_empty_residual() -> None:
    """It is somebody else's share that is not empty: a checkpoint asks all for theirs."""
    assert run_distributed(HERE + "empty_bucket", 2) == [[0, 10]] * 2


# --- bytes -------------------------------------------------------------------------------------------------------


class Counting:
    """A group that counts what is sent through it."""

    def __init__(self, group: Any) -> None:
        self._group = group
        self.sent = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._group, name)

    def send(self, tensors: list[Tensor], member: int, tag: int) -> Any:
        self.sent += sum(tensor.nbytes for tensor in tensors)
        return self._group.send(tensors, member, tag)


def bytes_sent(rank: int, size: int, group: Any) -> list[list[int]]:
    """By codec: what was counted by the reducer, what by the group, what payloads of such lengths have."""
    found = []
    for name in LOSSY:
        codec = build_codec(name, 0.1)
        assert codec is not None
        counting: Any = Counting(group)
        reducer = Reducer(counting, codec)
        for unit in range(2):
            counting.sent = 0
            reduce(reducer, [values(length, rank, dtype=torch.float32) for length in LENGTHS], unit)
        expected = 0
        for length in filter(None, LENGTHS):
            chunks = [length] if name == "topk" else [len(chunk) for chunk in cut(torch.empty(length), size)]
            own = length if name == "topk" else chunks[rank]
            sizes = [codec.size(chunk, torch.float32) if chunk else 0 for chunk in chunks]
            expected += (0 if name == "topk" else sum(sizes) - sizes[rank]) + (size - 1) * (codec.size(own, torch.float32) if own else 0)
        found.append([reducer.sent, counting.sent, expected])
    return found


@pytest.mark.parametrize("members", [2, 3])
def test_bytes_are_those_that_travelled(members: int) -> None:
    for member in run_distributed(HERE + "bytes_sent", members):
        for said, travelled, expected in member:
            assert said == travelled == expected > 0


def ring_bytes(rank: int, size: int, group: Any) -> list[int]:
    reducer = Reducer(group)
    reduce(reducer, [torch.zeros(3000), torch.zeros(600)])
    sent = reducer.sent
    reducer.begin(1)
    return [sent, reducer.sent]


def test_a_ring_sends_two_thirds_twice() -> None:
    assert run_distributed(HERE + "ring_bytes", 3) == [[2 * 2 * 3600 * 4 // 3, 0]] * 3


@pytest.mark.parametrize(("length", "members"), [(0, 2), (1, 4), (256, 2), (257, 2), (5000, 3), (1024, 4)])
def test_chunks_are_whole_blocks_and_make_up_the_bucket(length: int, members: int) -> None:
    values_N = torch.arange(length)
    chunks = cut(values_N, members)
    assert len(chunks) == members
    assert torch.equal(torch.cat(chunks), values_N)
    assert all(len(chunk) % 256 == 0 for chunk in chunks[: length * members // max(1, length + 256 * members)])


def swapped(rank: int, size: int, group: Any) -> list[list[int]]:
    """Rows of rank * 10 + to, of differing lengths, by each way."""
    found = []
    for swap in (swap_directly, swap_together):
        rows = [torch.full(((rank + to) % 3,), 10 * rank + to, dtype=torch.uint8) for to in range(size)]
        into = [torch.full(((source + rank) % 3,), 255, dtype=torch.uint8) for source in range(size)]
        swap(group, rows, into, 7)()
        found.append(torch.cat(into).tolist())
    return found


def test_both_ways_of_swapping_bring_the_same() -> None:
    """NCCL takes the other one of the two."""
    for rank, (directly, together) in enumerate(run_distributed(HERE + "swapped", 4)):
        assert directly == together
        assert directly == [255 if to == rank else 10 * to + rank for to in range(4) for _ in range((to + rank) % 3)]


# --- time --------------------------------------------------------------------------------------------------------


def slowed(rank: int, size: int, group: Any, name: Name) -> list[float]:
    slow = Link(latency=20e-3, bandwidth=10e6)
    reducer = Reducer(group, build_codec(name), slow)
    began = time.monotonic()
    reduce(reducer, [torch.ones(50_000) for _ in range(3)])
    return [time.monotonic() - began, reducer.seconds, reducer.sent]


@pytest.mark.parametrize(("name", "latencies"), [("none", 6), ("int8", 2), ("topk", 1)])
def test_a_slow_link_holds_back(name: str, latencies: int) -> None:
    """Plain all-reduces go one after the other; encoded buckets side by side."""
    for taken, seconds, sent in run_distributed(HERE + "slowed", 2, name=name):
        assert taken >= seconds >= 0.99 * (sent / 10e6 + latencies * 20e-3)


def timed(rank: int, size: int, group: Any) -> list[list[float]]:
    found = []
    for name in NAMES:
        reducer = Reducer(group, build_codec(name))
        began = time.monotonic()
        reduce(reducer, [torch.ones(5000) for _ in range(3)])
        taken = time.monotonic() - began
        found.append([reducer.seconds, taken])
    return found


def test_seconds_are_within_those_that_passed() -> None:
    for member in run_distributed(HERE + "timed", 2):
        assert all(0 < seconds <= taken for seconds, taken in member)


# --- ends --------------------------------------------------------------------------------------------------------


def last_member_dies(rank: int, size: int, group: Any, name: Name) -> None:
    """In the middle of the second unit; the others have to hear of it."""
    reducer = Reducer(group, build_codec(name))
    buckets = [torch.ones(300_000) for _ in range(4)]
    reduce(reducer, buckets)
    reducer.begin(1)
    reducer.launch(buckets[0], 0)
    if rank == size - 1:
        reducer.wait()
        os._exit(7)
    for key in range(1, 4):
        reducer.launch(buckets[key], key)
    with pytest.raises(PeerLost):
        reducer.wait()
    reducer.begin(2)
    reducer.launch(buckets[0], 0)
    with pytest.raises(PeerLost):
        reducer.wait()
    os._exit(0)  # as a worker does that lost a peer: so those hear of it that wait for this one


@pytest.mark.parametrize("members", [2, 4])
@pytest.mark.parametrize("name", ["none", "int8", "topk"])
def test_a_member_that_dies_is_missed(name: str, members: int) -> None:
    """The one that died told why by its status; none of the others failed."""
    with pytest.raises(ProcessesFailed) as failed:
        run_distributed(HERE + "last_member_dies", members, timeout=30.0, name=name)
    statuses = str(failed.value)
    assert "last_member_dies: {" in statuses
    assert (statuses.count(": 0"), statuses.count(": 7")) == (members - 1, 1)


def senders_left(rank: int, size: int, group: Any) -> int:
    reducer = Reducer(group, build_codec("int8"))
    reduce(reducer, [torch.ones(100)])
    (sender,) = [thread for thread in threading.enumerate() if thread.name == "plait-sender"]
    del reducer
    gc.collect()
    sender.join(10.0)
    return sum(thread.name == "plait-sender" for thread in threading.enumerate())


def test_a_reducer_takes_its_thread_along() -> None:
    assert run_distributed(HERE + "senders_left", 2) == [0, 0]
