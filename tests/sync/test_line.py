"""Lines to a parameter server: what is sent arrives, who may not come in stays out, and nobody's death is felt by others."""

from __future__ import annotations

import json
import logging
import os
import re
import select
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import zmq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import plait
from plait.errors import PlaitError, UserError
from plait.sync import frames, line, memory
from plait.sync.line import Line, Listener, Message
from plait.testing.processes import warm_nursery

TRANSPORTS = ("memory", "frames")
SECRET = "a secret"
PATIENCE = 20.0
BIG = 2**20 + 4096 * 3
"""Elements: a size that no other test uses, found again among what this process has mapped."""


@pytest.fixture(autouse=True, scope="module")
def nothing_is_small() -> Iterator[None]:
    """Tensors of any size take the transport that is tested."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(line, "SMALL", 1)
        yield


@contextmanager
def listening(transport: str = "memory", address: str = "") -> Iterator[Listener]:
    with tempfile.TemporaryDirectory(prefix="plait-line-") as folder:
        server = Listener(address or f"ipc://{folder}/server", SECRET)
        if transport == "frames":
            server._proof = None  # as where there is no such memory
        yield server
        server.close()


@contextmanager
def calling(server: Listener, name: str, link: Any = None) -> Iterator[Line]:
    """A line that the server knows, and which has heard so."""
    worker = Line(server.address, SECRET, name, link)
    worker.send({"hello": name})
    assert receive_from(server, name).head == {"hello": name}
    server.send(name, {})
    assert worker.receive(PATIENCE)
    worker.send({})  # behind its word that it shares
    receive_from(server, name)
    yield worker
    worker.close()


def receive(server: Listener) -> Message:
    """The next message, when it comes alone."""
    [message] = receive_all(server, 1)
    return message


def receive_from(server: Listener, name: str) -> Message:
    """The next message of one; those of others are dropped."""
    while True:
        for message in receive_all(server, 1):
            if message.peer == name:
                return message


def receive_all(server: Listener, count: int) -> list[Message]:
    messages: list[Message] = []
    end = time.monotonic() + PATIENCE
    while len(messages) < count:
        assert time.monotonic() < end, "nothing came"
        server.socket.poll(100)
        messages += server.receive()
    return messages


def until_refused(server: Listener, count: int) -> None:
    end = time.monotonic() + PATIENCE
    while server.refused < count:
        assert time.monotonic() < end, "nothing was turned away"
        server.socket.poll(100)
        assert server.receive() == []


class Stranger:
    """A bare socket, which knows the secret of the connection unless told otherwise."""

    def __init__(self, server: Listener, secret: str = SECRET, identity: bytes = b"") -> None:
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.DEALER)
        for option, value in ((zmq.LINGER, 0), (zmq.SNDHWM, 1000), (zmq.RCVHWM, 10), (zmq.PLAIN_PASSWORD, line._key(secret))):
            self.socket.setsockopt(option, value)
        self.socket.setsockopt(zmq.PLAIN_USERNAME, b"x")
        if identity:
            self.socket.setsockopt(zmq.IDENTITY, identity)
        self.socket.connect(server.address)
        self.token = b"0123456789abcdef"

    def send(self, *parts: Any) -> None:
        self.socket.send_multipart([part if isinstance(part, bytes) else json.dumps(part).encode() for part in parts])

    def hello(self, name: str, **others: Any) -> None:
        self.send(self.token, {**line._hello(name, line._key(SECRET), None), **others})

    def heard(self) -> dict[str, Any]:
        assert self.socket.poll(1000 * PATIENCE)
        heard: dict[str, Any] = json.loads(self.socket.recv_multipart()[0])
        return heard

    def close(self) -> None:
        self.socket.close()
        self.context.term()


@contextmanager
def stranger(server: Listener, name: str = "", **others: Any) -> Iterator[Stranger]:
    """With a name: one that has said hello."""
    found = Stranger(server, **others)
    if name:
        found.hello(name)
        while name not in server.peers:
            server.socket.poll(100)
            server.receive()
        assert found.heard()["kind"] == "welcome"
    yield found
    found.close()


def bits(tensors: list[Tensor]) -> list[tuple[torch.dtype, list[int], list[int]]]:
    return [(tensor.dtype, list(tensor.shape), tensor.contiguous().reshape(-1).view(torch.uint8).tolist()) for tensor in tensors]


@st.composite
def tensor(draw: st.DrawFn) -> Tensor:
    dtype = draw(st.sampled_from(list(frames.DTYPES.values())))
    shape = draw(st.lists(st.integers(0, 5), max_size=4))
    size = int(torch.Size(shape).numel()) * dtype.itemsize
    values = torch.tensor(list(draw(st.binary(min_size=size, max_size=size))), dtype=torch.uint8)
    found = values.view(dtype).view(shape) if size else torch.empty(shape, dtype=dtype)
    return found.transpose(0, -1) if shape and draw(st.booleans()) else found


@pytest.fixture(params=TRANSPORTS, scope="module")
def ends(request: pytest.FixtureRequest) -> Iterator[tuple[Listener, Line]]:
    with listening(request.param) as server, calling(server, "0.0.1") as worker:
        assert worker.shares == (request.param == "memory")
        yield server, worker


@given(st.lists(tensor(), max_size=6))
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=100)
def test_tensors_arrive_bit_for_bit_both_ways(ends: tuple[Listener, Line], tensors: list[Tensor]) -> None:
    server, worker = ends
    worker.send({"push": 1}, tensors)
    pushed = receive(server)
    assert all(came.data_ptr() % came.element_size() == 0 for came in pushed.tensors)
    assert (pushed.peer, pushed.head, bits(pushed.tensors)) == ("0.0.1", {"push": 1}, bits(tensors))
    server.send("0.0.1", {"pull": [1.5]}, pushed.tensors)
    pushed.release()
    pulled = worker.receive(PATIENCE)
    assert pulled is not None
    assert (pulled.head, bits(pulled.tensors)) == ({"pull": [1.5]}, bits(tensors))
    pulled.release()


@given(st.permutations(range(5)))
@settings(deadline=None, max_examples=20)
def test_messages_are_released_in_any_order(ends: tuple[Listener, Line], order: list[int]) -> None:
    server, worker = ends
    for value in range(5):
        worker.send({}, [torch.full((100,), float(value))])
    messages = receive_all(server, 5)
    for released in order:
        assert [message.tensors[0].unique().tolist() for message in messages if message.tensors] == [
            [float(value)] for value, message in enumerate(messages) if message.tensors
        ]
        messages[released].release()
        messages[released].release()
    assert server.refused == 0


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_what_was_sent_may_change_at_once_and_what_came_stays(transport: str) -> None:
    with listening(transport) as server, calling(server, "w") as worker:
        bucket = torch.zeros(100_000)
        for value in range(3):
            worker.send({}, [bucket.fill_(value)])
        bucket.fill_(-1)
        first, second, third = receive_all(server, 3)
        second.release()
        worker.send({}, [bucket.fill_(9)])
        fourth = receive(server)
        assert [message.tensors[0].unique().tolist() for message in (first, third, fourth)] == [[0.0], [2.0], [9.0]]
        for message in (first, third, fourth):
            message.release()


def test_released_memory_is_written_again() -> None:
    with listening() as server, calling(server, "w") as worker:
        for value in range(50):
            worker.send({}, [torch.full((100_000,), float(value))])
            pushed = receive(server)
            server.send("w", {}, pushed.tensors)
            pushed.release()
            pulled = worker.receive(PATIENCE)
            assert pulled is not None
            pulled.release()
        assert worker._packer.segments.size <= 2 * 409_600
        assert server._packer.segments.size <= 2 * 409_600


def test_larger_messages_take_the_place_of_smaller_segments() -> None:
    with listening() as server, calling(server, "w") as worker:
        for size in (10_000, 100_000, 200_000):
            for _ in range(2):  # that the first is free again may be heard only after the second is sent
                worker.send({}, [torch.ones(size)])
                receive(server).release()
                server.send("w", {})
                assert worker.receive(PATIENCE)
        assert len(server._peers["w"].mappings._mapped) <= 2  # type: ignore[union-attr]
        assert worker._packer.segments.size <= 2 * 802_816


def test_more_than_a_window_is_not_lost() -> None:
    with listening() as server, calling(server, "w") as worker:
        for value in range(frames.WINDOW + 5):
            worker.send({}, [torch.full((1000,), float(value))])
        messages = receive_all(server, frames.WINDOW + 5)
        assert [message.tensors[0][0].item() for message in messages] == [float(value) for value in range(frames.WINDOW + 5)]


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_the_same_is_sent_to_all_with_one_copy(transport: str) -> None:
    with listening(transport) as server, calling(server, "a") as a, calling(server, "b") as b:
        server.send_all(["a", "b", "nobody"], {"step": 1}, [torch.arange(1000)])
        for worker in (a, b):
            message = worker.receive(PATIENCE)
            assert message is not None
            assert message.tensors[0].tolist() == list(range(1000))
        assert len(server._packer.segments.numbers) == (1 if transport == "memory" else 0)


def test_bytes_of_tensors_are_counted() -> None:
    with listening() as server, calling(server, "w") as worker:
        worker.send({}, [torch.ones(10), torch.ones(3, dtype=torch.bfloat16)])
        receive(server)
        server.send("w", {}, [torch.ones(5, dtype=torch.int64)])
        assert worker.receive(PATIENCE)
        assert (worker.sent, server.received, server.sent, worker.received) == (46, 46, 40, 40)


def test_nothing_within_the_timeout_is_none() -> None:
    with listening() as server, calling(server, "w") as worker:
        assert worker.receive(0) is None
        assert worker.receive(0.01) is None


def test_a_dtype_that_does_not_travel_is_named() -> None:
    with listening() as server, calling(server, "w") as worker, pytest.raises(TypeError, match=r"complex64.*these do: float32"):
        worker.send({}, [torch.ones(3, dtype=torch.complex64)])


def test_a_message_to_nobody_or_to_who_left_is_no_error() -> None:
    with listening() as server:
        server.send("nobody", {}, [torch.ones(3)])
        with calling(server, "w"):
            pass
        while server.peers:
            server.socket.poll(100)
            server.receive()
        server.send("w", {}, [torch.ones(3)])


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_peer_that_reads_nothing_does_not_hold_the_server(transport: str) -> None:
    with listening(transport) as server, calling(server, "slow"), calling(server, "w") as worker:
        for _ in range(10 * line.QUEUED):
            server.send("slow", {}, [torch.ones(100_000)])
        assert server._packer.segments.size <= frames.WINDOW * 401_408
        server.send("w", {"at": "last"})
        assert worker.receive(PATIENCE).head == {"at": "last"}  # type: ignore[union-attr]


class Booked:
    """An emulated link of which nobody has to wait: it notes what it is told. `late` seconds until something arrives."""

    def __init__(self, late: float = 0.0) -> None:
        self.late = late
        self.notes: list[Any] = []

    def book(self, size: int, messages: int = 1) -> float:
        self.notes.append(size)
        return time.monotonic() + self.late

    def hold(self, until: float) -> None:
        self.notes.append("held")


def test_a_slow_link_holds_what_is_sent_and_what_comes() -> None:
    link = Booked()
    with listening() as server, calling(server, "w", link) as worker:
        link.notes.clear()
        worker.send({}, [torch.ones(10)])
        assert link.notes == [40, "held"]
        server.send("w", {}, [torch.ones(20)])
        assert worker.receive(PATIENCE)
        assert link.notes == [40, "held", 80, "held"]


def test_what_is_still_on_a_slow_link_has_not_come() -> None:
    link = Booked()
    with listening() as server, calling(server, "w", link) as worker:
        link.late = 3600
        server.send("w", {"late": True})
        assert worker.socket.poll(1000 * PATIENCE)
        assert worker.receive(0) is None
        worker._inbox[0] = (time.monotonic(), worker._inbox[0][1])
        assert worker.receive(0).head == {"late": True}  # type: ignore[union-attr]


def test_a_server_that_all_can_reach_needs_a_secret() -> None:
    for address in ("tcp://*:*", "tcp://0.0.0.0:*", "tcp://10.1.2.3:5", "tcp://127.example.org:*"):
        with pytest.raises(UserError, match="give it a secret"):
            Listener(address, "")
    for address in ("http://x", "server", "ipc://"):
        with pytest.raises(UserError, match="listens on ipc://path or tcp://host:port"):
            Listener(address, "secret")
    Listener("tcp://127.0.0.1:*", "").close()


def test_a_wrong_secret_is_told_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    with listening(address="tcp://127.0.0.1:*") as server, caplog.at_level(logging.WARNING, "plait"):
        with closing(Line(server.address, "a guess", "w")) as worker:
            with pytest.raises(PlaitError, match="the parameter server turned this worker away: a wrong secret"):
                worker.receive(PATIENCE)
            with pytest.raises(PlaitError, match="a wrong secret"):
                worker.send({})
        assert server.refused == 1
        assert server.receive() == []
    assert [record.getMessage() for record in caplog.records] == ["the parameter server turned away a stranger (127.0.0.1): a wrong secret"]


def test_a_wrong_secret_behind_the_gate_is_refused_too() -> None:
    with listening() as server, stranger(server) as evil:
        evil.hello("w", key=line._key("a guess").decode())
        until_refused(server, 1)
        assert evil.heard() == {"kind": "refused", "why": "a wrong secret"}


def test_another_version_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    with listening() as server:
        with monkeypatch.context() as patch:
            patch.setattr(plait, "__version__", "0.0.9")
            worker = Line(server.address, SECRET, "w")
        with closing(worker):
            until_refused(server, 1)
            with pytest.raises(
                PlaitError, match=f"turned this worker away: the server runs plait {re.escape(plait.__version__)}, protocol 1"
            ):
                worker.receive(PATIENCE)


def test_a_name_is_taken_once_and_free_when_forgotten() -> None:
    with listening() as server, calling(server, "w"):
        with closing(Line(server.address, SECRET, "w")) as second:
            until_refused(server, 1)
            with pytest.raises(PlaitError, match="the name w is taken: who comes back takes a new one"):
                second.receive(PATIENCE)
        server.forget("w")
        with calling(server, "w") as third:
            assert third.shares


def test_a_connection_alone_makes_nobody_a_peer() -> None:
    """One takes the identity of a peer that has lost its connection, as somebody who knows the secret could."""
    with listening() as server:
        with stranger(server, "w", identity=b"known"):
            pass
        with stranger(server, identity=b"known") as evil:
            evil.token = b"f" * 16
            evil.send(evil.token, {"kind": "message", "head": {}})
            until_refused(server, 1)
            assert evil.heard() == {"kind": "refused", "why": "not the token of its hello"}
            evil.hello("w")
            until_refused(server, 2)


MALFORMED = {
    "no frames": ([], "0 frames|1 frames"),
    "no envelope": ([b""], "no JSON"),
    "no head": ([{"kind": "message"}], "without a head"),
    "unknown kind": ([{"kind": "pickle"}], "a kind that is not known"),
    "unknown dtype": ([{"kind": "message", "head": {}, "tensors": [["complex64", [1]]]}, b"12345678"], "no dtype and shape"),
    "a frame too few": ([{"kind": "message", "head": {}, "tensors": [["int8", [1]]]}], "1 tensors in 0 frames"),
    "a byte too few": ([{"kind": "message", "head": {}, "tensors": [["int32", [2]]]}, b"1234567"], "7 bytes for a tensor of 8"),
    "a negative size": ([{"kind": "message", "head": {}, "tensors": [["int8", [-1, -1]]]}, b"1"], "a shape that is not"),
    "a size of no number": ([{"kind": "message", "head": {}, "tensors": [["int8", [True]]]}, b"1"], "a shape that is not"),
    "too many elements": ([{"kind": "message", "head": {}, "tensors": [["int8", [0, 2**40, 2**40]]]}, b""], "more than"),
    "a deep bomb": ([b"[" * 500_000], "no JSON"),
    "a long number": ([b'{"kind":' + b"9" * 10_000 + b"}"], "no JSON"),
    "a long envelope": ([b" " * (frames.MOST_JSON + 1)], "the most is"),
    "memory without agreement": ([{"kind": "message", "head": {}, "segment": [1, 3], "segments": []}], "not agreed on"),
    "a segment of no number": ([{"kind": "message", "head": {}, "segment": "x"}], "no number and file"),
    "a release of nothing": ([{"kind": "released", "segment": 4}], "does not hold"),
}


@pytest.mark.parametrize(("parts", "why"), MALFORMED.values(), ids=list(MALFORMED))
def test_what_is_malformed_is_refused_with_a_reason(parts: list[Any], why: str) -> None:
    with listening() as server, stranger(server, "evil") as evil, calling(server, "w") as worker:
        evil.send(evil.token, *parts)
        until_refused(server, 1)
        assert re.search(why, evil.heard()["why"])
        worker.send({"still": "served"})
        assert receive(server).head == {"still": "served"}


def _fd_of(what: str, folder: str) -> int:
    """A file that is no sealed memory."""
    if what == "a file":
        return os.open(f"{folder}/file", os.O_RDWR | os.O_CREAT)
    if what == "a pipe":
        return os.pipe()[0]
    fd = os.memfd_create(memory.NAME, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, 4096)
    return fd


UNSHARED = {
    "a file": "something else",
    "a pipe": "something else",
    "memory that can be cut off": "not sealed",
    "nothing": "cannot be seen",
    "too little": "in a segment of 4096",
}


@pytest.mark.parametrize(("what", "why"), UNSHARED.items(), ids=list(UNSHARED))
def test_only_sealed_memory_of_enough_size_is_mapped(what: str, why: str, tmp_path: Path) -> None:
    segment = memory.Segment(4096)
    fd = {"nothing": 10**6, "too little": segment.fd}.get(what) or _fd_of(what, str(tmp_path))
    proof = memory.proof()
    assert proof is not None
    with listening() as server, stranger(server) as evil:
        evil.hello("evil", memory=proof.offer())
        evil.send(evil.token, {"kind": "message", "head": {}, "tensors": [["int8", [4097]]], "segment": [1, fd], "segments": [1]})
        until_refused(server, 1)
        assert evil.heard()["kind"] == "welcome"
        assert why in evil.heard()["why"]
    if what not in ("nothing", "too little"):
        os.close(fd)


def test_refusals_of_a_kind_are_logged_once_a_second(caplog: pytest.LogCaptureFixture) -> None:
    with listening() as server, stranger(server, "evil") as evil, caplog.at_level(logging.WARNING, "plait"):
        for _ in range(50):
            evil.send(evil.token, b"no json")
        until_refused(server, 50)
        messages = [record.getMessage() for record in caplog.records]
    assert set(messages) == {"the parameter server turned away evil: an envelope that is no JSON"}
    assert len(messages) < 50 / 2


def test_a_server_that_ends_is_noticed_after_its_last_word() -> None:
    with listening() as server, calling(server, "w") as worker:
        server.send("w", {"last": "word"})
        server.close()
        assert worker.receive(PATIENCE).head == {"last": "word"}  # type: ignore[union-attr]
        with pytest.raises(PlaitError, match="hung up"):
            worker.receive(PATIENCE)
        with pytest.raises(PlaitError, match="hung up"):
            worker.send({})
        server.close = lambda: None  # type: ignore[method-assign]


def push_for_ever(config: dict[str, Any]) -> int:
    """In a process of its own: pushes until it is killed, whether or not anybody reads."""
    worker = Line(config["address"], SECRET, "0.0.1")
    worker.receive(PATIENCE)
    while True:
        worker.send({"push": True}, [torch.ones(BIG)])


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_worker_killed_in_mid_push_leaves_the_server_serving_and_no_memory(transport: str) -> None:
    before = set(os.listdir("/dev/shm"))
    with listening(transport, "tcp://127.0.0.1:*") as server, calling(server, "1.0.1") as worker:
        nursery = warm_nursery()
        nursery.fork("pusher", "tests.sync.test_line:push_for_ever", {"address": server.address})
        while "0.0.1" not in server.peers:
            server.socket.poll(100)
            server.receive()
        server.send("0.0.1", {"go": True})
        for message in receive_all(server, 3):
            assert torch.equal(message.tensors[0], torch.ones(BIG))
            message.release()
        del message
        server.send("0.0.1", {}, [torch.ones(BIG)])
        assert server._packer.segments.held("0.0.1") == (transport == "memory")
        nursery.signal("pusher", signal.SIGKILL)
        while not any("ended" in message for message in nursery.messages()):
            assert select.select([nursery], [], [], PATIENCE)[0]
        worker.send({"still": "here"})
        assert receive_from(server, "1.0.1").head == {"still": "here"}
        with calling(server, "0.0.2") as again:
            again.send({}, [torch.full((1000,), 2.0)])
            assert receive_from(server, "0.0.2").tensors[0].sum() == 2000
            assert server._packer.segments.held("0.0.1") == 0
            assert _mapped() == (transport == "memory")  # the server's own, for the next
    assert set(os.listdir("/dev/shm")) == before


def _mapped() -> int:
    """How many segments that hold BIG floats this process has mapped."""
    lines = [line for line in Path("/proc/self/maps").read_text().splitlines() if memory.NAME in line]
    spans = [[int(bound, 16) for bound in line.split()[0].split("-")] for line in lines]
    return sum(end - begin == 4 * BIG for begin, end in spans)
