"""Units whose gradients meet in parameter servers: micro-batches leased one by one.

    worker ── push ──► servers ── Received ──┐
       └────── vote ──────────────────────► ledger ── Add, Apply ──► servers ── parameters ──► worker
                                              └────── verdict, next lease ───────────────────────┘

A push counts once every server holds all of it and every rank has voted: before that, nothing has happened, and the piece goes to another.
So a worker may die or come at any time. Servers do what the ledger tells them in the order of its telling: after the n-th update all
hold version n, whatever travels meanwhile, and what they send of it is a consistent cut.

    synchronous    pushes are added; the step is applied once, when all its pieces are in          one curve
    bounded        applied as they come, but for those that would make another's too late          staleness <= s
    asynchronous   applied as they come
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from plait.events import Ranges
from plait.ledger import shares
from plait.ledger.books import Books, Due
from plait.ledger.measures import Told
from plait.ledger.messages import (
    Add,
    Apply,
    Closed,
    Decision,
    Drop,
    Fill,
    Filled,
    Forget,
    Hand,
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
from plait.ledger.pieces import Entry, Piece, Pieces, ranges_by_replica
from plait.ledger.sizing import Sizing
from plait.ledger.together import Turn


@dataclass
class Push:
    """A piece that is out. version: of the parameters that it is computed from. since: by the clock."""

    replica: int
    piece: Piece
    version: int
    since: float
    votes: dict[int, Vote] = field(default_factory=dict)
    received: set[tuple[int, int]] = field(default_factory=set)


class Serving:
    """`present`: replicas that take part now. `turn` tells what each does after this phase."""

    def __init__(self, books: Books, turn: Turn, present: Iterable[int]) -> None:
        self._books = books
        self._plan = books.plan
        self._turn = turn
        self._rules = books.agreement
        self._stepwise = books.agreement.unit == "step"
        self.present = set(present)
        self._era = books.new_unit()
        self._filler = min(self.present)
        self._unfilled = {number for _, number in self._plan.serving}
        limit = self._plan.steps if books.agreement.until is None else books.last_step
        self._pieces = Pieces(self._plan, books.committed, limit, books.open)
        self._sizing = Sizing(books.balance, self._rules.piece, self._plan.micro_batch)
        self._out: dict[int, Push] = {}
        self._ready: list[int] = []
        self._idle: dict[int, tuple[int, set[int]]] = {}
        self._parked: dict[int, int] = {}
        """replicas without work, and the unit that their answer will be to"""
        self._version = books.committed if self._stepwise else 0
        self._holds = dict.fromkeys(self.present, self._version)
        """what version of the parameters each replica has"""
        self._summed: dict[int, float] = {}
        self._due = Due()
        self._handed = books.committed
        self._slowest: int | None = None
        self._saver: int | None = None
        """who was told to save the end of the run"""
        self._entrusted: set[int] = set()
        """who was given all that servers have, for the next phase"""
        self._done = False

    def start(self) -> tuple[dict[int, Work | None], Outbox]:
        """A lease for each replica, maybe of nothing; the first fills the servers with its state."""
        fill = self._to_servers(Fill(self._era))
        return {replica: self._lease(replica, replica == self._filler) for replica in sorted(self.present)}, fill

    # --- what members say ------------------------------------------------------------------------------------

    def vote(self, member: Member, vote: Vote) -> Outbox:
        replica, rank = member
        if vote.unit in self._idle:
            return self._vote_of_nothing(vote.unit, rank)
        if (push := self._out.get(vote.unit)) is None or push.replica != replica:
            return []  # of a unit that is void: its replica is told so by another message
        push.votes[rank] = vote
        return self._advance(vote.unit)

    def hear(self, server: int, message: Received | Summed | Filled) -> Outbox:
        """What a server says."""
        match message:
            case Received(unit, rank):
                if unit in self._out:
                    self._out[unit].received.add((server, rank))
                    return self._advance(unit)
            case Filled(era) if era == self._era:
                self._unfilled.discard(server)
            case Summed(step, norm) if step == self._books.committed + 1:
                self._summed[server] = norm
                if len(self._summed) == self._plan.servers:
                    return self._decide_step()
        return []

    def join(self, replica: int, servers: list[str]) -> Outbox:
        """A replica comes, and starts from what servers have. Where the run is over it may still save what another could not."""
        books = self._books
        self.present.add(replica)
        self._holds[replica] = self._version
        unsaved = books.unsaved if self._done else None
        work = None if self._done and unsaved is None else self._lease(replica, fill=False)
        version = None if self._done and unsaved is None else self._version
        hand = [] if version is None else self._to_servers(Hand(version, [replica], [replica] if unsaved else []))
        begin = Verdict(
            books.new_unit(),
            books.committed,
            "begin",
            0.0,
            save=unsaved is not None,
            position=unsaved,
            work=work,
            version=version,
            servers=servers,
        )
        return [*hand, *self._to(replica, begin)]

    def lose(self, replica: int) -> Outbox | None:
        """A replica is gone: its pieces go to others. None where servers cannot go on without it."""
        self.present.discard(replica)
        self._parked.pop(replica, None)
        self._entrusted.discard(replica)
        self._idle = {unit: idle for unit, idle in self._idle.items() if idle[0] != replica}
        outbox = self._to_servers(Forget(replica, self._books.new_unit()))
        for unit, push in list(self._out.items()):
            if push.replica == replica:
                del self._out[unit]
                self._pieces.give_back(push.piece)
                outbox += self._to_servers(Drop(unit))
        self._ready = [unit for unit in self._ready if unit in self._out]
        if self._unfilled and replica == self._filler:
            return None
        return outbox + self._admit() + self._feed()

    def lost_work(self, kept: dict[int, Ranges], since: int) -> dict[str, Ranges]:
        """What has been applied since the checkpoint of step `since`, when of later steps `kept` was in."""
        applied = {step: [[0, self._plan.size(step)]] for step in range(since + 1, self._books.committed + 1)}
        applied |= self._pieces.covered()
        return {str(step): left for step, ranges in sorted(applied.items()) if (left := _without(ranges, kept.get(step, [])))}

    # --- leases ----------------------------------------------------------------------------------------------

    def _lease(self, replica: int, fill: bool) -> Work:
        """The next piece, or nothing for now."""
        unit, books = self._books.new_unit(), self._books
        piece = self._take(replica)
        if piece is None:
            self._idle[unit] = replica, set()
            return Work(unit, books.generation, [], books.phase, self._era, fill)
        self._out[unit] = Push(replica, piece, self._version, books.clock())
        whole = [[0, self._plan.size(piece.step)]] if self._stepwise else [piece.span]
        part = Part(piece.step, [piece.span], whole)
        return Work(unit, books.generation, [part], books.phase, self._era, fill, books.saves(piece.step), skipped=books.skipped)

    @property
    def _reach(self) -> int:
        """The last step of which there may be pieces now. A step that was begun is ended, whether the phase is over or the run is to stop;
        as they come, on a stop what is out is waited for."""
        books = self._books
        if self._stepwise:
            between_steps = not self._pieces.begun(books.committed + 1)
            return 0 if between_steps and (books.turning or books.over) else books.committed + 1
        if books.stopping:
            return 0
        return self._handed if books.turning else self._plan.steps

    @property
    def _has_work(self) -> bool:
        return self._pieces.next(self._reach) is not None

    def _take(self, replica: int) -> Piece | None:
        """The next piece, as large as it is to be for this replica."""
        if not self._has_work:
            return None
        piece = self._pieces.take(self._reach, self._size(replica))
        assert piece is not None
        self._handed = max(self._handed, piece.step)
        return piece

    def _size(self, replica: int) -> int:
        """As they come, each piece is an update, whose size shapes the curve."""
        if not self._stepwise:
            return self._rules.piece
        out = math.fsum(map(self._to_come, self._out.values()))
        return self._sizing.size(replica, sorted(self.present), self._pieces.left(self._books.committed + 1), out)

    def _to_come(self, push: Push) -> float:
        """Sequences of a piece that its replica has not computed yet, as far as its speed is known."""
        speed = (self._books.balance.speeds([push.replica]) or {}).get(push.replica, 0.0)
        return max(0.0, push.piece.end - push.piece.first - speed * (self._books.clock() - push.since))

    def _vote_of_nothing(self, unit: int, rank: int) -> Outbox:
        replica, ranks = self._idle[unit]
        ranks.add(rank)
        if len(ranks) < self._plan.ranks:
            return []
        del self._idle[unit]
        if self._done:
            return self._answer(replica, unit, "counted", 0.0, None)
        self._parked[replica] = unit
        return self._feed()

    def _feed(self) -> Outbox:
        """Work for replicas that have none; where there will be none any more, the phase ends."""
        outbox: Outbox = []
        for replica, unit in sorted(self._parked.items()):
            if not self._has_work:
                break
            del self._parked[replica]
            version = self._version if self._holds[replica] != self._version else None
            if version is not None:
                outbox += self._to_servers(Hand(version, [replica], []))
            outbox += self._answer(replica, unit, "counted", 0.0, self._lease(replica, fill=False), version)
        return outbox or self._end()

    # --- pushes ----------------------------------------------------------------------------------------------

    def _advance(self, unit: int) -> Outbox:
        push = self._out[unit]
        if len(push.votes) < self._plan.ranks or len(push.received) < self._plan.ranks * self._plan.servers:
            return []
        if self._stepwise:
            return self._add(unit)
        self._ready.append(unit)
        return self._admit()

    def _add(self, unit: int) -> Outbox:
        """Synchronous: a push is in the step's sum."""
        push = self._out.pop(unit)
        step = push.piece.step
        self._pieces.count(Entry(push.piece, push.replica, _told(push)))
        last = self._pieces.all_in(step)
        self._parked[push.replica] = unit
        if last:
            self._summed, self._slowest = {}, push.replica
        return self._to_servers(Add(unit, step, last)) + ([] if last else self._feed())

    def _decide_step(self) -> Outbox:
        """All pieces are in, and servers have told the norm of their sum."""
        books = self._books
        step = books.committed + 1
        entries = self._pieces.whole(step)
        assert entries is not None
        told = [each for entry in entries for each in entry.told]
        grad_norm = math.sqrt(math.fsum(self._summed.values()))
        self._summed = {}
        decision = books.judge(step, books.loss(step, told), grad_norm)
        if books.failure:
            return self._close_all(books.failure)
        slowest, by_replica = self._slowest if len(self.present) > 1 else None, ranges_by_replica(entries)
        books.record_step(step, told, by_replica, grad_norm, slowest)
        books.observe(told, by_replica)
        if decision == "rollback":
            books.roll_back_judged(step)
            return self._again()
        self._version = step
        due = books.due(step)
        pushing = min(each.vote.waited for each in told)
        books.record_choice(self._sizing.choose(sorted(self.present), self._plan.size(step + 1), pushing))
        return self._commit_step(step, decision, grad_norm, told[0].did.lr, due)

    def _commit_step(self, step: int, decision: Decision, grad_norm: float, lr: float, due: Due) -> Outbox:
        """Apply, and tell all that wait; with it go the next leases. Each verdict answers a vote: nobody gets two at once."""
        books, members = self._books, sorted(self._parked)
        if not members:  # whoever pushed is gone, and who has nothing to do is told when it says so
            self._due |= due
            return self._to_servers(Apply(None, decision, grad_norm, lr, step, [], []))
        due, self._due = due | self._due, Due()
        apply = self._to_servers(Apply(None, decision, grad_norm, lr, step, members, members[:1] if due.save else []))
        position = books.position(step) if due.save else None
        if books.over:
            self._saver = members[0]
        evaluation = dict(zip(members, shares.deal(self._plan.evaluation_size, [1.0] * len(members)), strict=True)) if due.evaluate else {}
        tell: Outbox = []
        for replica in members:
            mine = position if replica == members[0] else None
            work = self._lease(replica, fill=False)
            tell += self._answer(replica, self._parked.pop(replica), decision, grad_norm, work, step, evaluation.get(replica), mine)
        return [*apply, *tell]

    # --- as they come ----------------------------------------------------------------------------------------

    def _admit(self) -> Outbox:
        """Apply what is in, oldest parameters first, as far as that makes nobody else's push too late."""
        outbox: Outbox = []
        while not self._done and (unit := next(filter(self._admissible, sorted(self._ready, key=self._age)), None)):
            self._ready.remove(unit)
            outbox += self._apply(unit)
        return outbox

    def _age(self, unit: int) -> tuple[int, int]:
        return self._out[unit].version, unit

    def _admissible(self, unit: int) -> bool:
        """Whether all others that are out can still come in time: the oldest next, and so on.

        With n updates made, this one is the n+1st; others with versions v_0 <= v_1 <= ... can follow as n+2nd, n+3rd, ...; the j-th is
        then n + 1 + j - v_j updates old.
        """
        if self._rules.staleness is None:
            return True
        others = sorted(push.version for other, push in self._out.items() if other != unit)
        return all(self._version + 1 + place - version <= self._rules.staleness for place, version in enumerate(others))

    def _apply(self, unit: int) -> Outbox:
        """One push is one update."""
        books, push = self._books, self._out.pop(unit)
        told = _told(push)
        grad_norm = math.sqrt(math.fsum(each.did.squared_norm for each in told))
        decision = books.judge(push.piece.step, books.loss(push.piece.step, told), grad_norm)
        if books.failure:
            return self._close_all(books.failure)
        if decision == "rollback":
            lost = self.lost_work(_open_ranges(books.kept), books.kept["step"])
            books.roll_back_judged(push.piece.step, lost)
            return self._again()
        late = self._version - push.version
        self._version += decision == "commit"
        self._pieces.count(Entry(push.piece, push.replica, told, decision == "skip", late))
        self._due |= self._record_whole_steps()
        self._parked[push.replica] = unit
        lr = told[0].did.lr / (1 + late if self._rules.damped else 1)
        return self._go_on(push.replica, unit, decision, grad_norm, lr)

    def _go_on(self, replica: int, unit: int, decision: Decision, grad_norm: float, lr: float) -> Outbox:
        """The update, and for its replica parameters and a lease; or a place among those that wait."""
        if not self._has_work:
            update = self._to_servers(Apply(unit, decision, grad_norm, lr, self._version, [], []))
            return [*update, *self._end()]
        del self._parked[replica]
        due, position = Due(), None
        if replica == min(self.present):
            due, self._due = self._due, Due()
        if due.save:
            position = self._books.position(self._books.committed, self._pieces.position())
        whole = [replica] if due.save else []
        update = self._to_servers(Apply(unit, decision, grad_norm, lr, self._version, [replica], whole))
        evaluate = [[0, self._plan.evaluation_size]] if due.evaluate else None
        work = self._lease(replica, fill=False)
        return [*update, *self._answer(replica, unit, decision, grad_norm, work, self._version, evaluate, position)]

    def _record_whole_steps(self) -> Due:
        """Record each step whose last piece came in, in order; what is due after them."""
        due, books = Due(), self._books
        while (entries := self._pieces.whole(books.committed + 1)) is not None:
            step = books.committed + 1
            told = [each for entry in entries for each in entry.told]
            grad_norm = math.sqrt(math.fsum(each.did.squared_norm for each in told) / len(entries))
            late = [entry.late for entry in entries if not entry.skipped]
            skipped, by_replica = all(entry.skipped for entry in entries), ranges_by_replica(entries)
            books.record_step(step, told, by_replica, grad_norm, staleness=late, skipped=skipped)
            books.observe(told, by_replica)
            due |= books.due(step, saves_on_stop=False)
        return due

    # --- the end ---------------------------------------------------------------------------------------------

    def _end(self) -> Outbox:
        """Once nothing is out and nobody works: the end of the phase, or of the run.

        It comes in two turns. First whoever needs it gets all that servers have, with a lease of nothing; when it has answered that,
        servers have done their work, and may be lost.
        """
        books, members = self._books, sorted(self.present)
        if self._done or self._out or not members or self.present != set(self._parked):
            return []
        if books.over:
            return self._finish() if self._saver in self.present else self._entrust(members[:1])
        if books.turning and self._complete:
            return self._finish() if self._entrusted >= self.present else self._entrust(members)
        return []

    def _entrust(self, members: list[int]) -> Outbox:
        """All that servers have goes to these."""
        books = self._books
        due, self._due = self._due, Due()
        saves = due.save or books.over
        self._saver, self._entrusted = members[0] if books.over else None, set(members)
        outbox = self._to_servers(Hand(self._version, members, members))
        evaluate = [[0, self._plan.evaluation_size]] if due.evaluate else None
        for replica in members:
            first = replica == members[0]
            position = books.position(books.committed, self._pieces.position()) if saves and first else None
            work = self._lease(replica, fill=False)
            outbox += self._answer(
                replica, self._parked.pop(replica), "counted", 0.0, work, self._version, evaluate if first else None, position
            )
        return outbox

    def _finish(self) -> Outbox:
        self._done = True
        units = dict(self._parked)
        self._parked.clear()
        following, besides = (dict.fromkeys(units), []) if self._books.over else self._turn()
        tell = [each for replica, unit in sorted(units.items()) for each in self._answer(replica, unit, "counted", 0.0, following[replica])]
        return [*tell, *besides]

    @property
    def _complete(self) -> bool:
        """Whether the next phase can begin with the replicas that are present. Others may come to it later, or never."""
        plan = self._plan
        after = plan.agreements[self._books.phase + 1] if self._books.turning else self._rules
        return after.served or len(self.present) >= (plan.fewest if plan.elastic else plan.replicas)

    @property
    def done(self) -> bool:
        """Whether all that is left to do is to leave."""
        return self._done and self._books.over

    def _again(self) -> Outbox:
        """After a rollback: everyone returns to the checkpoint."""
        self._done = True
        self._books.generation += 1
        return rolled_back(self._books, *self._turn())

    # --- messages --------------------------------------------------------------------------------------------

    def _answer(
        self,
        replica: int,
        unit: int,
        decision: Decision,
        grad_norm: float,
        work: Work | None,
        version: int | None = None,
        evaluate: Ranges | None = None,
        position: dict[str, object] | None = None,
    ) -> Outbox:
        step = self._books.committed
        if version is not None:
            self._holds[replica] = version
        verdict = Verdict(
            unit, step, decision, grad_norm, evaluate=evaluate, save=position is not None, position=position, work=work, version=version
        )
        return self._to(replica, verdict)

    def _to(self, replica: int, message: Message) -> Outbox:
        return [((replica, rank), message) for rank in range(self._plan.ranks)]

    def _to_servers(self, message: Message) -> Outbox:
        return [(server, message) for server in self._plan.serving]

    def _close_all(self, why: str) -> Outbox:
        self._done = True
        return [(member, Closed(why)) for member in self._plan.members]


