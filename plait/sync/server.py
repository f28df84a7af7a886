"""A parameter server, asynchronous: gradients are applied as they arrive.

    worker                          server                        ledger
      gradient of a micro-batch ──►   vote on its behalf  ─────────►  decides: counted once, by whomever
      next parameters and lease ◄──   commit: clip and step  ◄──────  verdict

The server alone applies, and only what the ledger committed: a gradient that is lost on the way is leased again, and none
is applied twice. It keeps the optimizer, evaluates, and writes checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import zmq
from torch import Tensor

from plait.ledger.messages import Closed, Left, Member, Verdict, Vote, Work, decode, encode
from plait.ledger.wire import LedgerClient, RunClosed
from plait.replica.replica import Replica
from plait.sync.strategy import Report, Votes


class ServerSync:
    """A worker's side: push, then pull."""

    def __init__(self, address: str, token: str, member: Member) -> None:
        self._token = token.encode()
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.IDENTITY, f"{member[0]}.{member[1]}".encode())
        self._socket.setsockopt(zmq.LINGER, 2000)
        self._socket.connect(address)

    def begin(self, work: Work, replica: Replica) -> None:
        """Nothing travels before the gradient is whole."""

    def settle(self, work: Work, replica: Replica, ledger: Votes, report: Report) -> Verdict:
        vote = report(replica.gradients.squared_norm(), 0.0)
        self._socket.send_multipart([self._token, encode(vote), *map(_bytes, replica.gradients.buckets)])
        answer, *parameters = self._socket.recv_multipart()
        verdict = decode(answer)
        if isinstance(verdict, Closed):
            raise RunClosed(verdict.why)
        assert isinstance(verdict, Verdict)
        for parameter, frame in zip(replica.parameters.values(), parameters, strict=True):
            _fill(parameter, frame)
        return verdict

    def state(self) -> dict[str, Any]:
        return {}

    def close(self) -> None:
        self._socket.send_multipart([self._token, encode(Left())])
        self._socket.close()
        self._context.term()


class Server:
    """The server's side: `serve` until all workers have left. `perform` does what a verdict asks besides."""

    def __init__(self, address: str, token: str, replica: Replica, workers: int) -> None:
        self._token = token.encode()
        self._replica = replica
        self._workers = workers
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 2000)
        self._socket.bind(address)

    def serve(self, ledger: LedgerClient, perform: Callable[[Verdict], None]) -> None:
        while self._workers:
            worker, token, body, *gradient = self._socket.recv_multipart()
            if token != self._token:
                continue
            message = decode(body)
            if isinstance(message, Left):
                self._workers -= 1
            elif isinstance(message, Vote):
                verdict = self._take(ledger, message, gradient)
                theirs = replace(verdict, evaluate=None, save=False, position=None)
                self._socket.send_multipart([worker, encode(theirs), *map(_bytes, self._replica.parameters.values())])
                perform(verdict)

    def close(self) -> None:
        self._socket.close()
        self._context.term()

    def _take(self, ledger: LedgerClient, vote: Vote, gradient: list[bytes]) -> Verdict:
        verdict = ledger.vote(vote)
        if verdict.decision == "commit":
            for bucket, frame in zip(self._replica.gradients.buckets, gradient, strict=True):
                _fill(bucket, frame)
            self._replica.apply(verdict.grad_norm, vote.lr)
        return verdict


def _bytes(tensor: Tensor) -> bytes:
    """A copy, since the tensor will change while it travels."""
    return tensor.detach().cpu().numpy().tobytes()


def _fill(tensor: Tensor, frame: bytes) -> None:
    received = torch.frombuffer(bytearray(frame), dtype=tensor.dtype)
    with torch.no_grad():
        tensor.copy_(received.view_as(tensor))
