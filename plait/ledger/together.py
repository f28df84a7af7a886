"""Units that all replicas hold together: a step, or a round of steps, each dealt out in shares.

    lease ─► every rank votes ─► one verdict for all, with the next lease

A replica that is gone makes the unit void, since nobody else holds what it was to send; the others do it again without it:

    replica 0   unit 7 ▓▓▓▓▓▓▓▓│void│ heard ┐ met ┐ unit 8 ▓▓▓▓▓▓▓▓▓▓ commit
    replica 1   unit 7 ▓▓▓▓▓▓▓▓│void│ heard ┤ met ┤ unit 8 ▓▓▓▓▓▓▓▓▓▓ commit
    replica 2   unit 7 ▓▓▓▓ ✗               └─────┘        of the same step

Rolls are called by leases of nothing, which everyone answers: first that all have heard, so that nobody is left in a group that is no
more, then that all have met in the next one. Who comes anew is met in the same way, between two units, and takes part in one without a
share of it, in which it is handed the state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from plait import events
from plait.events import Ranges
from plait.ledger import shares
from plait.ledger.books import Books, Due
from plait.ledger.checking import Finding, Fingerprints, compare
from plait.ledger.measures import Told, norm_of_mean, norm_of_sum, slowest_of, sum_of_loads
from plait.ledger.messages import Broken, Closed, Decision, Member, Message, Outbox, Part, Verdict, Vote, Work, name

Following = dict[int, Work | None]
Turn = Callable[[], tuple[Following, Outbox]]
BREAKS = 3
"""Times in a row that a group may break though nobody is gone."""


@dataclass
class _Roll:
    """A lease of nothing that all ranks of `of` answer; `then` follows."""

    unit: int
    of: set[int]
    then: Callable[[], Outbox]
    heard: set[Member] = field(default_factory=set)
    told: dict[Member, Fingerprints] = field(default_factory=dict)


class Together:
    """All-reduce and local steps. `turn` tells what each replica does next, in this phase or another. present: replicas that have the
    state; coming: those that are here, and do not."""

    def __init__(
        self, books: Books, turn: Turn, present: Iterable[int], coming: Iterable[int] = (), to_measure: Ranges | None = None
    ) -> None:
        self._books = books
        self._plan = books.plan
        self._turn = turn
        self.present = set(present)
        self.coming = set(coming)
        self.group: list[int] = []
        """replicas that have met"""
        self._work: dict[int, Work] = {}
        self._votes: dict[Member, Vote] = {}
        self._roll: _Roll | None = None
        self._parked: dict[int, int] = {}
        """replicas that wait for an answer, and the unit that it will be to"""
        self._broken: set[Member] = set()
        self._breaks = 0
        self._short = False
        self._saver: int | None = None
        self._unchecked: Due | None = None
        """what is due after a unit that has been decided, once replicas have been compared"""
        self._fingerprints: dict[Member, Fingerprints] = {}
        self._unsound: set[int] = set()
        """those that are about to be handed the others' state"""
        self._ending = False
        """nothing is left to do but to save and to measure"""
        self._evaluating: dict[Member, Ranges] = {}
        """what ranks have been told to measure, until they tell of it"""
        self.to_measure: Ranges = to_measure or []
        """validation sequences that nobody has been told to measure: of replicas that are gone, of a checkpoint"""
        self.done = False
        """all that is left to do is to leave"""

    def start(self) -> tuple[Following, Outbox]:
        """What each replica does first, or next: one lease for each that is present."""
        self._votes, self._work = {}, {}
        if self.to_measure or not self.group or (self.coming and not self._books.over):
            return self._meet()
        return self._end() if self._books.over else self._lease()

    @property
    def newcomers(self) -> list[int]:
        """Replicas that have met, and are not level yet."""
        return [replica for replica in self.group if replica not in self.present]

    def forget_group(self) -> None:
        """Who was in it is somewhere else now."""
        self.group = []

    # --- who is here -----------------------------------------------------------------------------------------

    def join(self, replica: int, _: list[str]) -> Outbox:
        """A replica comes: it waits for the others to end a unit, unless they wait for it."""
        if self.done:
            return self._to(replica, Verdict(0, self._books.committed, "begin", 0.0))
        self.coming.add(replica)
        return self._heard() if self._short and self._roll is None else []

    def lose(self, replica: int) -> Outbox | None:
        """A replica is gone: the unit is void, unless it had no part in it. None where nobody has the state any more."""
        if replica not in self.present and replica not in self.group:
            self.coming.discard(replica)
            return []
        self.present.discard(replica)
        if self.done:
            return []
        self._measure_again(replica)
        if replica == self._saver and self._books.saving and not self._books.over:
            self._books.ask("save")
        return self._gather() if self.present - self._unsound else None

    def broken(self, member: Member, message: Broken) -> Outbox:
        """A group broke. As long as someone is still at work, who is gone may be told yet."""
        expected = self._roll.unit if self._roll else self._work[self.group[0]].unit if self._work else None
        if message.unit != expected:
            return []
        self._broken.add(member)
        return self._all_stuck()

    def measured(self, member: Member) -> Outbox:
        """Its part of an evaluation is in."""
        self._evaluating.pop(member, None)
        return self._dismiss()

    def kept(self) -> Outbox:
        """A checkpoint stands, or cannot be written."""
        return self._dismiss()

    def _measure_again(self, replica: int) -> None:
        """What a replica that is gone was to measure, unless all its ranks have told."""
        left = [ranges for member, ranges in self._evaluating.items() if member[0] == replica]
        self._evaluating = {member: ranges for member, ranges in self._evaluating.items() if member[0] != replica}
        if left:
            self.to_measure = shares.merge([*self.to_measure, *left[0]])

    def _all_stuck(self) -> Outbox:
        """Nobody is gone, and nobody can go on: they meet once more."""
        silent = self._ranks(self.group) - self._broken - set(self._votes) - (self._roll.heard if self._roll else set())
        if silent or not self._broken:
            return []
        self._breaks += 1
        if self._breaks > BREAKS:
            self._books.failure = f"connections between replicas broke {self._breaks} times in a row, and none of them was gone"
            return [(member, Closed(self._books.failure)) for member in self._plan.members]
        return self._gather()

    # --- rolls -----------------------------------------------------------------------------------------------

    def _call(self, of: Iterable[int], then: Callable[[], Outbox], **lease: object) -> Work:
        """A lease of nothing, the same for all that answer it."""
        books = self._books
        self._broken = set()
        self._roll = _Roll(books.new_unit(), set(of), then)
        return Work(self._roll.unit, books.generation, [], books.phase, **lease)  # type: ignore[arg-type]

    def _gather(self) -> Outbox:
        """All that are present hear that the unit is void."""
        books = self._books
        self._votes, self._work, self.group, self._parked, self._ending, self._unsound = {}, {}, [], {}, False, set()
        lease = self._call(self.present, self._heard)
        verdict = Verdict(lease.unit, books.committed, "void", 0.0, work=lease)
        return [each for replica in sorted(self.present) for each in self._to(replica, verdict)]

    def _heard(self) -> Outbox:
        """All wait: they meet, once they are enough."""
        if len(self.present | self.coming) < self._plan.fewest and not self._books.over:
            if not self._short:
                self._short = True
                self._books.record(events.Waiting(self._books.clock(), len(self.present), self._plan.fewest))
            return []
        following, besides = self._meet()
        return [*self._answer_parked(lambda replica: following[replica]), *besides]

    def _meet(self) -> tuple[Following, Outbox]:
        """Those that are present, and those that come, make a group."""
        books = self._books
        self._short = False
        books.new_group()
        newcomers = [] if books.over or self._unchecked else sorted(self.coming)
        self.group = sorted([*self.present, *newcomers])
        self.coming = self.coming.difference(newcomers)
        lease = self._call(self.group, self._met, peers=self.group, measure=not books.linked and len(self.group) > 1)
        begin = Verdict(0, books.committed, "begin", 0.0, work=lease, bucket_bytes=books.tuning.retuned)
        return dict.fromkeys(self.present, lease), [each for replica in newcomers for each in self._to(replica, begin)]

    def _met(self) -> Outbox:
        books = self._books
        if books.generation > 1:
            books.record(events.Regrouped(books.clock(), books.generation, books.committed, list(self.group), self.newcomers))
        if self._unchecked is not None:
            return self._answer_parked(dict.fromkeys(self.group, self._check()).get)
        save = False
        if not books.over:
            following, besides = self._lease()
        else:  # who was to save the end is gone, and another does it
            save = books.unsaved is not None
            following, besides = self._end()
        position = books.position(books.committed) if save else None
        evaluation = self._deal_evaluation()
        outbox = self._answer_parked(lambda replica: following.get(replica), evaluation, save, position)
        return [*outbox, *besides]

    def _end(self) -> tuple[Following, Outbox]:
        """All stay until the last checkpoint stands and all is measured: who saves may be lost as well as others."""
        self._ending = True
        self._saver = min(self.present)
        return dict.fromkeys(self.present, self._call(self.present, self._dismiss, last=True)), []

    def _dismiss(self) -> Outbox:
        """Nothing is left to do. Who comes now is not needed any more."""
        if not self._ending or self._roll or self._evaluating or self._books.unsaved is not None:
            return []
        self.done = True
        begin = Verdict(0, self._books.committed, "begin", 0.0)
        dismissed = [each for replica in sorted(self.coming) for each in self._to(replica, begin)]
        return [*self._answer_parked(lambda _: None), *dismissed]

    def _vote_of_nothing(self, member: Member, vote: Vote, roll: _Roll) -> Outbox:
        roll.heard.add(member)
        roll.told[member] = vote.fingerprints
        return self._heard_by_all(roll) if roll.heard >= self._ranks(roll.of) else self._all_stuck()

    def _heard_by_all(self, roll: _Roll) -> Outbox:
        self._roll, self._fingerprints = None, roll.told
        self._parked = dict.fromkeys(roll.of, roll.unit)
        return roll.then()

    def _answer_parked(
        self,
        work: Callable[[int], Work | None],
        evaluation: dict[int, Ranges] | None = None,
        save: bool = False,
        position: dict[str, object] | None = None,
        to_step: int | None = None,
    ) -> Outbox:
        """What they have waited for: `work` tells each replica's next lease. to_step: where a rollback leads."""
        decision: Decision = "counted" if to_step is None else "rollback"
        outbox: Outbox = []
        for replica, unit in sorted(self._parked.items()):
            mine = position if replica == min(self.present) else None
            evaluate = (evaluation or {}).get(replica)
            verdict = Verdict(unit, self._books.committed, decision, 0.0, to_step, evaluate, save, mine, work(replica))
            outbox += self._to(replica, verdict)
        self._parked = {}
        return outbox

    # --- comparing -------------------------------------------------------------------------------------------

    def _check(self) -> Work:
        return self._call(self.group, self._checked, check="whole")

    def _checked(self) -> Outbox:
        """Where they differ they are asked what does; it may be that one has hashed wrongly what is right."""
        if compare(self._fingerprints) is None:
            return self._go_on()
        lease = self._call(self.group, self._named, check="each")
        return self._answer_parked(lambda _: lease)

    def _named(self) -> Outbox:
        return self._go_on() if (finding := compare(self._fingerprints)) is None else self._repair(finding)

    def _go_on(self) -> Outbox:
        """What is due after a unit, and the next one; or what a spike leads to, for which nobody is to blame but the data."""
        books = self._books
        if books.spikes.found is not None:
            books.roll_back_judged(books.committed)
            return self._return()
        books.checks.passed(books.committed)
        due, self._unchecked = self._unchecked or Due(), None
        evaluation = self._deal_evaluation()
        self._saver = min(self.present) if due.save else self._saver
        following, besides = self._turn()
        position = books.position(books.committed) if due.save else None
        return [*self._answer_parked(following.get, evaluation, due.save, position), *besides]

    def _repair(self, finding: Finding) -> Outbox:
        """The odd ones take the others' state over, or all return to a checkpoint."""
        books = self._books
        spiked = books.spikes.taken() is not None  # the step was recorded, and not applied
        heals = books.checks.found(finding, books.committed, can_heal=not spiked and not books.kept["step"])
        if books.checks.failure:
            books.failure = books.checks.failure
            return [(member, Closed(books.failure)) for member in self._plan.members]
        if heals:
            self._unsound = self.present.difference(finding.sound)
            lease = self._call(self.group, self._healed, check="heal", peers=self.group, new=sorted(self._unsound))
            return self._answer_parked(lambda _: lease)
        books.roll_back(f"replicas differed after step {books.committed}, and were alike after step {books.checks.alike}", {})
        return self._return()

    def _return(self) -> Outbox:
        """All go to where the books are now."""
        self._unchecked, self.to_measure = None, []
        following, besides = self._turn()
        return [*self._answer_parked(following.get, to_step=self._books.committed), *besides]

    def _healed(self) -> Outbox:
        """They are compared once more."""
        self._unsound = set()
        lease = self._check()
        return self._answer_parked(lambda _: lease)

    # --- units -----------------------------------------------------------------------------------------------

    def _lease(self) -> tuple[Following, Outbox]:
        books = self._books
        first = books.committed + 1
        last = min(first + books.agreement.every - 1, books.last_step)
        level = self._level
        books.rebalance(level)
        dealt = [(step, self._placed(books.deal(level, step))) for step in range(first, last + 1)]
        unit, newcomers = books.new_unit(), self.newcomers
        self._broken = set()
        self._work = {
            replica: Work(
                unit,
                books.generation,
                [self._part(step, share[place]) for step, share in dealt],
                books.phase,
                peers=self.group,
                new=newcomers,
                skipped=books.skipped,
            )
            for place, replica in enumerate(self.group)
        }
        return dict(self._work), []

    @property
    def _level(self) -> list[int]:
        """Of those in the group, who has the state."""
        return [replica for replica in self.group if replica in self.present]

    def _placed(self, counts: dict[int, int]) -> list[Ranges]:
        """One share after the other, by place in the group; nothing for who is not level."""
        return shares.contiguous([counts.get(replica, 0) for replica in self.group])

    def _part(self, step: int, ranges: Ranges) -> Part:
        """In a round losses are means over a replica's own share: each takes its own step."""
        alone = self._books.agreement.unit == "round"
        return Part(step, ranges, ranges if alone else [[0, self._plan.size(step)]])

    def vote(self, member: Member, vote: Vote) -> Outbox:
        if self._roll is not None and vote.unit == self._roll.unit and member[0] in self._roll.of:
            return self._vote_of_nothing(member, vote, self._roll)
        work = self._work.get(member[0])
        if vote.unit <= self._books.units and (work is None or vote.unit < work.unit):
            return []  # of a unit that is void
        if work is None or vote.unit != work.unit:
            return [(member, Closed(f"unit {vote.unit} is not leased to {name(member)}"))]
        self._votes[member] = vote
        if len(self._votes) < len(self.group) * self._plan.ranks:
            return self._all_stuck()
        return self._decide()

    # --- verdicts --------------------------------------------------------------------------------------------

    def _decide(self) -> Outbox:
        books, unit = self._books, self._work[self.group[0]].unit
        told = self._told()
        alone = books.agreement.unit == "round"
        norms = [norm_of_mean(of_step, len(self.group)) if alone else norm_of_sum(of_step[: self._plan.ranks]) for _, of_step in told]
        decisions = [books.judge(step, books.loss(step, of_step), norm) for (step, of_step), norm in zip(told, norms, strict=True)]
        if books.failure:
            return [(member, Closed(books.failure)) for member in self._plan.members]
        due, slowest = Due(), slowest_of(self._votes)
        for (step, of_step), norm in zip(told, norms, strict=True):
            by_replica = {replica: _of(work, step).ranges for replica, work in self._work.items()}
            books.record_step(step, of_step, by_replica, norm, slowest)
            due |= books.due(step)
        self._observe()
        last = books.committed
        decision: Decision = "rollback" if "rollback" in decisions else self._of_unit(decisions[-1])
        due |= Due(check=bool(self._plan.check_every and self.newcomers))
        self.present = set(self.group)
        self._breaks = 0
        if decision == "rollback" and self._may_be_corrupted:
            decision, due = "skip", Due(check=True)
        elif decision == "rollback":
            books.roll_back_judged(last)
        return self._tell(unit, last, decision, norms[-1], told[-1][1], due)

    @property
    def _may_be_corrupted(self) -> bool:
        """A spike may be the doing of a replica that went wrong: they are compared before data is blamed, but for amid a round."""
        compares = self._plan.check_every is not None and len(self.group) > 1 and self._books.agreement.unit == "step"
        return compares and self._books.spikes.found is not None

    def _tell(self, unit: int, step: int, decision: Decision, grad_norm: float, told: list[Told], due: Due) -> Outbox:
        """The verdict of a unit for all, with what is due and the next leases."""
        books, plan, group = self._books, self._plan, self.group
        due = Due() if decision == "rollback" else due
        load = sum_of_loads(each.did for each in told) if decision == "commit" else []
        self.to_measure = [[0, plan.evaluation_size]] if due.evaluate else []
        resize = books.resize() if decision == "commit" else 0
        evaluation: dict[int, Ranges] = {}
        if due.check and len(group) > 1:
            self._unchecked, due = due, Due()
            following: Following = dict.fromkeys(group, self._check())
            besides: Outbox = []
        else:
            evaluation = self._deal_evaluation()
            self._saver = group[0] if due.save else self._saver
            following, besides = self._turn()
        position = books.position(step) if due.save else None
        to_step = books.committed if decision == "rollback" else None
        return [
            *(
                (
                    (replica, rank),
                    Verdict(
                        unit,
                        step,
                        decision,
                        grad_norm,
                        to_step,
                        evaluation.get(replica),
                        due.save,
                        position if replica == group[0] else None,
                        following[replica],
                        load,
                        bucket_bytes=resize,
                    ),
                )
                for replica in group
                for rank in range(plan.ranks)
            ),
            *besides,
        ]

    def _deal_evaluation(self) -> dict[int, Ranges]:
        """What is to be measured, by replica: `to_measure`, which is nothing then."""
        if not self.to_measure:
            return {}
        places = [place for first, end in self.to_measure for place in range(first, end)]
        dealt = self._placed(self._books.deal_evaluation(self._level, len(places)))
        self.to_measure = []
        evaluation = {
            replica: shares.merge([[places[index], places[index] + 1] for first, end in share for index in range(first, end)])
            for replica, share in zip(self.group, dealt, strict=True)
            if share
        }
        self._evaluating = {member: evaluation[member[0]] for member in self._ranks(evaluation)}
        return evaluation

    def _observe(self) -> None:
        """Of the unit, over all its steps."""
        told = [Told(member, vote.did[0], vote) for member, vote in self._votes.items()]
        self._books.observe(told, {replica: [span for part in work.parts for span in part.ranges] for replica, work in self._work.items()})

    def _of_unit(self, last: Decision) -> Decision:
        """In a round a replica leaves out its own step that was not finite; the round commits all the same."""
        return "commit" if self._books.agreement.unit == "round" else last

    def _told(self) -> list[tuple[int, list[Told]]]:
        """Of each step of the unit, what each rank said of it; of the unit's measures each step has its share."""
        steps = [part.step for part in self._work[self.group[0]].parts]
        votes = [(member, self._votes[member]) for member in sorted(self._votes)]
        return [(step, [Told(member, vote.did[index], vote, 1 / len(steps)) for member, vote in votes]) for index, step in enumerate(steps)]

    # --- messages --------------------------------------------------------------------------------------------

    def _ranks(self, replicas: Iterable[int]) -> set[Member]:
        return {(replica, rank) for replica in replicas for rank in range(self._plan.ranks)}

    def _to(self, replica: int, message: Message) -> Outbox:
        return [((replica, rank), message) for rank in range(self._plan.ranks)]


def _of(work: Work, step: int) -> Part:
    return next(part for part in work.parts if part.step == step)