def rolled_back(books: Books, following: dict[int, Work | None], besides: Outbox, servers: list[str] | None = None) -> Outbox:
    """The verdict for all after a rollback. Where servers serve, the one that fills them returns to the checkpoint, and the others take
    what it brought: they may be slow, and the checkpoint gone by then."""
    plan = books.plan
    tell: Outbox = []
    version = books.committed if books.agreement.unit == "step" else 0
    pulling = [replica for replica, work in following.items() if work is not None and work.era and not work.fill]
    for replica, work in following.items():
        verdict = Verdict(books.new_unit(), books.committed, "rollback", 0.0, work=work, servers=servers or [])
        verdict = replace(verdict, version=version) if replica in pulling else replace(verdict, to_step=books.committed)
        tell += [((replica, rank), verdict) for rank in range(plan.ranks)]
    hand: Outbox = [(server, Hand(version, pulling, [])) for server in plan.serving] if pulling else []
    return [*tell, *besides, *hand]


def _told(push: Push) -> list[Told]:
    return [Told((push.replica, rank), vote.did[0], vote) for rank, vote in sorted(push.votes.items())]


def _open_ranges(position: dict[str, object]) -> dict[int, Ranges]:
    """What of steps that were not whole a checkpoint's position says is in."""
    open_pieces = position.get("open", {})
    assert isinstance(open_pieces, dict)
    return {int(step): shares.merge([entry[1] for entry in entries]) for step, entries in open_pieces.items()}


def _without(ranges: Ranges, others: Ranges) -> Ranges:
    """Of `ranges` what is not in `others`."""
    left = []
    for first, end in ranges:
        inside = [[max(first, start) - first, min(end, stop) - first] for start, stop in others if start < end and stop > first]
        left += [[gap_first + first, gap_end + first] for gap_first, gap_end in shares.gaps(end - first, inside)]
    return left
