"""The ledger: who is here, what is leased to whom, what has been committed.

A pure state machine. Messages go in, messages come out, and events are recorded; it knows no process, socket or clock but
those it is handed, so that tests can explore any order of messages. What a unit is depends on how replicas agree:

    together   a step or a round: all replicas hold one unit in shares; it commits when each rank has voted
    serving    micro-batches, pushed to parameter servers; workers and servers may die, and others take their place
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from plait import events
from plait.events import Event
from plait.ledger.books import Books
from plait.ledger.evaluations import Evaluations
from plait.ledger.messages import (
    SERVING,
    Asked,
    Broken,
    Closed,
    Failed,
    Filled,
    Join,
    Kept,
    Left,
    Link,
    Measured,
    Member,
    Message,
    Outbox,
    Received,
    Summed,
    Unkept,
    Verdict,
    Vote,
    Work,
    name,
)
from plait.ledger.plan import Plan
from plait.ledger.serving import Serving, rolled_back
from plait.ledger.together import Together

TRIES = 3
"""Times that a replica may be lost in a row without having done anything, before it is given up."""


class Ledger:
    """Hands out work, decides units, records what counts.

    handle(member, message) returns the messages to send. `record` is told each event. A ledger that goes on from a
    checkpoint gets its `position`. `failure` says why the run ended badly, `mistaken` that a user's mistake was the reason;
    `ended` that there is nothing more to do.
    """

    def __init__(
        self,
        plan: Plan,
        record: Callable[[Event], None],
        clock: Callable[[], float],
        position: dict[str, Any] | None = None,
    ) -> None:
        self.plan = plan
        self.mistaken = False
        self._wanted: list[Member] = []
        self._record = record
        self._clock = clock
        self._books = Books(plan, record, clock, position)
        self._course: Together | Serving | None = None
        self._resumed = position is not None
        self._joined: dict[Member, Join] = {}
        self._left: set[Member] = set()
        self._gone: set[Member] = set(plan.late)
        self._starting: set[Member] = set()
        """of those that are gone, whose process has been started again"""
        self._dismissed: set[Member] = set()
        self._given_up: set[int] = set()
        self._idle_deaths: Counter[int] = Counter()
        self._at_work: set[int] = set()
        """replicas that have done something since they came"""
        self._raised = (0, 0)
        """since which step, how often a replica ended by an error of its own"""
        self._held_up: str | None = None
        self._echoes: list[tuple[Member, str]] = []
        self._evaluations = Evaluations(record, clock, plan.ranks, plan.score)
        self._unmeasured = False
        """whether the checkpoint that was returned to is still to be measured"""

    @property
    def committed(self) -> int:
        """The last committed step."""
        return self._books.committed

    @property
    def kept(self) -> int:
        """The step of the newest checkpoint that stands; 0 for none."""
        step: int = self._books.kept["step"]
        return step

    @property
    def failure(self) -> str | None:
        return self._books.failure

    @property
    def stopping(self) -> bool:
        return self._books.stopping

    @property
    def expected(self) -> list[Member]:
        """All who take part."""
        return self.plan.members

    @property
    def ended(self) -> bool:
        return self.failure is not None or all(member in self._left for member in self.expected if self._takes_part(member))

    def handle(self, member: Member, message: Message) -> Outbox:
        """Take one message; returns what to send to whom."""
        return self._noted(self._take(member, message))

    def lose(self, member: Member, why: str) -> Outbox:
        """A member is gone. The others go on, where it can be replaced; otherwise the run ends, and they are told to stop."""
        return self._noted(self._lose(member, why))

    def _take(self, member: Member, message: Message) -> Outbox:
        match message:
            case Join():
                return self._join(member, message)
            case Vote():
                return self._vote(member, message)
            case Received() | Summed() | Filled():
                heard = isinstance(self._course, Serving) and member not in self._gone and not self._held_up
                return self._course.hear(member[1], message) if heard else []  # type: ignore[union-attr]
            case Broken():
                return self._broken(member, message)
            case Measured():
                course = self._course if isinstance(self._course, Together) else None
                self._evaluations.take(member, message, more_to_ask=bool(course and course.to_measure))
                return course.measured(member) if course else []
            case Kept():
                self._books.keep(message.step)
                self._record(events.Saved(self._clock(), message.step, message.path, message.bytes, message.seconds, message.stalled))
                return self._course.kept() if isinstance(self._course, Together) else []
            case Unkept():
                return self._unkept(message)
            case Link() if not self._books.linked:  # the first rank's word is as good as any other's
                self._books.linked = True
                self._books.tuning.link(message.latency, message.bandwidth)
                self._record(events.Linked(self._clock(), message.latency, message.bandwidth, message.backend, message.emulated))
            case Link():
                pass
            case Asked():
                self._books.ask(message.request)
            case Failed(cause="peer"):
                self._echoes.append((member, message.why))
            case Failed(cause="user"):
                self.mistaken = True
                return self._fail(member, message.why)
            case Failed():
                return self._raised_by(member, message.why)
            case Left():
                return self._leave(member)
            case _:
                raise ValueError(f"{type(message).__name__} is not for a ledger")
        return []

    def pid(self, member: Member) -> int | None:
        """Of a member that has joined."""
        return self._joined[member].pid if member in self._joined else None

    def hung(self, member: Member, seconds: float, doing: str, stack: str) -> None:
        """A member makes no progress; that it is gone is told when it is."""
        hello = self._joined.get(member)
        host, pid = (hello.host, hello.pid) if hello else ("", 0)
        self._record(events.Hung(self._clock(), *member, host, pid, seconds, doing, self.committed + 1, stack))

    def started(self, member: Member) -> None:
        """The process of a member that was wanted is there."""
        if member in self._gone:
            self._starting.add(member)

    def take_wanted(self) -> list[Member]:
        """Members that are gone and are to be started again; each is told once."""
        wanted, self._wanted = self._wanted, []
        return wanted

    def has_spoken(self, member: Member) -> bool:
        """Whether a member took its leave before it ended, or is known to be gone."""
        return member in self._left or (member in self._gone and member not in self._starting)

    def last_words(self, member: Member) -> str | None:
        """What a member complained of in a peer of its replica."""
        return next((why for other, why in self._echoes if other == member), None)

    def believe_echoes(self) -> Outbox:
        """Nobody but members that saw a peer fail has failed: take the first at its word."""
        return self._fail(*self._echoes[0]) if self._echoes else []

    # --- joining ---------------------------------------------------------------------------------------------

    def _join(self, member: Member, hello: Join) -> Outbox:
        if member not in self.expected or (member in self._joined and member not in self._gone):
            return [(member, Closed(f"{name(member)} is not expected here"))]
        again = self._course is not None
        self._echoes = [echo for echo in self._echoes if echo[0] != member]
        self._joined[member] = hello
        self._gone.discard(member)
        self._starting.discard(member)
        if member[0] != SERVING:
            self._books.devices[member] = hello.device
            self._books.places[member] = hello.host, hello.pid
        self._record(events.Joined(self._clock(), member[0], member[1], hello.host, hello.pid, hello.device))
        return self._join_again(member) if again else self._start_together()

    def _start_together(self) -> Outbox:
        """Once all are here that are not gone, and there are enough of them."""
        here = [member for member in self.expected if member not in self._gone]
        all_here = all(member in self._joined for member in here)
        serving = all(server in here for server in self.plan.serving)
        if not all_here or not serving or len(self._present) < self.plan.fewest:
            return []
        self._wanted += [member for member in self.plan.late if member in self._gone and member not in self._joined]
        return self._start(self._joined[self._present[0], 0].device)

    def _start(self, device: str) -> Outbox:
        plan, now, books = self.plan, self._clock(), self._books
        first = self._present[0]
        held = sum(hello.parameters for (replica, _), hello in self._joined.items() if replica == first)
        books.tuning.total = 4 * held / plan.ranks
        if self._resumed:
            self._record(events.Resumed(now, books.committed, len(self._present), plan.layout))
        else:
            self._record(events.Started(now, plan.version, len(self._present), held, plan.steps, device, plan.layout))
        following, besides = self._turn()
        begin: Outbox = [
            (
                member,
                Verdict(0, books.committed, "begin", 0.0, work=following.get(member[0]), servers=self._addresses),
            )
            for member in plan.workers
            if member[0] in self._present
        ]
        return [*begin, *besides]

    def _join_again(self, member: Member) -> Outbox:
        """A member that was lost has been replaced; its replica takes part once all its ranks have."""
        replica = member[0]
        if any((replica, rank) in self._gone for rank in range(self.plan.ranks)) and replica != SERVING:
            return []
        if self._held_up is not None:
            return self._begin_again()
        if replica == SERVING:
            if not isinstance(self._course, Serving):
                return self._after_leaving()  # it serves in a later phase, or nobody any more
            return self._hold_up(f"{name(member)} was not there when it was needed")
        if isinstance(self._course, Serving):
            self._books.generation += 1
        assert self._course is not None
        return self._course.join(replica, self._addresses)

    def _turn(self) -> tuple[dict[int, Work | None], Outbox]:
        """What each replica does next: in this phase, or in the next one."""
        books, before = self._books, self._course
        level = before.present if before is not None and self._held_up is None else self._present
        books.turn()
        coming = [replica for replica in self._present if replica not in level]
        if books.agreement.served:
            if isinstance(before, Together) and books.over:
                return before.start()
            self._course = serving = Serving(books, self._turn, level)
            following, besides = serving.start()
            return following, [*besides, *(each for replica in coming for each in serving.join(replica, self._addresses))]
        if not isinstance(before, Together) or self._held_up is not None:
            unmeasured = [[0, self.plan.evaluation_size]] if self._unmeasured else []
            self._course, self._unmeasured = Together(books, self._turn, level, coming, unmeasured), False
        return self._course.start()  # type: ignore[union-attr]

    @property
    def _present(self) -> list[int]:
        return [replica for replica in range(self.plan.replicas) if not any(gone[0] == replica for gone in self._gone)]

    @property
    def _addresses(self) -> list[str]:
        return [self._joined[server].address for server in self.plan.serving]

    # --- votes -----------------------------------------------------------------------------------------------

    def _vote(self, member: Member, vote: Vote) -> Outbox:
        if vote.request:
            self._books.ask(vote.request)
        if member not in self.plan.workers:
            return [(member, Closed(f"{name(member)} is not expected here"))]
        if self._course is None or member in self._gone or self._held_up:
            return []
        if vote.did:
            self._idle_deaths[member[0]] = 0
            self._at_work.add(member[0])
        return self._course.vote(member, vote)

    def _broken(self, member: Member, message: Broken) -> Outbox:
        if not isinstance(self._course, Together) or member in self._gone or self._held_up:
            return []
        return self._course.broken(member, message)

    def _noted(self, outbox: Outbox) -> Outbox:
        self._evaluations.note(outbox)
        return outbox

    # --- losing ----------------------------------------------------------------------------------------------

    def _lose(self, member: Member, why: str) -> Outbox:
        if self.ended or self.has_spoken(member):
            return []
        if any(other[0] == member[0] for other in self._starting):
            return self._lose_newborn(member, why)
        if not (self.plan.elastic or isinstance(self._course, Serving) or member[0] == SERVING):
            return self._fail(member, why)
        if member[0] == SERVING:
            return self._lose_server(member, why)
        return self._lose_replica(member, why)

    def _lose_newborn(self, member: Member, why: str) -> Outbox:
        """One that was started again did not come as far as to take part."""
        replica = member[0]
        self._record(events.Lost(self._clock(), replica, member[1], why))
        if replica == SERVING:
            self._starting.discard(member)
            self._wanted.append(member)
            return []
        self._idle_deaths[replica] += 1
        if self._idle_deaths[replica] >= TRIES and (failure := self._give_up(replica, why)):
            return self._close(member, failure)
        self._part_with(replica)
        self._want(replica)
        return []

    def _raised_by(self, member: Member, why: str) -> Outbox:
        """An error that comes with the first unit, or comes again and again, is no accident."""
        since, times = self._raised
        self._raised = (self.committed, times + 1 if since == self.committed else 1)
        accident = self.plan.elastic and member[0] in self._at_work and self._raised[1] < TRIES
        return self._lose(member, why) if accident else self._fail(member, why)

    def _lose_replica(self, member: Member, why: str) -> Outbox:
        replica = member[0]
        self._record(events.Lost(self._clock(), replica, member[1], why))
        self._idle_deaths[replica] += 1
        if self._idle_deaths[replica] >= TRIES and (failure := self._give_up(replica, why)):
            return self._close(member, failure)
        return self._drop(replica, f"{name(member)} was lost, and nobody else had the state")

    def _drop(self, replica: int, why: str) -> Outbox:
        """Go on without a replica, until another has come in its place. why: should all return to a checkpoint."""
        course = self._course
        newcomers = course.newcomers if isinstance(course, Together) and replica in course.group else []
        self._part_with(replica)
        if course is None:
            self._want(replica)
            return self._start_together()
        if course.done and self._books.unsaved is None and not self._held_up:
            self._left.update((replica, rank) for rank in range(self.plan.ranks))
            return self._after_leaving()
        self._want(replica)
        if self._held_up:
            return []
        if isinstance(course, Serving):
            self._books.generation += 1
        for newcomer in newcomers:  # those who were about to be handed the state begin again
            if newcomer != replica:
                self._part_with(newcomer)
                self._want(newcomer)
        outbox = course.lose(replica)
        return outbox if outbox is not None else self._hold_up(why)

    def _part_with(self, replica: int) -> None:
        ranks = [(replica, rank) for rank in range(self.plan.ranks)]
        self._gone.update(ranks)
        self._starting.difference_update(ranks)
        self._at_work.discard(replica)
        self._books.forget(replica)
        if isinstance(self._course, Together):
            self._evaluations.forget(replica)

    def _want(self, replica: int) -> None:
        if replica not in self._given_up:
            self._wanted += [(replica, rank) for rank in range(self.plan.ranks)]

    def _give_up(self, replica: int, why: str) -> str | None:
        """Go on without a replica that dies each time before it has done anything, as far as that is possible."""
        self._given_up.add(replica)
        left, fewest = self.plan.replicas - len(self._given_up), self.plan.fewest
        if left >= fewest:
            return None
        others = "as all others were" if not left else f"and without it {left} are left of the {fewest} that the run needs"
        return f"replica {replica} was lost {TRIES} times in a row before it had done anything, {others}: {why}"

    def _lose_server(self, server: Member, why: str) -> Outbox:
        """What it held is gone: all return to the last cut, once there is another."""
        self._record(events.Lost(self._clock(), *server, why))
        self._gone.add(server)
        if self._course is not None and self._course.done and self._books.unsaved is None and not self._held_up:
            self._left.add(server)
            return self._after_leaving()
        self._wanted.append(server)
        if not isinstance(self._course, Serving) or self._held_up:
            return []
        return self._hold_up(f"{name(server)} was lost: {why}")

    def _hold_up(self, why: str) -> Outbox:
        """Nothing goes on until all servers are there, and enough replicas; then all begin again from the last checkpoint."""
        books = self._books
        self._held_up = why
        kept = {int(step): [entry[1] for entry in entries] for step, entries in books.kept.get("open", {}).items()}
        lost = self._course.lost_work(kept, books.kept["step"]) if isinstance(self._course, Serving) else {}
        books.roll_back(why, lost)
        books.generation += 1
        self._unmeasured = self._evaluations.under_way(books.committed)
        self._evaluations.forget_all()
        self._call_back()
        return self._begin_again()

    def _call_back(self) -> None:
        """Those that have left are needed again."""
        self._dismissed.clear()
        for member in sorted(self._left):
            self._left.discard(member)
            self._gone.add(member)
            self._wanted.append(member)

    def _begin_again(self) -> Outbox:
        if any(member[0] == SERVING for member in self._gone) or len(self._present) < self.plan.fewest:
            return []
        following, besides = self._turn()
        self._held_up = None
        return rolled_back(self._books, following, besides, self._addresses)

    def _takes_part(self, member: Member) -> bool:
        return member[0] not in self._given_up

    def _fail(self, member: Member, why: str) -> Outbox:
        if self.ended or member in self._left:
            return []
        self._record(events.Lost(self._clock(), *member, why))
        return self._close(member, why if self.mistaken else f"{name(member)}: {why}")

    def _close(self, member: Member, failure: str) -> Outbox:
        self._books.failure = failure
        return [(other, Closed(f"{name(member)} failed")) for other in self.expected if other != member]

    # --- facts -----------------------------------------------------------------------------------------------

    def _unkept(self, message: Unkept) -> Outbox:
        self._books.drop(message.step)
        if message.again and not self._books.over:
            self._books.ask("save")
        self._record(events.SaveFailed(self._clock(), message.step, message.why))
        return self._course.kept() if isinstance(self._course, Together) else []

    def _leave(self, member: Member) -> Outbox:
        needed = self._held_up or (self._course is not None and not self._course.done)
        if needed and self.failure is None and member[0] != SERVING:
            return self._drop(member[0], "it had been told to go when it was needed again") if member not in self._gone else []
        self._left.add(member)
        return self._after_leaving()

    def _after_leaving(self) -> Outbox:
        """Servers leave when all workers have; with the last one the run has ended."""
        staying = [member for member in self.expected if self._takes_part(member) and member not in self._left]
        if not staying:
            now = self._clock()
            done = self.committed >= self.plan.steps
            self._record(events.Finished(now, self.committed) if done else events.Stopped(now, self.committed, "asked to"))
            return []
        if any(member[0] != SERVING for member in staying):
            return []
        dismissed = [member for member in staying if member not in self._dismissed and member not in self._gone]
        self._dismissed.update(dismissed)
        return [(server, Left()) for server in dismissed]
