"""The log that a person reads: plain lines, and on a terminal colours and a bar with the time left.

    step 2690  loss 3.7620  grad_norm 0.2823  lr 3.0e-04  tok/s 2,059  mfu 12.1%  mem 59.2GiB

Speed is the mean over the steps since the last line; mfu is left out where the peak of the device is unknown, mem where it is not told.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TextIO

from plait import events, spec
from plait.events import Event, Step

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_RANKS_SHOWN = 16
_DIFFERING_SHOWN = 3
_STYLES: dict[type[Event], str] = {
    events.Evaluated: "cyan",
    events.Saved: "dim",
    events.SaveFailed: "bold red",
    events.Copied: "dim",
    events.CopyFailed: "bold red",
    events.Damaged: "bold red",
    events.Fetched: "green",
    events.Lost: "bold red",
    events.Hung: "bold red",
    events.Corrupted: "bold red",
    events.Spiked: "yellow",
    events.Straggler: "yellow",
    events.Regrouped: "green",
    events.Waiting: "yellow",
    events.LowDisk: "bold yellow",
    events.RolledBack: "yellow",
    events.Resumed: "green",
    events.Stopped: "yellow",
    events.Failed: "bold red",
    events.Finished: "green",
}


class Console:
    """Writes a line each `log_every` steps, the first and the last always, and one for whatever else happens."""

    def __init__(self, log_every: int, stream: TextIO | None = None) -> None:
        self._every = max(log_every, 1)
        stream = stream or sys.stdout
        self._screen: _Plain | _Terminal = _Terminal(stream) if stream.isatty() else _Plain(stream)
        self._since: list[Step] = []  # steps that no line has told of yet
        self._begun = False

    def on(self, event: Event) -> None:
        if isinstance(event, Step):
            self._step(event)
            return
        if isinstance(event, events.Started):
            self._screen.expect(event.steps)
        text = line(event)
        if text is not None:
            self._flush()
            self._screen.line(text, _STYLES.get(type(event), ""))

    def close(self) -> None:
        self._flush()
        self._screen.close()

    def _step(self, step: Step) -> None:
        self._screen.advance(step.step)
        if step.skipped:
            self._screen.line(_skipped(step), "yellow")
            return
        self._since.append(step)
        if not self._begun or step.step % self._every == 0:
            self._flush()
        self._begun = True

    def _flush(self) -> None:
        """The line of the newest step that has none yet."""
        since, self._since = self._since, []
        if since:
            self._screen.line(step_line(since), "")


def line(event: Event) -> str | None:
    """What the log says of an event; None where it says nothing. A step that counts is told by `step_line`."""
    if isinstance(event, Step):
        return _skipped(event) if event.skipped else None
    tell = _LINES.get(type(event))
    return None if tell is None else tell(event)


def step_line(since: list[Step]) -> str:
    """The log line of the last of these steps; speed and mfu are means over all of them, mem the most of any."""
    last = since[-1]
    seconds = sum(step.seconds for step in since)
    parts = [f"step {last.step}", f"loss {_number(last.loss, '.4f')}", f"grad_norm {_number(last.grad_norm, '.4f')}", f"lr {last.lr:.1e}"]
    if seconds > 0:
        parts.append(f"tok/s {sum(step.tokens for step in since) / seconds:,.0f}")
    known = [(step.mfu, step.seconds) for step in since if step.mfu is not None]
    if known and sum(length for _, length in known) > 0:
        parts.append(f"mfu {sum(mfu * length for mfu, length in known) / sum(length for _, length in known):.1%}")
    memory = max((most for step in since for most in step.memory.values()), default=0)
    if memory:
        parts.append(f"mem {memory / 2**30:.1f}GiB")
    return "  ".join(parts)


class _Plain:
    """Lines for a file, a pipe or a job's log."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def expect(self, steps: int) -> None:
        """No bar here."""

    def advance(self, step: int) -> None:
        """No bar here."""

    def line(self, text: str, style: str) -> None:
        print(text, file=self._stream, flush=True)

    def close(self) -> None:
        self._stream.flush()


