"""Lines between workers and a parameter server: ZeroMQ between hosts, shared memory on one host.

    Line (a worker)                                Listener (the server)
      secret, name, versions, offer     ──►          known, or turned away with a reason
      welcome, offer                    ◄──
      shares (it saw the offer)         ──►          from now on tensors lie in shared memory, both ways
      token | head, tensors             ──►          Message ... release
      head, tensors                     ◄──

The connection itself asks for the secret (ZeroMQ's PLAIN), so that a stranger cannot even queue a message. Behind it each message
carries the token that its sender chose in its hello: a connection's identity alone is trusted nowhere. What cannot be read is turned
away with a reason and logged, and the server goes on. Nothing is encrypted: between hosts that is the network's task.

Sockets belong to the thread that made them.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import logging
import math
import re
import secrets
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import zmq
from torch import Tensor
from zmq.utils.monitor import recv_monitor_message

import plait
from plait.errors import PlaitError, UserError
from plait.sync import memory
from plait.sync.frames import MOST_TENSORS, SMALL, WINDOW, Packer, Refusal, envelope_of, nbytes, open_envelope, unpack
from plait.sync.memory import Mappings

if TYPE_CHECKING:
    from plait.sync.link import Link

PROTOCOL = 1
LARGEST = 2**32
"""Bytes of the largest tensor that travels in a frame."""
QUEUED = 16
"""Messages that ZeroMQ keeps for a peer: a server's further ones are dropped, a worker's wait."""
LINGER = 2000
"""Milliseconds that closing takes at most to send what is queued."""
BATCH = 256
"""Messages that one call receives: whoever sends without end does not keep the server from the rest of its work."""
HEARTBEAT, SILENCE = 5000, 30000
"""Milliseconds: on a network a peer is asked whether it is there, and gone when it does not answer so long."""
MOST_PEERS = 4096
NAME = re.compile(r"[A-Za-z0-9_.:-]{1,100}")

log = logging.getLogger("plait")


class HungUp(PlaitError):
    """The parameter server is gone, or the connection to it."""


@dataclass
class Message:
    """What a peer sent. Its tensors are valid until `release`, which every message with tensors needs."""

    peer: str
    head: dict[str, Any]
    tensors: list[Tensor]
    _released: Callable[[], None] | None = field(default=None, repr=False)

    def release(self) -> None:
        """The tensors have been read: their memory is written again. Only from the thread of the socket; a second time does nothing."""
        self.tensors = []
        released, self._released = self._released, None
        if released:
            released()


class Listener:
    """The server's end: many peers. Raises UserError where other machines could reach it without a secret.

    address: "ipc://path" or "tcp://host:*", in the attribute with the real port; socket: for a zmq.Poller; sent, received: bytes of
    tensors. What other threads do here is only to look at secrets.
    """

    def __init__(self, address: str, secret: str, largest: int = LARGEST) -> None:
        _check_address(address, secret)
        self.sent = self.received = 0
        self._key = _key(secret)
        self._turned_away = _TurnedAway()
        self._context = zmq.Context()
        self._gate = _Gate(self._context, self._key, self._turned_away)
        self.socket = self._context.socket(zmq.ROUTER)
        _set_up(self.socket, address)
        self.socket.setsockopt(zmq.PLAIN_SERVER, 1)
        self.socket.setsockopt(zmq.MAXMSGSIZE, largest)
        self.socket.bind(address)
        self.address = _reachable(self.socket.getsockopt_string(zmq.LAST_ENDPOINT))
        self._proof = memory.proof()
        self._packer = Packer()
        self._peers: dict[str, _Peer] = {}
        self._routes: dict[bytes, _Peer] = {}

    @property
    def refused(self) -> int:
        """Messages and connections turned away."""
        return self._turned_away.count

    @property
    def peers(self) -> list[str]:
        return list(self._peers)

    def receive(self) -> list[Message]:
        """All messages that have come, BATCH at most; does not wait, and does not raise for what a peer sent."""
        messages = []
        for _ in range(BATCH):
            frames = self._frames()
            if frames is None:
                break
            try:
                message = self._read(frames)
            except Refusal as refusal:
                self._refuse(bytes(frames[0]), refusal)
                continue
            if message:
                messages.append(message)
        return messages

    def send(self, peer: str, head: dict[str, Any], tensors: Sequence[Tensor] = ()) -> None:
        """Returns at once; tensors are copied before. For a peer that is not known, or has queued too much, nothing happens."""
        self.send_all([peer], head, tensors)

    def send_all(self, peers: Collection[str], head: dict[str, Any], tensors: Sequence[Tensor] = ()) -> None:
        """The same to all of them: tensors are copied once for those of this host, and once for the others."""
        known = [self._peers[peer] for peer in peers if peer in self._peers]
        size = nbytes(tensors)
        if size >= SMALL and not self._packer.segments.fits(size):
            self._mourn()
        sharing = [peer for peer in known if size >= SMALL and peer.shares and self._packer.segments.held(peer.name) < WINDOW]
        others = [peer for peer in known if peer not in sharing]
        for group, holders in ((sharing, [peer.name for peer in sharing]), (others, [])):
            if group:
                frames = self._packer.pack(head, tensors, holders)
                for peer in group:
                    self._post(peer.route, frames)
        self.sent += size * len(known)

    def forget(self, peer: str) -> None:
        """A peer is gone: give back what is kept for it. Its name is free again."""
        if known := self._peers.pop(peer, None):
            del self._routes[known.route]
            self._packer.segments.forget(peer)

    def close(self) -> None:
        self.socket.close()
        self._context.term()
        self._gate.join()

    def _frames(self) -> list[Any] | None:
        """Route, token, envelope, tensors; of what has more frames than a message the rest is dropped unseen."""
        frames: list[Any] = []
        more = True
        while more:
            try:
                frame = self.socket.recv(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return None
            more = frame.more
            if len(frames) <= MOST_TENSORS + 3:
                frames.append(frame)
        return frames

    def _read(self, frames: list[Any]) -> Message | None:
        if not 3 <= len(frames) <= MOST_TENSORS + 3:
            raise Refusal("frames", f"{len(frames) - 1} frames where a token, an envelope and tensors were expected")
        route, token = bytes(frames[0]), bytes(frames[1]) if len(frames[1]) <= 64 else b""
        peer = self._routes.get(route)
        if peer is None:
            self._welcome(route, token, open_envelope(frames[2]))
            return None
        if not hmac.compare_digest(token, peer.token):
            raise Refusal("token", "not the token of its hello")
        envelope = open_envelope(frames[2])
        match envelope["kind"]:
            case "message":
                return self._message(peer, envelope, frames[3:])
            case "released":
                if not self._packer.segments.release(envelope.get("segment"), peer.name):
                    raise Refusal("memory", "released a segment that it does not hold")
            case "shares":
                peer.shares = peer.mappings is not None
            case "bye":
                self.forget(peer.name)
            case _:
                raise Refusal("envelope", "an envelope of a kind that is not known")
        return None

    def _message(self, peer: _Peer, envelope: dict[str, Any], frames: list[Any]) -> Message:
        head, tensors, segment = unpack(envelope, frames, peer.mappings)
        self.received += nbytes(tensors)
        if segment is None:
            return Message(peer.name, head, tensors)
        released = envelope_of({"kind": "released", "segment": segment})
        return Message(peer.name, head, tensors, lambda: self._post(peer.route, [released]))

    def _welcome(self, route: bytes, token: bytes, envelope: dict[str, Any]) -> None:
        name = _checked_hello(envelope, token, self._key)
        self._mourn()
        if name in self._peers:
            raise Refusal("name", f"the name {name} is taken: who comes back takes a new one")
        if len(self._peers) >= MOST_PEERS:
            raise Refusal("peers", f"there are {MOST_PEERS} peers already")
        offer = envelope.get("memory")
        peer = _Peer(name, route, token, offer if self._proof and memory.seen(offer) else None)
        self._peers[name] = self._routes[route] = peer
        shared = self._proof.offer() if self._proof and peer.mappings else None
        self._post(route, [envelope_of({"kind": "welcome", "memory": shared})])

    def _mourn(self) -> None:
        """Give back the shared memory of peers whose processes have ended; what they said before still counts."""
        for peer in self._peers.values():
            if peer.mappings and not memory.lives(peer.offer):
                peer.mappings.clear()
                peer.shares = False
                self._packer.segments.forget(peer.name)

    def _refuse(self, route: bytes, refusal: Refusal) -> None:
        peer = self._routes.get(route)
        self._turned_away.note(refusal.kind, peer.name if peer else f"a stranger ({route[:16].hex()})", refusal.why)
        self._post(route, [envelope_of({"kind": "refused", "why": refusal.why})])

    def _post(self, route: bytes, frames: list[Any]) -> None:
        # ZeroMQ drops what is for nobody, and for whom too much is queued. Again, or closed: nobody is left to be told.
        with contextlib.suppress(zmq.ZMQError):
            self.socket.send_multipart([route, *frames], zmq.NOBLOCK, copy=False)


class Line:
    """A worker's end to one server. name: new for each attempt of a worker, since a server remembers the last one.

    socket: for a zmq.Poller; call `receive(0)` before waiting on it, since a message may have been taken from it before.
    sent, received: bytes of tensors. An emulated slow link is applied here, both ways.
    Raises PlaitError when the server turned this worker away, HungUp when it is gone.
    """

    def __init__(self, address: str, secret: str, name: str, link: Link | None = None) -> None:
        self.address = address
        self.sent = self.received = 0
        self._link = link
        self._token = secrets.token_bytes(16)
        self._context = zmq.Context()
        self.socket = self._context.socket(zmq.DEALER)
        _set_up(self.socket, address)
        self.socket.setsockopt(zmq.PLAIN_USERNAME, b"plait")
        self.socket.setsockopt(zmq.PLAIN_PASSWORD, _key(secret))
        self._watch = self.socket.get_monitor_socket(zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_FAILED_AUTH)
        self._poller = zmq.Poller()
        self._poller.register(self._watch, zmq.POLLIN)
        self._gone: PlaitError | None = None
        self._proof = memory.proof()
        self._packer = Packer()
        self._mappings: Mappings | None = None
        self._inbox: deque[tuple[float, Message]] = deque()
        self.socket.connect(address)
        self._post([envelope_of(_hello(name, _key(secret), self._proof))])

    @property
    def shares(self) -> bool:
        """Whether tensors travel in shared memory: from when the server's welcome has been read, where both see the same."""
        return self._mappings is not None

    def send(self, head: dict[str, Any], tensors: Sequence[Tensor] = ()) -> None:
        """Tensors are copied before it returns; waits where QUEUED messages wait for the server."""
        size = nbytes(tensors)
        shares = size >= SMALL and self._may_share(size)
        if not shares and any(nbytes([tensor]) > LARGEST for tensor in tensors):
            raise PlaitError(f"a tensor of more than {LARGEST} bytes does not travel to another host: cut it")
        frames = self._packer.pack(head, tensors, [self.address] if shares else [])
        if self._link:
            self._link.hold(self._link.book(size))
        self._post(frames)
        self.sent += size

    def receive(self, timeout: float | None = None) -> Message | None:
        """The next message; None when none came within `timeout` seconds."""
        end = float("inf") if timeout is None else time.monotonic() + timeout
        while True:
            self._look()
            self._take_all()  # after the look: also what the server said last
            if self._inbox:
                return self._first(end)
            if self._gone:
                raise self._gone
            if time.monotonic() >= end:
                return None
            self._poll(zmq.POLLIN, end)

    def close(self) -> None:
        """What was sent by shared memory and the server has not looked at yet is lost: a line is closed after its last answer."""
        if self._context.closed:
            return
        self._look()
        if self._gone:
            self.socket.setsockopt(zmq.LINGER, 0)
        else:
            self._tell({"kind": "bye"})
        self.socket.disable_monitor()
        self._watch.close()
        self.socket.close()
        self._context.term()

    def _first(self, end: float) -> Message | None:
        """The first message that has come, once the emulated link has brought it too."""
        arrives, message = self._inbox[0]
        if self._link:
            self._link.hold(min(arrives, end))
            if arrives > end:
                return None
        self._inbox.popleft()
        return message

    def _may_share(self, size: int) -> bool:
        if self._mappings is None or not self._packer.segments.fits(size):
            self._take_all()  # a welcome may have come, or word that a segment is free again
        return self._mappings is not None and self._packer.segments.held(self.address) < WINDOW

    def _take_all(self) -> None:
        """All that have come, into the inbox."""
        while True:
            try:
                envelope, *frames = self.socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            try:
                self._take(open_envelope(envelope), frames)
            except Refusal as refusal:
                raise PlaitError(f"the parameter server at {self.address} sent what cannot be read: {refusal.why}") from refusal

    def _take(self, envelope: dict[str, Any], frames: list[Any]) -> None:
        match envelope["kind"]:
            case "message":
                message = self._message(envelope, frames)
                arrives = self._link.book(nbytes(message.tensors)) if self._link else 0.0
                self._inbox.append((arrives, message))
            case "released":
                self._packer.segments.release(envelope.get("segment"), self.address)
            case "welcome":
                self._share(envelope.get("memory"))
            case "refused":
                self._gone = PlaitError(f"the parameter server turned this worker away: {envelope.get('why')}")
                raise self._gone
            case _:
                raise Refusal("envelope", "an envelope of a kind that is not known")

    def _message(self, envelope: dict[str, Any], frames: list[Any]) -> Message:
        head, tensors, segment = unpack(envelope, frames, self._mappings)
        self.received += nbytes(tensors)
        if segment is None:
            return Message("server", head, tensors)
        return Message("server", head, tensors, lambda: self._tell({"kind": "released", "segment": segment}))

    def _share(self, offer: Any) -> None:
        if self._proof and memory.seen(offer):
            self._mappings = Mappings(offer[0])
            self._post([envelope_of({"kind": "shares"})])

    def _tell(self, envelope: dict[str, Any]) -> None:
        with contextlib.suppress(zmq.ZMQError):  # closed, or too much is queued: the server does without
            self.socket.send_multipart([self._token, envelope_of(envelope)], zmq.NOBLOCK)

    def _post(self, frames: list[Any]) -> None:
        while True:
            self._look()
            if self._gone:
                raise self._gone
            try:
                self.socket.send_multipart([self._token, *frames], zmq.NOBLOCK, copy=False)
                return
            except zmq.Again:
                self._poll(zmq.POLLOUT, float("inf"))

    def _poll(self, event: int, end: float) -> None:
        """Wait until the socket is ready, the connection has something to tell, or `end`."""
        self._poller.register(self.socket, event)
        self._poller.poll(None if end == float("inf") else math.ceil(1000 * max(0.0, end - time.monotonic())))

    def _look(self) -> None:
        """Learn whether the connection has ended. ZeroMQ would make a new one, on which nobody knows this worker."""
        while self._gone is None and self._watch.poll(0):
            event = recv_monitor_message(self._watch)["event"]
            self._gone = HungUp(f"the parameter server at {self.address} hung up")
            if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                self._gone = PlaitError("the parameter server turned this worker away: a wrong secret")


