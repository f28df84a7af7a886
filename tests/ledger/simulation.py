"""A ledger with model workers and model parameter servers, whose messages arrive in any order that a network allows.

Workers that agree together meet, hand over their state, compute, sum and vote as replicas do; the state is the list of steps that count.
What one sends to another stays in order; everything else interleaves as a schedule chooses. Workers and servers may be killed: what they
had sent may still arrive. Bits of what a worker holds may flip: sums that it takes part in then touch what all hold. Servers check what
they are told; the run's coverage is checked from its journal.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from dataclasses import dataclass, field

from plait import events
from plait.data.skipping import Skipped
from plait.ledger.messages import (
    SERVING,
    Add,
    Apply,
    Broken,
    Closed,
    Did,
    Drop,
    Fill,
    Filled,
    Forget,
    Hand,
    Join,
    Kept,
    Left,
    Measured,
    Member,
    Message,
    Outbox,
    Part,
    Received,
    Summed,
    Verdict,
    Vote,
    Work,
)
from plait.ledger.plan import Plan
from plait.ledger.state import Ledger


@dataclass
class Worker:
    """As plait.sync.pushpull behaves: pushes, votes, waits for a verdict, pulls what it names."""

    work: Work | None = None
    verdict: Verdict | None = None
    arrived: set[tuple[int, int]] = field(default_factory=set)
    connected: bool = False
    phase: int = 0
    left: bool = False
    life: int = 0
    state: tuple[int, ...] | None = None
    wrong: frozenset[str] = frozenset()
    """what is not as it should be in its state"""
    compared: bool = False
    """since it was last told something"""


@dataclass
class Server:
    """As plait.sync.server behaves. applied: units in the order in which they reached the parameters, since the last fill."""

    era: int = 0
    filled: set[int] = field(default_factory=set)
    orders: deque[Message] = field(default_factory=deque)
    pushes: dict[tuple[int, int], int] = field(default_factory=dict)
    early: list[tuple] = field(default_factory=list)
    summed: list[int] = field(default_factory=list)
    applied: list[int] = field(default_factory=list)
    versions: dict[int, tuple[int, ...]] = field(default_factory=dict)
    greeted: dict[Member, int] = field(default_factory=dict)
    owed: dict[Member, int] = field(default_factory=dict)
    left: bool = False
    life: int = 0


class Simulation:
    """`seed` chooses what happens next; kills: how many members die at most; flips: bits, at most. uneven: speeds differ, and change."""

    def __init__(self, plan: Plan, seed: int, kills: int = 0, position: dict | None = None, uneven: bool = False, flips: int = 0) -> None:
        self.plan = plan
        self.chance = random.Random(seed)
        self.kills = kills
        self.uneven = uneven
        self.flips = flips
        self.flipped: list[int] = []
        """committed steps at each flip"""
        self.poison: set[int] = set()
        """samples of the run's order"""
        self.saved: dict[int, frozenset[str]] = {}
        self.touched: dict[int, frozenset[str]] = {}
        """by unit, what is wrong with its sum"""
        self.recorded: list[events.Event] = []
        self.positions: list[dict] = []
        self.ledger = Ledger(plan, self.recorded.append, lambda: 0.0, position)
        self.mail: dict[tuple, deque] = {}
        self.workers = {member: Worker() for member in plan.workers}
        self.servers = {number: Server() for _, number in plan.serving}
        self.lives: Counter[Member] = Counter()
        self.staleness: list[int] = []
        self.arrived: dict[int, set[tuple[Member, int]]] = {}
        self.begun = tuple(range(1, position["step"] + 1)) if position else ()
        for member in plan.members:
            if member not in plan.late:
                self.start(member)

    # --- the network -----------------------------------------------------------------------------------------------

    def post(self, sender: object, receiver: object, letter: object) -> None:
        self.mail.setdefault((sender, receiver), deque()).append(letter)

    def deliver(self, outbox: Outbox) -> None:
        for member, message in outbox:
            self.post("ledger", (member, self.lives[member]), message)

    def run(self, limit: int = 20_000) -> None:
        """Until nothing is under way. Raises AssertionError where the run has not ended then."""
        for _ in range(limit):
            for member in self.ledger.take_wanted():
                self.restart(member)
            under_way = sorted((pair for pair, letters in self.mail.items() if letters), key=str)
            if not under_way:
                break
            if self.kills and self.chance.random() < 0.02:
                self.kill()
                continue
            if self.flips and self.chance.random() < 0.01:
                self.flip()
            sender, receiver = self.chance.choice(under_way)
            letter = self.mail[sender, receiver].popleft()
            self.receive(sender, receiver, letter)
        assert self.ledger.ended, "nothing is under way, and the run has not ended"

    def receive(self, sender: object, receiver: object, letter: object) -> None:
        if receiver == "ledger":
            member, life = sender
            if life == self.lives[member]:
                self.deliver(self.ledger.handle(member, letter))
            return
        member, life = receiver
        if life != self.lives[member]:
            return
        if sender == "itself":
            self.go_on(member, self.workers[member], letter)
        elif member[0] == SERVING:
            self.serve(member[1], sender, letter)
        else:
            self.hear(member, sender, letter)

    # --- deaths ------------------------------------------------------------------------------------------------------

    def start(self, member: Member) -> None:
        life = self.lives[member]
        if member[0] == SERVING:
            self.servers[member[1]] = Server(life=life)
        else:
            self.workers[member] = Worker(life=life)
            if not life:
                self.workers[member].state = self.begun
        self.post((member, life), "ledger", Join("host", 1, "cpu", 10, "address"))

    def restart(self, member: Member) -> None:
        """Of a replica that lost a rank the other ranks are killed first."""
        self.lives[member] += 1
        self.ledger.started(member)
        self.start(member)

    def kill(self) -> None:
        """Some member that has not left."""
        if self.ledger._course is None:
            return
        living = [member for member, worker in self.workers.items() if not worker.left]
        living += [(SERVING, number) for number, server in self.servers.items() if not server.left]
        living = [member for member in living if not self.ledger.has_spoken(member)]
        if not living:
            return
        self.kills -= 1
        member = self.chance.choice(living)
        for other, worker in self.workers.items():  # connections break for those who talked to it
            if worker.work is not None and member[0] in worker.work.peers and other[0] != member[0]:
                self.post("itself", (other, worker.life), ("broken", worker.work.unit))
        self.lives[member] += 1  # what it had sent is lost with it, and what is for it too
        self.deliver(self.ledger.lose(member, "killed"))

    def flip(self) -> None:
        """Of a worker that has a state, and has not been found sound a moment ago: what is saved of it would be wrong, and nobody know."""
        struck = [worker for worker in self.workers.values() if worker.state is not None and not worker.compared and not worker.left]
        if struck and self.ledger.committed < self.plan.steps:
            self.flips -= 1
            worker = self.chance.choice(struck)
            worker.wrong |= {f"flip {self.flips}"}
            self.flipped.append(self.ledger.committed)

    # --- workers -----------------------------------------------------------------------------------------------------

    def hear(self, member: Member, sender: object, letter: object) -> None:
        worker = self.workers[member]
        if sender == "ledger":
            assert isinstance(letter, Verdict | Closed), letter
            if isinstance(letter, Verdict):
                at_any_time = letter.decision in ("void", "rollback")
                assert worker.verdict is None or at_any_time, "a verdict that nobody asked for"
                assert worker.work is None or at_any_time, "a verdict before the vote"
                if worker.left:
                    return  # its process has ended
                self.learn(worker, letter)
                self.follow(member, worker, letter)
            return
        worker.arrived.add(letter)
        if worker.verdict is not None:
            self.pull(member, worker, worker.verdict)

    def learn(self, worker: Worker, verdict: Verdict) -> None:
        """What becomes of a worker's state, where replicas agree together."""
        if self.plan.servers:
            return
        if verdict.to_step is not None:
            worker.state = tuple(range(1, verdict.to_step + 1))
            worker.wrong = self.saved.get(verdict.to_step, frozenset())
        elif verdict.decision == "commit":
            assert worker.state is not None
            worker.state = (*worker.state, *range(worker.state[-1] + 1 if worker.state else 1, verdict.step + 1))
            assert worker.state == tuple(range(1, verdict.step + 1)), "a step is missing, or applied twice"
            worker.wrong |= self.touched.get(verdict.unit, frozenset())

    def together(self, member: Member, worker: Worker, work: Work) -> None:
        """A lease of a share, or of nothing."""
        if work.check in ("whole", "each"):
            worker.work, worker.compared = None, True
            told = {"state": "" if self.plan.servers else f"{worker.state} {sorted(worker.wrong)}", "step": "1"}
            self.post((member, worker.life), "ledger", Vote(work.unit, [], 0.1, fingerprints=told))
        elif work.peers:
            self.post("itself", (member, worker.life), ("arrived", work.unit))
        else:
            self.vote(member, worker, work)

    def go_on(self, member: Member, worker: Worker, letter: tuple[str, int]) -> None:
        """What happens within a unit that is held together: arriving where buckets are summed, the sum, or the end of a connection."""
        what, unit = letter
        work = worker.work
        if work is None or work.unit != unit:
            return
        if what == "broken":
            worker.work = None
            self.post((member, worker.life), "ledger", Broken(unit, "connection closed"))
            return
        if what == "summed":
            self.vote(member, worker, work)
            return
        arrived = self.arrived.setdefault(unit, set())
        arrived.add((member, worker.life))
        everyone = {((replica, rank), self.lives[replica, rank]) for replica in work.peers for rank in range(self.plan.ranks)}
        if everyone <= arrived:
            if (work.parts or work.new) and not self.plan.servers:
                self.hand_over(work)
            for each in sorted(everyone):
                self.post("itself", each, ("summed", unit))

    def hand_over(self, work: Work) -> None:
        level = {worker.state for (replica, _), worker in self.workers.items() if replica in work.peers and replica not in work.new}
        assert len(level) == 1, "replicas that are level differ"
        for (replica, rank), worker in self.workers.items():
            if replica in work.new:
                source = self.chance.choice([replica for replica in work.peers if replica not in work.new])
                worker.state, worker.wrong = min(level), self.workers[source, rank].wrong
        if work.parts:
            wrong = {each for (replica, _), worker in self.workers.items() if replica in work.peers for each in worker.wrong}
            self.touched[work.unit] = frozenset({f"unit {work.unit}"} if wrong else ())

    def vote(self, member: Member, worker: Worker, work: Work) -> None:
        worker.work = None
        self.post((member, worker.life), "ledger", self.ballot(member, work))

    def loss(self, part: Part, skipped: events.Ranges) -> float:
        """One of each target, and much where a poisoned sample is among those that it is computed of."""
        size = self.plan.size(part.step)
        samples = Skipped(skipped).samples((part.step - 1) * size, part.step * size)
        mine = {int(samples[place]) for first, end in part.ranges for place in range(first, end)}
        mean = 1e6 if mine & self.poison else 1.0
        return mean * self.plan.targets(part.step) * len(mine) / (size * self.plan.ranks)

    def ballot(self, member: Member, work: Work) -> Vote:
        done = [Did(self.loss(part, work.skipped), 1.0, 0.1) for part in work.parts]
        if not self.uneven:
            return Vote(work.unit, done, 0.1)
        samples = sum(end - first for part in work.parts for first, end in part.ranges)
        computed = samples * (1 + member[0]) * self.chance.choice([0.1, 0.1, 0.1, 1.0])
        return Vote(work.unit, done, 10.0, waited=max(0.0, 10.0 - computed), computed=computed)

    def follow(self, member: Member, worker: Worker, verdict: Verdict) -> None:
        worker.verdict, worker.work = verdict, None
        if verdict.decision == "begin" and verdict.work is not None:
            worker.phase = verdict.work.phase
        if verdict.decision == "rollback":
            worker.connected = False
            worker.arrived = set()
        if verdict.version is not None and not worker.connected:
            self.connect(member, worker, verdict.unit)
        self.pull(member, worker, verdict)

    def pull(self, member: Member, worker: Worker, verdict: Verdict) -> None:
        if verdict.version is None or {(number, verdict.version) for number in self.servers} <= worker.arrived:
            self.perform(member, worker)

    def connect(self, member: Member, worker: Worker, since: int) -> None:
        worker.connected = True
        for number in self.servers:
            self.post((member, worker.life), ((SERVING, number), self.lives[SERVING, number]), ("here", since))

    def perform(self, member: Member, worker: Worker) -> None:
        """Duties, then the next unit: pushes, and a vote."""
        verdict, worker.verdict = worker.verdict, None
        worker.work = verdict.work
        worker.compared &= verdict.work is not None and verdict.work.check == "heal"
        if verdict.evaluate is not None:
            sequences = sum(end - first for first, end in verdict.evaluate)
            self.post((member, worker.life), "ledger", Measured(verdict.step, verdict.unit, "validation", 1.0 * sequences, 0, sequences))
        if verdict.position is not None:
            self.positions.append(verdict.position)
            self.saved[verdict.step] = worker.wrong
            self.post((member, worker.life), "ledger", Kept(verdict.step, "x", 1, 0.0, 0.0))
        work = verdict.work
        if work is None:
            worker.left = True
            self.post((member, worker.life), "ledger", Left())
            return
        me = member, worker.life
        if not work.era:
            worker.phase, worker.connected, worker.arrived = work.phase, False, set()
            self.together(member, worker, work)
            return
        if work.phase != worker.phase:
            worker.phase, worker.connected, worker.arrived = work.phase, False, set()
        if not worker.connected:
            self.connect(member, worker, work.unit)
        for number in self.servers:
            there = (SERVING, number), self.lives[SERVING, number]
            if work.fill:
                self.post(me, there, ("fill", work.era, member[1]))
            if work.parts:
                self.post(me, there, ("push", work.era, work.unit, member[1]))
        worker.work = None
        self.post(me, "ledger", self.ballot(member, work))

    # --- servers -----------------------------------------------------------------------------------------------------

    def serve(self, number: int, sender: object, letter: object) -> None:
        server = self.servers[number]
        if sender == "ledger":
            if isinstance(letter, Fill):
                server.orders.clear()
            server.orders.append(letter)
        else:
            self.take(number, server, sender[0], letter)
        self.obey(number, server)

    def take(self, number: int, server: Server, member: Member, letter: tuple) -> None:
        me = (SERVING, number), server.life
        match letter:
            case ("here", since):
                if since < max(server.era, server.greeted.get(member, 0)):
                    return
                server.greeted[member] = since
                if member in server.owed:
                    self.post(me, (member, self.lives[member]), (number, server.owed.pop(member)))
            case ("fill", era, rank) if era == server.era:
                server.filled.add(rank)
                if len(server.filled) == self.plan.ranks:
                    self.post(me, "ledger", Filled(era))
                    early, server.early = server.early, []
                    for each in early:
                        self.take(number, server, *each)
            case ("push", era, unit, rank) if era == server.era and len(server.filled) == self.plan.ranks:
                server.pushes[unit, rank] = era
                self.post(me, "ledger", Received(unit, rank))
            case (_, era, *_) if era > server.era or (era == server.era and letter[0] == "push"):
                server.early.append((member, letter))

    def obey(self, number: int, server: Server) -> None:
        while server.orders and (len(server.filled) == self.plan.ranks or isinstance(server.orders[0], Fill | Left | Closed)):
            self.do(number, server, server.orders.popleft())

    def do(self, number: int, server: Server, order: Message) -> None:
        me = (SERVING, number), server.life
        match order:
            case Left():
                server.left = True
                self.post(me, "ledger", Left())
            case Fill(era):
                early, server.early = server.early, []
                server.era, server.filled, server.pushes, server.summed, server.applied = era, set(), {}, [], []
                server.versions, server.owed = {}, {}
                server.greeted = {member: since for member, since in server.greeted.items() if since >= era}
                for each in early:
                    self.take(number, server, *each)
            case Add(unit, step, last):
                server.summed.append(unit)
                self.use(server, unit)
                if last:
                    self.post(me, "ledger", Summed(step, 1.0))
            case Apply(unit, decision, _, _, version, to, whole):
                if unit is not None:
                    self.use(server, unit)
                if decision == "commit":
                    server.applied += [unit] if unit is not None else server.summed
                server.summed = []
                self.hand(number, server, version, [*to, *(replica for replica in whole if replica not in to)])
            case Hand(version, to, _):
                self.hand(number, server, version, to)
            case Drop(unit):
                for rank in range(self.plan.ranks):
                    server.pushes.pop((unit, rank), None)
            case Forget(replica, before):
                server.greeted = {m: since for m, since in server.greeted.items() if m[0] != replica or since >= before}

    def use(self, server: Server, unit: int) -> None:
        assert unit not in server.applied, "a push was applied twice"
        for rank in range(self.plan.ranks):
            del server.pushes[unit, rank]  # KeyError: the ledger counted what this server does not have

    def hand(self, number: int, server: Server, version: int, to: list[int]) -> None:
        content = tuple(server.applied)
        for other in self.servers.values():
            if other.era == server.era and version in other.versions:
                assert other.versions[version] == content, "servers have different parameters of one version"
        server.versions[version] = content
        for replica in to:
            for rank in range(self.plan.ranks):
                member = replica, rank
                if member in server.greeted:
                    self.post(((SERVING, number), server.life), (member, self.lives[member]), (number, version))
                else:
                    server.owed[member] = version


def coverage(recorded: list[events.Event]) -> list[list[int]]:
    """Positions of each committed step, sorted."""
    steps = events.committed(recorded)
    assert [step.step for step in steps] == list(range(1, len(steps) + 1))
    return [sorted(place for ranges in step.shares.values() for first, end in ranges for place in range(first, end)) for step in steps]
