"""Random and broken frames: the server stays up, its memory is bounded, and an honest worker is served meanwhile.

Some of those who send them know the secret, say a proper hello, and take the place of others; some do not even speak ZeroMQ.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import torch
import zmq

from plait.sync import frames, line, memory
from plait.sync.line import Line, Listener
from tests.sync.test_line import SECRET, Stranger, calling, listening, receive_from, stranger

EVERY = 250
"""Broken messages between two honest ones."""
MOST_GROWTH = 96 * 2**20
"""Bytes of resident memory, ZeroMQ's queues included."""

Frames = list[bytes]


def test_the_server_stands_5_000_broken_messages() -> None:
    _fuzz(5_000)


@pytest.mark.slow
def test_the_server_stands_100_000_broken_messages() -> None:
    _fuzz(100_000)


def _fuzz(count: int) -> None:
    chance = random.Random(1)
    with listening(address="tcp://127.0.0.1:*") as server, calling(server, "honest") as worker, ExitStack() as stack:
        evil = list(_evil(server, stack))
        _serve_honestly(server, worker, 0)
        before = _resident()
        for number in range(count):
            _send(chance.choice(evil), _broken(chance))
            if number % 16 == 0:
                server.receive()
            if number % EVERY == 0:
                _shout(server, chance)
                _serve_honestly(server, worker, number)
        _serve_honestly(server, worker, count)
        assert server.refused > count / 2
        assert _resident() < before + MOST_GROWTH


def _evil(server: Listener, stack: ExitStack) -> Iterator[Stranger]:
    """With a hello, without one, with another's identity, and without the secret of the connection."""
    yield stack.enter_context(stranger(server, "evil.1"))
    sharing, proof = stack.enter_context(stranger(server)), memory.Proof()
    stack.callback(proof.offer)  # which keeps it alive
    sharing.hello("evil.2", memory=proof.offer())
    yield sharing
    for _ in range(2):
        yield stack.enter_context(stranger(server))
    stack.enter_context(stranger(server, "victim", identity=b"victim"))
    yield stack.enter_context(stranger(server, identity=b"victim"))
    yield stack.enter_context(stranger(server, secret="a guess"))


def _send(evil: Stranger, parts: Frames) -> None:
    with contextlib.suppress(zmq.Again):  # who is not let in has a full queue soon
        evil.socket.send_multipart(parts, zmq.NOBLOCK)


def _serve_honestly(server: Listener, worker: Line, number: int) -> None:
    """A push and a pull, in memory and in frames by turns."""
    size = (1, 1000, 20_000)[number // EVERY % 3]
    pushed = [torch.arange(size) + number, torch.full((size,), float(number), dtype=torch.bfloat16)]
    worker.send({"number": number}, pushed)
    message = receive_from(server, "honest")
    assert message.head == {"number": number}
    assert all(torch.equal(came, sent) for came, sent in zip(message.tensors, pushed, strict=True))
    server.send("honest", {"number": -number}, message.tensors)
    message.release()
    answer = worker.receive(20)
    assert answer is not None
    assert answer.head == {"number": -number}
    assert all(torch.equal(came, sent) for came, sent in zip(answer.tensors, pushed, strict=True))
    answer.release()


def _shout(server: Listener, chance: random.Random) -> None:
    """Bytes that are no ZeroMQ at all."""
    host, port = server.address.removeprefix("tcp://").split(":")
    with socket.create_connection((host, int(port))) as connection, contextlib.suppress(OSError):
        connection.sendall(chance.choice([b"", b"\xff\0\0\0\0\0\0\0\x01\x7f\x03", b"GET / HTTP/1.1\r\n\r\n"]) + chance.randbytes(200))


def _resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# --- what is sent --------------------------------------------------------------------------------------------------

TOKEN = b"0123456789abcdef"
"""As every Stranger has it: some of these frames come from a peer that is known."""


def _broken(chance: random.Random) -> Frames:
    return chance.choice(KINDS)(chance)


def _random(chance: random.Random) -> Frames:
    return [chance.randbytes(chance.choice((0, 1, 16, 300))) for _ in range(chance.randrange(6))] or [b""]


def _random_body(chance: random.Random) -> Frames:
    return [TOKEN, *_random(chance)]


def _mutated(chance: random.Random) -> Frames:
    """A proper message in which bytes are changed, cut, or frames left out, doubled and exchanged."""
    parts = chance.choice((_proper, _hello, _in_memory))(chance)
    for _ in range(chance.randrange(1, 4)):
        at = chance.randrange(len(parts))
        part = bytearray(parts[at])
        match chance.randrange(6):
            case 0 if part:
                part[chance.randrange(len(part))] = chance.randrange(256)
            case 1:
                part = part[: chance.randrange(len(part) + 1)]
            case 2:
                part += chance.randbytes(chance.randrange(20))
            case 3 if len(parts) > 1:
                parts.pop(at)
                continue
            case 4:
                parts.insert(at, bytes(part))
            case _:
                chance.shuffle(parts)
                continue
        parts[at] = bytes(part)
    return parts


def _proper(chance: random.Random) -> Frames:
    tensors = [torch.ones(chance.randrange(5), chance.randrange(5)) for _ in range(chance.randrange(4))]
    return [TOKEN, *(bytes(part) for part in frames.Packer().pack({"push": 1}, tensors))]


def _hello(chance: random.Random) -> Frames:
    name = chance.choice(("honest", "evil.1", "evil.3", "a b", "x" * 200))
    hello = line._hello(name, line._key(SECRET), None)
    return [TOKEN, _json(hello | {chance.choice(list(hello)): _odd(chance)})]


def _in_memory(chance: random.Random) -> Frames:
    segment = [_odd(chance), chance.choice((_odd(chance), chance.randrange(100)))]
    return [TOKEN, _json({"kind": "message", "head": {}, "tensors": [["int8", [5]]], "segment": segment, "segments": [1, 2]})]


def _odd_tensors(chance: random.Random) -> Frames:
    shapes = [[chance.choice([*frames.DTYPES, "object"]), [_odd(chance) for _ in range(chance.randrange(4))]] for _ in range(3)]
    envelope = {"kind": "message", "head": chance.choice(({}, [], None)), "tensors": chance.choice((shapes, _odd(chance)))}
    return [TOKEN, _json(envelope), *(chance.randbytes(chance.randrange(30)) for _ in range(chance.randrange(5)))]


def _odd_kind(chance: random.Random) -> Frames:
    kind = chance.choice(("released", "shares", "welcome", "refused", "__class__", _odd(chance)))
    return [TOKEN, _json({"kind": kind, "segment": _odd(chance)})]


def _bomb(chance: random.Random) -> Frames:
    depth = chance.choice((1000, 20_000))
    return [TOKEN, chance.choice((b"[" * depth, b'{"a":' * depth, b"[" + b"[]," * depth, b'{"kind":' + b"9" * depth + b"}"))]


def _many(chance: random.Random) -> Frames:
    return [TOKEN] * chance.choice((3, 30, 300))


def _odd(chance: random.Random) -> Any:
    numbers = (-1, 0, 3, -(2**63), 2**31, 2**63, 2**64, 10**30, 0.5, float("inf"), float("nan"))
    return chance.choice((*numbers, True, None, "", "x", "\ud800", [], [[]], {}, {"a": 1}, [1, 2], [1, 2, "f" * 64]))


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


KINDS: list[Callable[[random.Random], Frames]] = [
    *(4 * [_random, _random_body, _odd_tensors, _odd_kind, _in_memory]),
    *(8 * [_mutated, _hello]),
    _bomb,
    _many,
]
