"""Promise 2, proved from a run's journal: each sample of each committed step was used exactly once, whatever happened to the run.

What a step's global batch holds is a pure function of (data, seed, step), so that a run is covered once each committed step is, and
committed steps are 1, 2, 3 ... without a gap:

    step 7    0: [0, 5)   2: [5, 8)        each position of the batch in one share, and in one alone

Steps that a rollback or a resume made void are no part of it; they are told beside.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from plait import events, spec
from plait.data.batches import batch_sizes, step_samples
from plait.data.skipping import Skipped
from plait.errors import CheckpointError
from plait.events import Event, Ranges, Step
from plait.ledger import journal
from plait.train.folder import read_run


@dataclass(frozen=True)
class Recovery:
    """Failures, and the first step that was committed after them. seconds: from the first of them to there; None where none came.

    lost: (replica, rank) of processes; void: steps that were computed again.
    """

    lost: list[tuple[int, int]]
    why: str
    step: int | None
    seconds: float | None
    void: int


@dataclass(frozen=True)
class Proof:
    """steps: committed; planned: None for a journal that never began. samples: sequences used. wrong: each fault, a line."""

    steps: int
    planned: int | None
    samples: int
    finished: bool
    generations: int
    resumed: int
    recoveries: list[Recovery]
    skipped: list[int]
    corrupted: int
    """times that replicas were not alike"""
    touched: Ranges
    """[first, last] steps that a replica which was corrupted may have touched, and that were not done again"""
    left_out: Ranges
    """samples of the run's order: those of spikes, and those that the run file names"""
    wrong: list[str]

    @property
    def ok(self) -> bool:
        return not self.wrong

    def as_dict(self) -> dict[str, Any]:
        return {"ok": self.ok, **asdict(self)}


def verify_run(folder: Path) -> Proof:
    """Of a run that has ended, or that goes on. Raises CheckpointError where there is none, or its journal cannot be read."""
    run = read_run(folder)
    path = folder / "events.jsonl"
    try:
        history = journal.read(path)
    except events.Unreadable as error:
        raise CheckpointError(f"{path}: a line is no event of this version: {error}") from None
    size, left_out = batch_sizes(run.train, run.data.sequence), _left_out(history, run)
    samples = step_samples(run.train, run.data.sequence, left_out)
    steps = events.committed(history)
    return Proof(
        steps=len(steps),
        planned=next((event.steps for event in reversed(history) if isinstance(event, events.Started)), None),
        samples=sum(size(step.step) for step in steps),
        finished=bool(history) and any(isinstance(event, events.Finished) for event in history),
        generations=len({step.generation for step in steps}),
        resumed=sum(isinstance(event, events.Resumed) for event in history),
        recoveries=list(_recoveries(history)),
        skipped=[step.step for step in steps if step.skipped],
        corrupted=len({event.step for event in history if isinstance(event, events.Corrupted)}),
        touched=_touched(history),
        left_out=left_out,
        wrong=[*_order(steps), *(fault for step in steps for fault in _faults(step, size(step.step), samples(step.step)))],
    )


def _order(steps: Sequence[Step]) -> Iterable[str]:
    """Committed steps are 1, 2, 3 ..."""
    for expected, step in enumerate(steps, 1):
        if step.step != expected:
            yield f"step {step.step} stands where step {expected} should"
            return


def _left_out(history: Sequence[Event], run: spec.Run) -> Ranges:
    """The last word on it holds for the whole run: what came before a gap is the same without."""
    spiked = [event.skipped for event in history if isinstance(event, events.Spiked)]
    return Skipped(spiked[-1] if spiked else run.data.skip or ()).ranges


def _faults(step: Step, size: int, samples: Ranges) -> Iterable[str]:
    """samples: of the run's order, those that the step had to take. Journals of earlier versions do not tell which it did."""
    yield from _cover(step, size)
    if step.samples and step.samples != samples:
        yield f"step {step.step}: samples {said(step.samples)} of the run were used, and {said(samples)} were to be"


def _cover(step: Step, size: int) -> Iterable[str]:
    """Each position of the batch is in one share."""
    used = sorted((first, end, replica) for replica, ranges in step.shares.items() for first, end in ranges)
    reached, by = 0, ""
    for first, end, replica in used:
        if first > reached:
            yield f"step {step.step}: positions {said([[reached, first]])} of {size} were used by none"
        elif first < reached:
            yield f"step {step.step}: positions {said([[first, min(end, reached)]])} were used by replica {by} and by replica {replica}"
        if end > reached:
            reached, by = end, replica
    if reached != size:
        missing = [[reached, size]] if reached < size else [[size, reached]]
        yield f"step {step.step}: positions {said(missing)} {'were used by none' if reached < size else 'are beyond its batch'} of {size}"


def _touched(history: Sequence[Event]) -> Ranges:
    """What a later rollback or resume made void is done again."""
    touched: Ranges = []
    for event in history:
        match event:
            case events.Corrupted(repaired="healed", since=since, step=step) if [since + 1, step] not in touched:
                touched.append([since + 1, step])
            case events.RolledBack(to_step=back) | events.Resumed(from_step=back):
                touched = [[first, min(last, back)] for first, last in touched if first <= back]
    return touched


def said(ranges: Ranges) -> str:
    return ", ".join(f"[{first}, {end})" for first, end in ranges)


def _recoveries(history: Sequence[Event]) -> Iterable[Recovery]:
    """Failures that follow one another without a committed step between are one."""
    lost: list[events.Lost] = []
    began, void, last, back = 0.0, 0, 0, ""
    for event in history:
        match event:
            case events.Lost():
                began = began if lost or back else event.time
                lost.append(event)
            case events.RolledBack(time, to_step, why):
                began, back = (began if lost or back else time), why
                void, last = void + max(0, last - to_step), to_step
            case events.Resumed(time, from_step):  # who started it again, and when, is not the run's doing
                began, void, last = time, void + max(0, last - from_step), from_step
            case Step():
                if lost or back:
                    yield _recovery(lost, back, event, event.time - began, void)
                    lost, void, back = [], 0, ""
                last = event.step
    if lost or back:
        yield _recovery(lost, back, None, None, void)


def _recovery(lost: list[events.Lost], back: str, step: Step | None, seconds: float | None, void: int) -> Recovery:
    why = lost[0].why if lost else back
    return Recovery([(each.replica, each.rank) for each in lost], why, step.step if step else None, seconds, void)
