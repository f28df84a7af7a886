"""Gradients to a parameter server and parameters back, 100 MB of fp32 between two processes of one host, against the bare thing.

    shared memory     a memcpy into a shared mapping, a ZeroMQ message that tells, a memcpy out of it, a message back
    tcp               pyzmq's send and recv with copy=False, from the tensor itself and nothing read of it, a message back

All four take turns in two processes that live as long as the measurement. A push and a pull are measured alone, at the worker.
"""

from __future__ import annotations

import mmap
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import zmq
from place import Effort, Figure, Place
from torch import Tensor
from torch.distributed import ProcessGroup

from plait.replica import device as devices
from plait.sync.line import Line, Listener, Message
from plait.testing.processes import run_distributed

GOAL = 0.8
BYTES = 100_000_000
REPEATS = 5
WARM = 2

Act = Callable[[], None]


def measure(place: Place) -> list[Figure]:
    length = BYTES // 1000 if place.effort.tiny else BYTES
    folder = place.new("line")
    folder.mkdir()
    found = run_distributed("line:exchanged", 2, timeout=300.0, folder=str(folder), length=length, rounds=place.effort.rounds)[1]
    return [_figure(transport, way, length, found) for transport in ("memory", "tcp") for way in ("push", "pull")]


def _figure(transport: str, way: str, length: int, found: dict[str, list[float]]) -> Figure:
    ours, bare = found[f"{transport} {way}"], found[f"bare {transport} {way}"]
    alone = {"memory": "memcpy in and out of a shared mapping", "tcp": "bare pyzmq"}[transport]
    detail = f"{1000 * statistics.median(ours):.1f} ms, bare {1000 * statistics.median(bare):.1f} ms"
    rates = [theirs / mine for theirs, mine in zip(bare, ours, strict=True)]
    return Figure.of(f"{way} of {length / 1e6:g} MB by {transport} / {alone}", GOAL, rates, detail=detail)


def exchanged(rank: int, size: int, group: ProcessGroup, folder: str, length: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of each way in each round, at rank 1; rank 0 answers."""
    devices.keep_freed_memory()
    end = _Server if rank == 0 else _Worker
    makers: list[Callable[[str], Any]] = [lambda name: end(folder, length, name), lambda name: _Bare(rank, folder, length, name)]
    ways = [make(transport) for transport in ("memory", "tcp") for make in makers]
    acts: dict[str, Act] = {f"{way.name} {name}": getattr(way, name) for way in ways for name in ("push", "pull")}
    taken: dict[str, list[float]] = {name: [] for name in acts}
    for turn in range(WARM + rounds):
        repeats = [[_timed(act) for act in acts.values()] for _ in range(REPEATS)]
        for name, seconds in zip(acts, zip(*repeats, strict=True), strict=True):
            taken[name] += [statistics.median(seconds)] if turn >= WARM else []
    for way in ways:
        way.close()
    return taken


def _timed(act: Act) -> float:
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


class _Server:
    """plait's. What comes through shared memory is copied out of it, as the bare one does."""

    def __init__(self, folder: str, size: int, transport: str) -> None:
        self.name = transport
        self._values = torch.ones(size // 4)
        self._listener = Listener("tcp://127.0.0.1:*" if transport == "tcp" else f"ipc://{folder}/plait", "secret")
        if transport == "tcp":
            self._listener._proof = None  # as between hosts
        _write(Path(folder, f"plait-{transport}"), self._listener.address)

    def push(self) -> None:
        message = self._next()
        if self.name == "memory":
            self._values.copy_(message.tensors[0])
        message.release()
        self._listener.send("worker", {})

    def pull(self) -> None:
        self._next()
        self._listener.send("worker", {}, [self._values])

    def close(self) -> None:
        self._next()
        self._listener.close()

    def _next(self) -> Message:
        while True:
            for message in self._listener.receive():
                return message
            self._listener.socket.poll()


class _Worker:
    def __init__(self, folder: str, size: int, transport: str) -> None:
        self.name = transport
        self._values = torch.ones(size // 4)
        self._line = Line(_read(Path(folder, f"plait-{transport}")), "secret", "worker")

    def push(self) -> None:
        self._line.send({}, [self._values])
        self._line.receive()

    def pull(self) -> None:
        self._line.send({})
        message = self._line.receive()
        assert message is not None
        if self.name == "memory":
            self._values.copy_(message.tensors[0])
        message.release()

    def close(self) -> None:
        assert self._line.shares == (self.name == "memory")
        self._line.send({})
        self._line.close()


class _Bare:
    """Either end without plait: rank 1 pushes and pulls."""

    def __init__(self, rank: int, folder: str, size: int, transport: str) -> None:
        self.name = f"bare {transport}"
        self._shares, self._asks = transport == "memory", rank == 1
        self._values = torch.ones(size // 4)
        self._mapping = _mapping(Path(folder, f"mapping-{transport}"), size, owner=rank == 0)
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        meeting = Path(folder, f"bare-{transport}")
        if self._asks:
            self._socket.connect(_read(meeting))
        else:
            self._socket.bind("tcp://127.0.0.1:*" if transport == "tcp" else f"ipc://{folder}/bare")
            _write(meeting, self._socket.getsockopt_string(zmq.LAST_ENDPOINT))

    def push(self) -> None:
        if self._asks:
            self._give()
            self._socket.recv()
        else:
            self._take()
            self._socket.send(b"")

    def pull(self) -> None:
        if self._asks:
            self._socket.send(b"")
            self._take()
        else:
            self._socket.recv()
            self._give()

    def close(self) -> None:
        self._socket.close()
        self._context.term()

    def _give(self) -> None:
        if self._shares:
            self._mapping.copy_(self._values)
            self._socket.send(b"")
        else:
            self._socket.send(self._values.numpy(), copy=False)

    def _take(self) -> None:
        frame = self._socket.recv(copy=False)
        if self._shares:
            self._values.copy_(self._mapping)
        else:
            torch.frombuffer(frame.buffer, dtype=torch.float32)


def _mapping(meeting: Path, size: int, owner: bool) -> Tensor:
    """The same memory for both."""
    if owner:
        fd = os.memfd_create("bare")
        os.ftruncate(fd, size)
        _write(meeting, f"/proc/{os.getpid()}/fd/{fd}")
    else:
        fd = os.open(_read(meeting), os.O_RDWR)
    return torch.frombuffer(mmap.mmap(fd, size), dtype=torch.float32)


def _write(path: Path, text: str) -> None:
    new = path.with_suffix(".new")
    new.write_text(text)
    new.rename(path)


def _read(path: Path) -> str:
    while not path.exists():
        time.sleep(0.01)
    return path.read_text()


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for figure in measure(Place(Path(folder), Path(folder), Effort(rounds=12, seconds=1.0))):
            print(figure, figure.detail)


if __name__ == "__main__":
    main()