class _Peer:
    """One worker, as the server knows it. offer: its proof of shared memory, where the server saw it."""

    def __init__(self, name: str, route: bytes, token: bytes, offer: list[Any] | None) -> None:
        self.name = name
        self.route = route
        self.token = token
        self.offer = offer or []
        self.mappings = Mappings(offer[0]) if offer else None
        self.shares = False


class _TurnedAway:
    """Counts what was turned away; each kind is logged once a second at most."""

    def __init__(self) -> None:
        self.count = 0
        self._logged: dict[str, float] = {}
        self._lock = threading.Lock()

    def note(self, kind: str, who: str, why: str) -> None:
        with self._lock:
            self.count += 1
            now = time.monotonic()
            if now < self._logged.get(kind, 0.0) + 1.0:
                return
            self._logged[kind] = now
        log.warning("the parameter server turned away %s: %s", who, why)


class _Gate(threading.Thread):
    """Lets connections in that know the key: ZeroMQ asks it (ZAP, RFC 27) before it reads a message. Ends with the context."""

    def __init__(self, context: zmq.Context, key: bytes, turned_away: _TurnedAway) -> None:
        super().__init__(name="plait-gate", daemon=True)
        self._key = key
        self._turned_away = turned_away
        self._socket = context.socket(zmq.REP)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.bind("inproc://zeromq.zap.01")
        self.start()

    def run(self) -> None:
        with contextlib.suppress(zmq.ContextTerminated):
            while True:
                self._socket.send_multipart(self._answer(self._socket.recv_multipart()))
        self._socket.close()

    def _answer(self, request: list[bytes]) -> list[bytes]:
        version, number, _, address, _, mechanism, *credentials = request
        password = credentials[1] if mechanism == b"PLAIN" and len(credentials) == 2 else b""
        if hmac.compare_digest(password, self._key):
            return [version, number, b"200", b"", b"", b""]
        self._turned_away.note("secret", f"a stranger ({address.decode(errors='replace')})", "a wrong secret")
        return [version, number, b"400", b"a wrong secret", b"", b""]


