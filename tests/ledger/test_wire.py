"""The ledger's socket: messages survive the trip, strangers do not get in."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st

from plait.ledger.messages import Apply, Closed, Did, Join, Part, Verdict, Vote, Work, decode, encode
from plait.ledger.wire import LedgerClient, LedgerServer, RunClosed

HELLO = Join("host", 1, "cpu", 10)


@pytest.fixture
def server() -> Iterator[LedgerServer]:
    opened = LedgerServer("tcp://127.0.0.1:*", "secret")
    yield opened
    opened.close()


def test_messages_survive_the_trip() -> None:
    work = Work(3, 1, [Part(2, [[0, 4]], [[0, 8]])])
    for message in (
        Apply(None, "commit", 1.0, 0.1, 3, [0, 1], []),
        Verdict(3, 2, "commit", 1.5, work=work),
        Vote(3, [Did(float("inf"), 0.1, 0.1, [[], [1]])], 0.1),
        Closed("x"),
    ):
        assert decode(encode(message)) == message


def test_a_request_is_answered_and_a_closed_run_raises(server: LedgerServer) -> None:
    client = LedgerClient(server.address, "secret", (0, 0))
    with ThreadPoolExecutor(1) as pool:
        joined = pool.submit(client.join, HELLO)
        server.socket.poll(5000)
        assert server.receive() == [((0, 0), HELLO)]
        begin = Verdict(0, 0, "begin", 0.0)
        server.send([((0, 0), begin)])
        assert joined.result(5) == begin
        voted = pool.submit(client.vote, Vote(1, [Did(1.0, 1.0, 0.1)], 0.1))
        server.socket.poll(5000)
        server.receive()
        server.send([((0, 0), Closed("over"))])
        with pytest.raises(RunClosed, match="over"):
            voted.result(5)
    client.close()


def test_a_wrong_token_and_malformed_frames_are_dropped(server: LedgerServer) -> None:
    stranger = zmq.Context.instance().socket(zmq.DEALER)
    stranger.setsockopt(zmq.LINGER, 0)
    stranger.connect(server.address)
    for frames in ([b"guess", encode(HELLO)], [b"secret", b"\xff{"], [b"secret"], [b"secret", b'{"kind":"Join"}'], [b"a", b"b", b"c"]):
        stranger.send_multipart(frames)
    client = LedgerClient(server.address, "secret", (1, 0))
    client.tell(HELLO)
    received = []
    while not received:
        assert server.socket.poll(5000)
        received = server.receive()
    assert received == [((1, 0), HELLO)]
    client.close()
    stranger.close()


@given(st.binary(max_size=200))
def test_no_frame_breaks_the_decoder(frame: bytes) -> None:
    try:
        decode(frame)
    except ValueError:
        return
