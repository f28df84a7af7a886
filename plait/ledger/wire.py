"""The ledger over a socket: ZeroMQ frames of JSON, never pickle.

    LedgerServer   beside the ledger; takes messages, sends what the ledger answers
    LedgerClient   in each member; one request in flight at a time

Each message carries the run's token; one without it is dropped. Sockets bind loopback or a file unless told otherwise.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable

import zmq

from plait.errors import PlaitError
from plait.ledger.messages import Closed, Join, Left, Member, Message, Outbox, Verdict, Vote, decode, encode
from plait.ledger.progress import progress

PULSE = "pulse"
"""Ends the identity of a worker's second socket, which its pulse has."""


class RunClosed(PlaitError):
    """The ledger told this member to stop; why it did is told by the ledger."""


class LedgerServer:
    """Listens on `address` ("ipc://..." or "tcp://host:*"); `self.address` is where clients connect."""

    def __init__(self, address: str, token: str) -> None:
        self.token = token
        self._context = zmq.Context()
        self.socket = self._context.socket(zmq.ROUTER)
        self.socket.setsockopt(zmq.LINGER, 1000)
        self.socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
        self.socket.bind(address)
        self.address: str = self.socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def receive(self) -> list[tuple[Member, Message]]:
        """All messages that have come; does not wait."""
        messages: list[tuple[Member, Message]] = []
        while True:
            try:
                frames = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return messages
            if (message := self._read(frames)) is not None:
                messages.append(message)

    def send(self, outbox: Outbox) -> None:
        for member, message in outbox:
            self.socket.send_multipart([_identity(member), encode(message)])
            if isinstance(message, Verdict) and message.decision in ("void", "rollback"):
                self.socket.send_multipart([_identity(member) + f".{PULSE}".encode(), b"void"])

    def serve(self, handle: Callable[[Member, Message], Outbox], ended: Callable[[], bool]) -> None:
        """Answer until `ended`, for where nothing else is to be watched."""
        poller = zmq.Poller()
        poller.register(self.socket, zmq.POLLIN)
        while not ended():
            poller.poll(200)
            for member, message in self.receive():
                self.send(handle(member, message))

    def close(self) -> None:
        self.socket.close()
        self._context.term()

    def _read(self, frames: list[bytes]) -> tuple[Member, Message] | None:
        """The message, or None for what is no message of this run."""
        try:
            identity, token, body = frames
            replica, rank, *_ = identity.decode().split(".")
            return ((int(replica), int(rank)), decode(body)) if hmac.compare_digest(token, self.token.encode()) else None
        except ValueError:
            return None


class LedgerClient:
    """One member's line to the ledger: `socket` for polling. Raises RunClosed when told to stop."""

    def __init__(self, address: str, token: str, member: Member) -> None:
        self._token = token.encode()
        self._context = zmq.Context()
        self.socket = self._context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.IDENTITY, _identity(member))
        self.socket.setsockopt(zmq.LINGER, 2000)
        self.socket.connect(address)

    def join(self, hello: Join) -> Verdict:
        """Be known to the ledger; returns the first work, once all are here."""
        self.tell(hello)
        return self.hear()

    def vote(self, vote: Vote) -> Verdict:
        """Say that a unit is done here; returns what was decided."""
        progress(f"waits for the verdict of unit {vote.unit}", "ledger")
        self.tell(vote)
        verdict = self.hear()
        progress.units += bool(vote.did)
        return verdict

    def called(self) -> bool:
        """Whether the ledger has something to say."""
        return bool(self.socket.poll(0))

    def hear(self) -> Verdict:
        """Wait for a verdict."""
        answer = self.receive()
        assert isinstance(answer, Verdict)
        return answer

    def receive(self) -> Message:
        """Wait for the next message, whatever it is."""
        answer = decode(self.socket.recv())
        if isinstance(answer, Closed):
            raise RunClosed(answer.why)
        return answer

    def tell(self, message: Message) -> None:
        """State a fact; not answered."""
        self.socket.send_multipart([self._token, encode(message)])

    def leave(self) -> None:
        self.tell(Left())

    def close(self) -> None:
        self.socket.close()
        self._context.term()


def _identity(member: Member) -> bytes:
    return f"{member[0]}.{member[1]}".encode()
