"""What a ledger keeps whatever the strategy: how far the run is, what is due, and what counts.

Each committed step is recorded here and nowhere else.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from plait import events
from plait.events import Event, Ranges
from plait.ledger import shares
from plait.ledger.balance import Balance, Choice
from plait.ledger.checking import Checks
from plait.ledger.measures import Told, bubbles, measures_of, sum_of_loads
from plait.ledger.messages import Decision, Member
from plait.ledger.plan import Agreement, Plan
from plait.ledger.spikes import Spikes
from plait.ledger.stragglers import Found, Pace, Stragglers
from plait.ledger.tuning import Tuning

RECENT = 10  # steps over which a phase's condition looks back


@dataclass(frozen=True)
class Due:
    """check: replicas are compared before anything else."""

    save: bool = False
    evaluate: bool = False
    check: bool = False

    def __or__(self, other: Due) -> Due:
        return Due(self.save or other.save, self.evaluate or other.evaluate, self.check or other.check)


class Books:
    """`record` is told each event. position: of a checkpoint, from which the run goes on."""

    def __init__(self, plan: Plan, record: Callable[[Event], None], clock: Callable[[], float], position: dict[str, Any] | None) -> None:
        self.plan = plan
        self.clock = clock
        self.record = record
        self.generation = 1
        self._met = 0
        self.linked = False
        """whether the link between replicas has been measured"""
        self.units = 0
        self.stopping = False
        self.failure: str | None = None
        self.devices: dict[Member, str] = {}
        self.places: dict[Member, tuple[str, int]] = {}
        """host and pid"""
        self.checks = Checks(record, clock, self.places)
        self.tuning = Tuning(plan.bucket_bytes)
        self.balance = Balance(plan.balance, plan.capacity, plan.micro_batch, plan.grain)
        self._stragglers = Stragglers()
        self._waiting = 0.0
        """the share of the last unit in which the quickest replica waited for the slowest"""
        self._save_asked = False
        self._in_a_row = 0
        self._rolled_back_at: int | None = None
        self.spikes = Spikes(plan.spikes)
        self.skipped: Ranges = (position or {}).get("skipped", plan.skipped)
        """samples of the run's order that are left out; never fewer"""
        plan.leave_out(self.skipped)
        self.kept: dict[str, Any] = position or {"step": 0}
        """the position of the newest checkpoint that stands"""
        self._saving: dict[int, dict[str, Any]] = {}
        self.open: dict[str, Any] = {}
        self.take(self.kept)

    def take(self, position: dict[str, Any]) -> None:
        """Be where a checkpoint was."""
        self.committed: int = position["step"]
        self.checks.alike = self.committed
        self.phase: int = position.get("phase", 0)
        self.open = position.get("open", {})
        self.spikes.take(position.get("spikes", {}))
        self._recent: deque[tuple[float, float]] = deque((tuple(pair) for pair in position.get("recent", [])), RECENT)
        self._over_since: str | None = self._why_over()

    def position(self, step: int, open_pieces: dict[str, Any] | None = None) -> dict[str, Any]:
        """What a later ledger needs to go on from here; remembered until the checkpoint stands."""
        position: dict[str, Any] = {"step": self.committed}
        if len(self.plan.agreements) > 1:
            position |= {"phase": self.phase, "recent": [list(pair) for pair in self._recent]}
        if self.skipped:
            position["skipped"] = self.skipped
        if usual := self.spikes.position():
            position["spikes"] = usual
        if open_pieces:
            position["open"] = open_pieces
        self._saving[step] = position
        return position

    def keep(self, step: int) -> None:
        """The checkpoint of a step stands."""
        if (position := self._saving.pop(step, None)) is not None and position["step"] >= self.kept["step"]:
            self.kept = position
            self._saving = {later: each for later, each in self._saving.items() if later > step}

    def drop(self, step: int) -> None:
        """The checkpoint of a step could not be written."""
        self._saving.pop(step, None)

    @property
    def saving(self) -> bool:
        """Whether a checkpoint was asked for that does not stand yet."""
        return bool(self._saving)

    @property
    def unsaved(self) -> dict[str, Any] | None:
        """Where the run is, where a checkpoint of that was asked for and does not stand yet."""
        return self._saving.get(self.committed)

    def new_unit(self) -> int:
        self.units += 1
        return self.units

    def new_group(self) -> None:
        """Replicas are about to meet: `generation` names a group that nobody has met in."""
        self.generation = max(self.generation, self._met + 1)
        self._met = self.generation

    # --- phases ----------------------------------------------------------------------------------------------

    @property
    def agreement(self) -> Agreement:
        return self.plan.agreements[self.phase]

    @property
    def last_step(self) -> int:
        """The last step of the phase, as far as that is known."""
        return min(self.plan.steps, self.agreement.until or self.plan.steps)

    @property
    def over(self) -> bool:
        """No more work is to be handed out."""
        return self.stopping or self.committed >= self.plan.steps

    def turn(self) -> bool:
        """Enter the next phase, and the next but one should that be over too, where the steps so far say so."""
        turned = False
        while self.turning:
            self.phase += 1
            self.record(events.Switched(self.clock(), self.committed, self.phase, self.agreement.mode, self._over_since or ""))
            self._recent.clear()
            self._over_since = self._why_over()
            turned = True
        return turned

    @property
    def turning(self) -> bool:
        """Whether the phase is over; once it is, it stays so."""
        return self.committed < self.plan.steps and self._over_since is not None

    def _why_over(self) -> str | None:
        ends = self.agreement
        if ends.until is not None and self.committed >= ends.until:
            return f"step {ends.until} was the last of the phase"
        if len(self._recent) < RECENT:
            return None
        loss, waiting = (math.fsum(column) / RECENT for column in zip(*self._recent, strict=True))
        if ends.until_loss is not None and loss < ends.until_loss:
            return f"the mean loss of {RECENT} steps, {loss:.4g}, is below {ends.until_loss:g}"
        if ends.until_waiting is not None and waiting > ends.until_waiting:
            return f"replicas waited {waiting:.0%} of the last {RECENT} steps, more than {ends.until_waiting:.0%}"
        return None

    # --- verdicts --------------------------------------------------------------------------------------------

    def judge(self, step: int, loss: float, grad_norm: float) -> Decision:
        """What becomes of a unit; sets `failure` where rolling back has been of no use."""
        if math.isfinite(loss) and math.isfinite(grad_norm):
            self._in_a_row = 0
            return self._judge_finite(step, loss, grad_norm)
        self._in_a_row += 1
        if self._in_a_row < self.plan.nonfinite_limit:
            return "skip"
        if self._rolled_back_at is not None and step <= self._rolled_back_at:
            self.failure = (
                f"{self._in_a_row} steps in a row were not finite up to step {step}, and again after rolling back to "
                f"step {self.kept['step']}; lower train.optimizer.lr, lengthen the warm-up, or use fp32"
            )
        return "rollback"

    def _judge_finite(self, step: int, loss: float, grad_norm: float) -> Decision:
        spiked = self.agreement.unit != "piece" and self.spikes.judge(step, loss=loss, grad_norm=grad_norm)
        if not spiked:
            return "commit"
        if self.spikes.found is not None and self.spikes.found.step == step and self.spikes.too_often(self.kept["step"]):
            self.failure = (
                f"{self.spikes.found}, and the run has returned to step {self.kept['step']} {self.plan.spikes.limit} times for spikes; "
                "lower train.optimizer.lr, lengthen the warm-up, or raise train.spike, train.spike_norm or train.spike_limit"
            )
        return "rollback"

    def roll_back_judged(self, step: int, lost: dict[str, Ranges] | None = None) -> None:
        """As `judge` said: after a spike its data is left out from now on."""
        if (spike := self.spikes.taken()) is not None:
            first = self.spikes.first_skipped(spike, self.kept["step"])
            spans = [span for number in range(first, spike.step + 1) for span in self.plan.samples(number)]
            self.skipped = shares.merge([*self.skipped, *spans])
            self.plan.leave_out(self.skipped)
            told = spike.what, spike.value, spike.usual, spike.bound
            self.record(events.Spiked(self.clock(), spike.step, *told, self.skipped))
            why = f"{spike}; the data of steps {first} to {spike.step} is left out"
        else:
            why = f"{self._in_a_row} steps in a row were not finite, the last of them step {step}"
            self._rolled_back_at, self._in_a_row = step, 0
        self.roll_back(why, lost or {})

    def roll_back(self, why: str, lost: dict[str, Ranges]) -> None:
        """Everything since the newest checkpoint is void, and done again."""
        self.record(events.RolledBack(self.clock(), self.kept["step"], why, lost))
        self._saving.clear()  # what is still being written is of steps that are void, and may be written again
        self.take(self.kept)

    def due(self, step: int, saves_on_stop: bool = True) -> Due:
        """What is to be done after a step."""
        plan, last = self.plan, step == self.plan.steps
        save = self._save_planned(step) or (self.stopping and saves_on_stop)
        evaluate = bool(plan.evaluate_every and plan.evaluation_size and (last or step % plan.evaluate_every == 0))
        self._save_asked = False
        every = plan.check_every
        return Due(save, evaluate, check=bool(every and (save or step % every == 0)))

    def saves(self, step: int) -> bool:
        """Whether a checkpoint follows a step, as far as is known while it is computed."""
        return self._save_planned(step) or self.stopping

    def _save_planned(self, step: int) -> bool:
        every = self.plan.save_every
        return self._save_asked or step == self.plan.steps or bool(every and step % every == 0)

    def resize(self) -> int:
        """A better size for buckets than the present one, or 0."""
        if (found := self.tuning.better()) is None:
            return 0
        size, why = found
        self.record(events.Retuned(self.clock(), self.committed, round(size / 2**20, 3), why))
        return size

    def ask(self, request: str) -> None:
        if request == "stop":
            self.stopping = True
        else:
            self._save_asked = True

    # --- the journal -----------------------------------------------------------------------------------------

    def record_step(
        self,
        step: int,
        told: Sequence[Told],
        by_replica: dict[int, Ranges],
        grad_norm: float,
        slowest: int | None = None,
        staleness: Iterable[int] = (),
        skipped: bool | None = None,
    ) -> None:
        """`step` is committed: `told` by each rank for each of its parts of it. skipped: None where loss and grad_norm tell."""
        tokens, loss = self.plan.targets(step), self.loss(step, told)
        skipped = not (math.isfinite(loss) and math.isfinite(grad_norm)) if skipped is None else skipped
        of_replica = {str(replica): measures for replica, measures in measures_of(told).items()}
        one_vote_each = len(told) == len({each.member for each in told})
        seconds = max(measures.seconds for measures in of_replica.values())
        waited = {replica: measures.waited for replica, measures in of_replica.items()}
        self.tuning.observe(max(measures.communicating for measures in of_replica.values()))
        rate = tokens / seconds if seconds else 0.0
        self._recent.append((loss, max(waited.values()) / seconds if seconds else 0.0))
        self.record(
            events.Step(
                self.clock(),
                step,
                self.generation,
                loss,
                grad_norm,
                max(each.did.lr for each in told),
                tokens,
                seconds,
                rate,
                self._mfu(rate),
                {str(replica): ranges for replica, ranges in sorted(by_replica.items())},
                skipped,
                {replica: measures.memory for replica, measures in of_replica.items()},
                waited,
                sum_of_loads(each.did for each in told),
                bubbles(told) if one_vote_each else {},
                self.agreement.mode,
                self.phase,
                {replica: measures.sent for replica, measures in of_replica.items()},
                {replica: measures.communicating for replica, measures in of_replica.items()},
                None if slowest is None else str(slowest),
                {str(late): count for late, count in sorted(Counter(staleness).items())},
                {replica: measures.computed for replica, measures in of_replica.items()},
                {replica: measures.data for replica, measures in of_replica.items()},
                self.plan.samples(step),
            )
        )
        self.committed = step
        self._over_since = self._over_since or self._why_over()

    def observe(self, told: Sequence[Told], by_replica: Mapping[int, Ranges]) -> None:
        """How fast replicas were in a unit that is committed, or in a step of pieces."""
        of_replica, served = measures_of(told), self.agreement.served
        paces = {
            replica: Pace(
                sum(end - first for first, end in by_replica.get(replica, [])),
                measures.computed,
                measures.data,
                measures.communicating if served else 0.0,
                measures.slowest,
            )
            for replica, measures in of_replica.items()
        }
        longest = max(measures.seconds for measures in of_replica.values())
        waits = [measures.waited for measures in of_replica.values()]
        self._waiting = (max(waits) - min(waits)) / longest if longest else 0.0
        for replica, pace in paces.items():
            self.balance.observe(replica, pace.samples, pace.computing + pace.data)
        for found in self._stragglers.observe(paces, longest):
            self._tell(found, paces[found.replica].samples / sum(pace.samples for pace in paces.values()))

    def forget(self, replica: int) -> None:
        """Its process is gone."""
        self.balance.forget(replica)
        self._stragglers.forget(replica)

    def deal(self, replicas: Sequence[int], step: int) -> dict[int, int]:
        """How many sequences of a step each of these gets. In a round shares shape the curve, and are as stated."""
        size, alone = self.plan.size(step), self.agreement.unit == "round"
        counts = self.balance.counts_as_stated(replicas, size) if alone else self.balance.counts(replicas, size)
        return dict(zip(replicas, counts, strict=True))

    def deal_evaluation(self, replicas: Sequence[int], size: int) -> dict[int, int]:
        """How many of so many validation sequences each of these measures."""
        return dict(zip(replicas, shares.counts(size, self.balance.capacity(replicas)), strict=True))

    def rebalance(self, replicas: Sequence[int]) -> None:
        """Deal the next step in another way, where that is worth it and does not shape the curve."""
        if self.agreement.unit != "step":
            return
        self.record_choice(self.balance.choose(replicas, self.plan.size(self.committed + 1), self._waiting))

    def record_choice(self, choice: Choice | None) -> None:
        """Of how the next steps are dealt, or cut in pieces; None where nothing has changed."""
        if choice is not None:
            by_replica = {str(replica): share for replica, share in choice.shares.items()}
            self.record(events.Rebalanced(self.clock(), self.committed, choice.policy, by_replica, choice.piece, choice.why))

    def _tell(self, found: Found, share: float) -> None:
        host, pid = self.places.get((found.replica, found.rank), ("", 0))
        self.record(
            events.Straggler(
                self.clock(),
                self.committed,
                found.replica,
                found.rank,
                host,
                pid,
                found.phase,
                found.seconds,
                found.usual,
                found.slower,
                "" if found.recovered else self._action(share),
                found.recovered,
            )
        )

    def _action(self, share: float) -> str:
        """What is done about a replica that is slow."""
        if self.agreement.served:
            sized = self.agreement.unit == "step" and self.balance.policy in ("dynamic", "auto")
            return "it takes fewer pieces" + (", and smaller ones" if sized else "")
        if self.agreement.unit == "round":
            return f"nothing: the shares of {self.agreement.mode} stay"
        return self.balance.action(share)

    def loss(self, step: int, told: Iterable[Told]) -> float:
        """The mean over the target tokens of the global batch."""
        return math.fsum(each.did.loss_sum for each in told) / self.plan.targets(step)

    def _mfu(self, tokens_per_s: float) -> float | None:
        peaks = [self.plan.peak_flops(device) for device in self.devices.values()]
        known = [peak for peak in peaks if peak is not None]
        return tokens_per_s * self.plan.flops_per_token / sum(known) if known and len(known) == len(peaks) else None
