"""A worker's side of the parameter servers: push gradients, pull parameters.

    begin     fill: this replica's state goes to the servers, where they have none
    end       push ─► each server its buckets
    settle    vote ─► verdict ─► pull, where it names a version ◄─ each server its buckets

A worker applies nothing. While it waits for a server it listens to the ledger as well, which tells it to return to a checkpoint should a
server be gone.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection
from itertools import count

import torch
import torch.distributed
import zmq
from torch import Tensor

from plait.errors import PlaitError
from plait.ledger.messages import Member, Part, Verdict, Work
from plait.ledger.progress import progress
from plait.ledger.wire import LedgerClient
from plait.replica.optim import create_state, optimizer_state, restore_state
from plait.replica.replica import Replica
from plait.sync.compress import Codec
from plait.sync.deal import by_path
from plait.sync.feedback import Feedback
from plait.sync.line import HungUp, Line, Message
from plait.sync.link import Link
from plait.sync.slices import flatten, pack_state, spread, unflatten, unpack_state
from plait.sync.strategy import Report, State, Traffic, Votes

_attempts = count()


class PushPull:
    """This rank's. codec: of pushes; None sends them as they are."""

    def __init__(self, ledger: LedgerClient, secret: str, member: Member, codec: Codec | None, link: Link | None, seed: int) -> None:
        self._ledger = ledger
        self._secret = secret
        self._member = member
        self._feedback = Feedback(codec, seed)
        self._link = link
        self._addresses: list[str] = []
        self._lines: list[Line] = []
        self._held: list[list[int]] = []
        self._arrived: list[tuple[int, Message]] = []
        """by server, not looked at yet"""
        self._gone = False
        self._work: Work | None = None
        self._traffic = Traffic()
        self._before = 0

    def meet(self, servers: list[str]) -> None:
        self._addresses = servers

    def join(self, verdict: Verdict, replica: Replica) -> Verdict:
        return self._follow(verdict, replica)

    def enter(self, replica: Replica, owed: State) -> None:
        """Lines are made when there is something to send."""
        replica.gradients.owe(owed)
        self._feedback.residuals = {}

    def begin(self, work: Work, replica: Replica) -> Verdict | None:
        self._work = work
        if replica.mesh.ranks > 1 and (verdict := self._behind(work, replica)) is not None:
            return self._follow(verdict, replica)
        if not self._lines:
            self._connect(replica, work.unit)
        if work.fill:
            self._fill(replica, work.era)
        return None

    def end(self, part: Part, replica: Replica) -> float:
        replica.finish()
        began = time.perf_counter()
        self._push(part, replica)
        pushing = time.perf_counter() - began
        self._traffic = Traffic(0, self._traffic.communicating + pushing, self._traffic.waited + pushing)
        return replica.gradients.squared_norm()

    def settle(self, work: Work, replica: Replica, ledger: Votes, report: Report) -> Verdict:
        """What is measured here goes into the next vote, as this one is sent before it."""
        progress(f"waits for the verdict of unit {work.unit}", "ledger")
        self._ledger.tell(report(self._measured()))
        began = time.perf_counter()
        verdict = self._hear()
        progress.units += bool(work.parts)
        pulling = time.perf_counter()
        if verdict.decision in ("commit", "skip"):
            self._feedback.keep(verdict.decision == "commit")
        verdict = self._follow(verdict, replica)
        now = time.perf_counter()
        self._traffic = Traffic(0, now - pulling, now - began)
        return verdict

    def void(self, replica: Replica) -> None:
        """Nothing is changed here but by what servers send."""

    def leave(self, replica: Replica) -> State:
        """The last pull brought optimizer state too."""
        self._hang_up()
        return by_path(replica, self._feedback.residuals)

    def alike(self, replica: Replica) -> State:
        """Servers have the state, once; what is pulled lasts until the next pull."""
        return {}

    def state(self, replica: Replica) -> State:
        return {}

    def state_to_load(self, replica: Replica, names: Collection[str]) -> State:
        return {}

    def restore(self, replica: Replica, state: State) -> None:
        pass

    def resize(self, replica: Replica, bucket_bytes: int) -> None:
        """Servers keep buckets as they were filled."""

    def close(self) -> None:
        self._hang_up()

    # --- lines -------------------------------------------------------------------------------------------------

    def _connect(self, replica: Replica, since: int) -> None:
        replica_number, rank = self._member
        sizes = [bucket.numel() for bucket in replica.gradients.buckets]
        self._held = spread(sizes, len(self._addresses))
        name = f"{replica_number}.{rank}.{os.getpid()}.{next(_attempts)}"
        self._lines = [Line(address, self._secret, name, self._link) for address in self._addresses]
        for line in self._lines:
            line.send({"kind": "here", "replica": replica_number, "rank": rank, "since": since})
        self._before = 0

    def _follow(self, verdict: Verdict, replica: Replica) -> Verdict:
        """Do what a verdict asks for here: on a rollback lines are made anew, and what it names is pulled. Returns the verdict, or the
        one that came instead."""
        if verdict.decision == "rollback":
            self._addresses = verdict.servers or self._addresses
            self._feedback.keep(False)
            self._hang_up()
        if verdict.version is None:
            return verdict
        if not self._lines:
            self._connect(replica, verdict.unit)
        return self._pull(verdict, replica)

    def _hang_up(self) -> None:
        for _, message in self._arrived:
            message.release()
        self._arrived, self._gone = [], False
        for line in self._lines:
            line.close()
        self._lines = []

    def _measured(self) -> Traffic:
        """Since the last vote."""
        sent = sum(line.sent + line.received for line in self._lines)
        traffic = Traffic(sent - self._before, self._traffic.communicating, self._traffic.waited)
        self._before = sent
        return traffic

    def _behind(self, work: Work, replica: Replica) -> Verdict | None:
        """Ranks of a replica may have heard of a rollback one before the other: who has not, hears of it now."""
        newest = torch.tensor(work.era, device=replica.device)
        torch.distributed.all_reduce(newest, torch.distributed.ReduceOp.MAX)
        return self._ledger.hear() if work.era < int(newest) else None

    # --- what travels --------------------------------------------------------------------------------------------

    def _fill(self, replica: Replica, era: int) -> None:
        """This rank's slice: parameters, and the optimizer's state, to the servers that keep them."""
        gradients, parameters = replica.gradients, replica.parameters
        for line, held in zip(self._lines, self._held, strict=True):
            buckets = [
                {
                    "paths": gradients.paths[index],
                    "shapes": [list(parameters[path].shape) for path in gradients.paths[index]],
                    "counted": gradients.counted[index],
                }
                for index in held
            ]
            named = [(path, parameters[path]) for index in held for path in gradients.paths[index]]
            state, flats = pack_state(optimizer_state(replica.optimizer, named))
            values = [flatten(parameters[path] for path in gradients.paths[index]) for index in held]
            head = {"kind": "fill", "era": era, "rank": self._member[1], "buckets": buckets, "state": state}
            self._send(line, head, [*values, *flats])

    def _push(self, part: Part, replica: Replica) -> None:
        assert self._work is not None
        gradients, unit = replica.gradients, self._work.unit
        as_it_is = self._work.owing_nothing and self._feedback.feeds_back
        for line, held in zip(self._lines, self._held, strict=True):
            payloads = [
                self._feedback.pay(gradients.buckets[index], gradients.keys[index])
                if as_it_is
                else self._feedback.encode(gradients.buckets[index], gradients.keys[index], (part.step, part.ranges[0][0]))
                for index in held
            ]
            head: dict[str, object] = {"kind": "push", "era": self._work.era, "rank": self._member[1], "unit": unit}
            head |= {"phase": None if as_it_is else self._work.phase, "parts": [len(payload) for payload in payloads]}
            self._send(line, head, [tensor for payload in payloads for tensor in payload])

    def _send(self, line: Line, head: dict[str, object], tensors: list[Tensor]) -> None:
        """To a server that is gone nothing is sent: the ledger will tell what becomes of it."""
        try:
            line.send(head, tensors)
        except HungUp:
            return

    def _pull(self, verdict: Verdict, replica: Replica) -> Verdict:
        """Parameters of the version that the verdict names; or the verdict that came instead, when a server is gone."""
        missing = set(range(len(self._lines)))
        progress("pulls parameters", "peers")
        while True:
            for server, message in self._collect():
                if self._take(message, server, verdict.version, replica):
                    missing.discard(server)
            if not missing:
                replica.publish()
                return verdict
            if self._gone or self._wait():
                return self._follow(self._ledger.hear(), replica)

    def _hear(self) -> Verdict:
        """The next verdict; an answer of a server that wants nothing of this worker comes before it, or never does."""
        while not self._wait():
            self._arrived = self._collect()
        return self._ledger.hear()

    def _collect(self) -> list[tuple[int, Message]]:
        """What has come from servers. Raises PlaitError where one turned a push away."""
        arrived, self._arrived = self._arrived, []
        for server, line in enumerate(self._lines):
            try:
                while (message := line.receive(0)) is not None:
                    if message.head["kind"] == "refused":
                        raise PlaitError(f"a parameter server turned away what this worker sent: {message.head['why']}")
                    arrived.append((server, message))
            except HungUp:  # the ledger will say what becomes of it
                self._gone = True
        return arrived

    def _wait(self) -> bool:
        """Until something has come, or a moment has passed: that a server hung up shows only when its line is asked. Whether it is the
        ledger that has something to say."""
        poller = zmq.Poller()
        poller.register(self._ledger.socket, zmq.POLLIN)
        for line in self._lines:
            poller.register(line.socket, zmq.POLLIN)
        return self._ledger.socket in dict(poller.poll(100))

    def _take(self, message: Message, server: int, version: int | None, replica: Replica) -> bool:
        """Whether it was what is waited for; older versions came while this rank had no use for them."""
        head, wanted = message.head, message.head["version"] == version
        if wanted:
            held = self._held[server]
            for index, values in zip(held, message.tensors, strict=False):
                unflatten(values, [replica.parameters[path] for path in replica.gradients.paths[index]])
            if head["state"] is not None:
                state = unpack_state(head["state"], message.tensors[len(held) :])
                named = [(path, replica.parameters[path]) for index in held for path in replica.gradients.paths[index]]
                create_state(replica.optimizer)
                restore_state(replica.optimizer, named, state)
        message.release()
        return bool(wanted)