def _hello(name: str, key: bytes, proof: memory.Proof | None) -> dict[str, Any]:
    offer = proof.offer() if proof else None
    return {"kind": "hello", "protocol": PROTOCOL, "version": plait.__version__, "key": key.decode(), "name": name, "memory": offer}


def _checked_hello(envelope: dict[str, Any], token: bytes, key: bytes) -> str:
    """The name. Raises Refusal."""
    if envelope["kind"] != "hello":
        raise Refusal("hello", "not known here: a hello comes first")
    given, name = envelope.get("key"), envelope.get("name")
    if not isinstance(given, str) or not hmac.compare_digest(given.encode(errors="replace"), key):
        raise Refusal("secret", "a wrong secret")
    if envelope.get("protocol") != PROTOCOL or envelope.get("version") != plait.__version__:
        raise Refusal("version", f"the server runs plait {plait.__version__}, protocol {PROTOCOL}: install the same version on all hosts")
    if not isinstance(name, str) or not NAME.fullmatch(name) or len(token) < 16:
        raise Refusal("hello", "a hello without a name of letters, digits and _.:- or without a token")
    return name


def _set_up(socket: zmq.Socket, address: str) -> None:
    socket.setsockopt(zmq.LINGER, LINGER)
    socket.setsockopt(zmq.SNDHWM, QUEUED)
    socket.setsockopt(zmq.RCVHWM, QUEUED)
    socket.setsockopt(zmq.IPV6, int("[" in address))
    if address.startswith("tcp:"):
        socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT)
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, SILENCE)


def _key(secret: str) -> bytes:
    """What shows that one knows the secret, of a length that PLAIN takes."""
    return hashlib.sha256(b"plait's line:" + secret.encode()).hexdigest().encode()


def _check_address(address: str, secret: str) -> None:
    scheme, _, place = address.partition("://")
    if scheme not in ("ipc", "tcp") or not place:
        raise UserError(f"a parameter server listens on ipc://path or tcp://host:port, not on {address!r}")
    host = place.rpartition(":")[0].strip("[]")
    if scheme == "tcp" and not secret and not (host in ("localhost", "::1") or re.fullmatch(r"127(\.\d+){3}", host)):
        raise UserError(
            f"a parameter server on {address} can be reached from other machines: give it a secret, or let it listen on 127.0.0.1"
        )


def _reachable(endpoint: str) -> str:
    """An address to connect to: a server that listens everywhere is found by this host's name."""
    return re.sub(r"^tcp://(0\.0\.0\.0|\[::\]):", f"tcp://{socket.gethostname()}:", endpoint)
