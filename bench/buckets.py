"""What buckets cost on their way between replicas: through plait's reducer against gloo's all-reduce alone, and in fewer bytes.

python bench/buckets.py prints the tables of docs/compression.md: bytes and milliseconds of each codec, as the link is and slowed down.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from place import Figure, Place
from torch import Tensor
from torch.distributed import ProcessGroup

from plait.replica import device as devices
from plait.sync.compress import build_codec
from plait.sync.link import Link
from plait.sync.reduce import Reducer
from plait.testing.processes import run_distributed

BANDWIDTH, BYTES = 0.95, 0.27
MEMBERS, BUCKETS, MEBIBYTES = 2, 8, 8
TURNS = 9
"""In a round."""
CODECS = ("none", "bf16", "fp16", "int8", "topk")
SLOW = ((0.1, 1000.0), (1.0, 100.0))
"""Links: milliseconds, MiB a second."""


def measure(place: Place) -> list[Figure]:
    found = _raced(["raw", "none", "int8"], rounds=place.effort.rounds, mebibytes=0.25 if place.effort.tiny else MEBIBYTES)
    raw, plain, int8 = (found["seconds"][name] for name in ("raw", "none", "int8"))
    what = f"{BUCKETS} buckets of {MEBIBYTES} MiB, {MEMBERS} processes:"
    rates = [theirs / ours for theirs, ours in zip(raw, plain, strict=True)]
    speed = f"{1e3 * statistics.median(plain):.0f} ms"
    beside = f"{1e3 * statistics.median(int8):.0f} ms, fp32 {speed}; a link of one host"
    return [
        Figure.of(f"{what} plait's bandwidth / gloo's", BANDWIDTH, rates, detail=speed),
        Figure.of(
            f"{what} bytes sent as int8 / as fp32", BYTES, [found["sent"]["int8"] / found["sent"]["none"]], at_least=False, detail=beside
        ),
    ]


def _raced(names: Sequence[str], **arguments: Any) -> dict[str, Any]:
    """The slowest member's seconds by name, one for each round; bytes that a member sent."""
    members = run_distributed("buckets:race", MEMBERS, timeout=600.0, names=list(names), **arguments)
    slowest = {name: [max(each) for each in zip(*(member["seconds"][name] for member in members), strict=True)] for name in names}
    return {"seconds": slowest, "sent": members[0]["sent"]}


def race(
    rank: int, size: int, group: ProcessGroup, names: list[str], rounds: int, mebibytes: float, link: tuple[float, float] | None = None
) -> dict[str, Any]:
    """Seconds of each way in each round, medians over turns that alternate; "raw" is gloo's own all-reduce."""
    devices.keep_freed_memory()
    buckets = [torch.randn(int(mebibytes * 2**18)) for _ in range(BUCKETS)]
    slow = Link(link[0] / 1e3, link[1] * 2**20) if link else None
    reducers = {name: Reducer(group, build_codec(name), slow) for name in names if name != "raw"}  # type: ignore[arg-type]
    ways: dict[str, Callable[[], None]] = {name: _through(reducer, buckets) for name, reducer in reducers.items()}
    ways["raw"] = lambda: _raw(group, buckets)
    taken: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(1 + rounds):  # the first warms up
        for name, seconds in _round(names, ways, buckets, group).items():
            if turn:
                taken[name].append(seconds)
    return {"seconds": taken, "sent": {name: reducer.sent for name, reducer in reducers.items()}}


def _round(names: list[str], ways: dict[str, Callable[[], None]], buckets: list[Tensor], group: ProcessGroup) -> dict[str, float]:
    taken: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(TURNS):
        for name in names if turn % 2 else names[::-1]:
            for bucket in buckets:
                bucket.normal_()  # sums of sums would overflow
            group.barrier().wait()
            began = time.perf_counter()
            ways[name]()
            taken[name].append(time.perf_counter() - began)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def _raw(group: ProcessGroup, buckets: list[Tensor]) -> None:
    for work in [group.allreduce([bucket]) for bucket in buckets]:
        work.wait()


def _through(reducer: Reducer, buckets: list[Tensor]) -> Callable[[], None]:
    def reduce() -> None:
        reducer.begin(0)
        for key, bucket in enumerate(buckets):
            reducer.launch(bucket, key)
        reducer.wait()
        reducer.keep(True)

    return reduce


def main() -> None:
    print(f"| {BUCKETS} buckets of {MEBIBYTES} MiB | MiB sent | " + " | ".join(map(_told, (None, *SLOW))) + " |")
    print("|---|---|" + "---|" * (1 + len(SLOW)))
    links = [_raced(CODECS, rounds=1, mebibytes=MEBIBYTES, link=link) for link in (None, *SLOW)]
    for name in CODECS:
        times = " | ".join(f"{1e3 * found['seconds'][name][0]:.0f}" for found in links)
        print(f"| {name} | {links[0]['sent'][name] / 2**20:.1f} | {times} |")


def _told(link: tuple[float, float] | None) -> str:
    return "ms, one host" if link is None else f"ms, {link[0]:g} ms and {link[1]:g} MiB/s"


if __name__ == "__main__":
    main()