class _Terminal:
    """Lines above a bar. rich is imported when there is something to show, so that starting does not wait for it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def expect(self, steps: int) -> None:
        progress = self._started()
        if self._task is not None:
            progress.remove_task(self._task)
        self._task = progress.add_task("training", total=steps)

    def advance(self, step: int) -> None:
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=step)

    def line(self, text: str, style: str) -> None:
        from rich.text import Text

        self._started().console.print(Text(text, style=style), highlight=not style, soft_wrap=True)

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()

    def _started(self) -> Progress:
        if self._progress is None:
            from rich import progress
            from rich.console import Console as Screen

            columns = (progress.BarColumn(), progress.MofNCompleteColumn(), progress.TextColumn("steps"), progress.TimeRemainingColumn())
            self._progress = progress.Progress(*columns, console=Screen(file=self._stream), refresh_per_second=2, transient=True)
            self._progress.start()
        return self._progress


def _number(value: float | None, style: str) -> str:
    """Events read back from a file have null where a number was not finite."""
    return "nan" if value is None else format(value, style)


def _skipped(step: Step) -> str:
    return f"step {step.step}  skipped: its loss or gradient is not finite; no parameter changed"


def _started(event: events.Started) -> str:
    counted = f"{event.parameters:,} parameters, {event.steps} steps"
    return f"plait {event.version}: {counted}, {_replicas(event)} on {event.device}{_places(event.layout)}"


def _replicas(event: events.Started | events.Resumed) -> str:
    replicas = "1 replica" if event.replicas == 1 else f"{event.replicas} replicas"
    return f"{replicas} of {' x '.join(f'{axis} {size}' for axis, size in event.layout.items())}" if event.layout else replicas


def _places(layout: dict[str, int]) -> str:
    """A line for each rank, of replicas that are not too large to read."""
    ranks = math.prod(layout.values())
    if ranks == 1 or ranks > _RANKS_SHOWN:
        return ""
    places = [spec.place_of(rank, layout) for rank in range(ranks)]
    return "".join(f"\n  rank {rank}  {'  '.join(f'{axis} {at}' for axis, at in place.items())}" for rank, place in enumerate(places))


def _evaluated(event: events.Evaluated) -> str:
    told = [f"loss {_number(event.loss, '.4f')}"]
    told += [f"perplexity {_number(event.perplexity, ',.2f')}"] if event.f1 is None and event.accuracy is not None else []
    told += [f"accuracy {_number(event.accuracy, '.1%')}"] if event.accuracy is not None else []
    told += [f"macro F1 {_number(event.f1, '.1%')}"] if event.f1 is not None else []
    told += [f"{name} {_number(score, '.1f')}" for name, score in event.scores.items()]
    return f"step {event.step}  {event.split}: {'  '.join(told)}"


def _member(event: events.Lost | events.Corrupted) -> str:
    of_server = event.replica is not None and event.replica < 0
    return f"parameter server {event.rank}" if of_server else f"replica {event.replica} (rank {event.rank})"


def _regrouped(event: events.Regrouped) -> str:
    members = " ".join(map(str, event.replicas))
    new = f"; {' '.join(map(str, event.new))} takes the state from the others" if event.new else ""
    return f"step {event.step}  going on with replica{'s' if len(event.replicas) > 1 else ''} {members}{new}"


def _rebalanced(event: events.Rebalanced) -> str:
    shares = ", ".join(f"replica {replica} {share:.0%}" for replica, share in event.shares.items())
    return f"from step {event.step + 1} on shares are {shares}: {event.why}"


def _corrupted(event: events.Corrupted) -> str:
    """What differs is a long list where much does."""
    shown = ", ".join(event.differs[:_DIFFERING_SHOWN])
    more = len(event.differs) - _DIFFERING_SHOWN
    what = f"{shown} and {more} more" if more > 0 else shown
    who = "replicas differ from one another" if event.replica is None else f"{_member(event)} on {event.host} differs from the others"
    touched = "" if event.repaired == "rolled back" else f"; steps {event.since + 1} to {event.step} are touched by it"
    return f"step {event.step}  CORRUPTED: {who} in {what}; all were alike after step {event.since}; {event.repaired}{touched}"


def _spiked(event: events.Spiked) -> str:
    value, usual, bound = (_number(each, ".4f") for each in (event.value, event.usual, event.bound))
    count = sum(end - first for first, end in event.skipped)
    return f"step {event.step}  {event.what} {value} is beyond {bound}, usual is {usual}; {count} samples of the run are left out"


def _straggler(event: events.Straggler) -> str:
    who = f"replica {event.replica} (rank {event.rank}) on {event.host}, pid {event.pid},"
    times = f"{1e3 * event.seconds:.3g} ms a sample, {1e3 * event.usual:.3g} of the others"
    if event.recovered:
        return f"step {event.step}  {who} is no longer slow in {event.phase}: {times}"
    return f"step {event.step}  {who} is slow in {event.phase}: {times}, {_number(event.slower, '.1f')} times as long; {event.action}"


def _low_disk(event: events.LowDisk) -> str:
    free = f"low disk: {event.free / 2**20:,.0f} MiB are free for {event.folder}"
    if event.free < event.checkpoint:
        return f"{free}, and the next checkpoint takes {event.checkpoint / 2**20:,.0f} MiB"
    return f"{free}, less than {event.wanted / 2**20:,.0f} MiB"


def _failed(event: events.Failed) -> str:
    return f"failed after step {event.step}: {_last_line(event.why)}"


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1]


def _saved(event: events.Saved) -> str:
    held = f"training held up {event.stalled:.2f} s"
    return f"step {event.step}  saved {event.path} ({event.bytes / 2**20:,.1f} MiB in {event.seconds:.1f} s, {held})"


_LINES: dict[type[Event], Callable[[Any], str]] = {
    events.Started: _started,
    events.Resumed: lambda event: f"resumed from step {event.from_step}, {_replicas(event)}{_places(event.layout)}",
    events.Evaluated: _evaluated,
    events.Saved: _saved,
    events.SaveFailed: lambda event: f"step {event.step}  NOT saved: {event.why}; the last good checkpoint stays, training goes on",
    events.Copied: lambda event: f"step {event.step}  copied to {event.url} ({event.bytes / 2**20:,.1f} MiB in {event.seconds:.1f} s)",
    events.CopyFailed: lambda event: f"step {event.step}  NOT copied: {event.why}",
    events.Damaged: lambda event: f"step {event.step}  DAMAGED, passed over: {event.why}",
    events.Fetched: lambda event: f"step {event.step}  fetched from {event.url} ({event.bytes / 2**20:,.1f} MiB in {event.seconds:.1f} s)",
    events.RolledBack: lambda event: f"rolled back to step {event.to_step}: {event.why}",
    events.Switched: lambda event: f"from step {event.step + 1} on: {event.sync}, since {event.why}",
    events.Retuned: lambda event: f"buckets of {event.bucket_mib:g} MiB, for {event.why}",
    events.Lost: lambda event: f"lost {_member(event)}: {_last_line(event.why)}",
    events.Rebalanced: _rebalanced,
    events.Hung: lambda event: (
        f"replica {event.replica} (rank {event.rank}) on {event.host}, pid {event.pid}, hangs: {event.seconds:.1f} s of step {event.step} "
        f"in which it {event.doing}; {event.stack}"
    ),
    events.Corrupted: _corrupted,
    events.Spiked: _spiked,
    events.Straggler: _straggler,
    events.Regrouped: _regrouped,
    events.Waiting: lambda event: f"waiting: {event.replicas} of the {event.fewest} replicas that the run needs are here",
    events.Stopped: lambda event: f"stopped after step {event.step}: {event.why}; run the same command again to resume",
    events.LowDisk: _low_disk,
    events.Failed: _failed,
    events.Finished: lambda event: f"finished after step {event.step}",
}
