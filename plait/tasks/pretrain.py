"""Pre-training: from a run to a trained model in a folder, in four moves: prepare, claim, launch, tell."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plait import events, spec
from plait.cluster import environment, local, resources
from plait.cluster.config import Site
from plait.cluster.copier import Copier
from plait.cluster.environment import World
from plait.cluster.nursery import Nursery
from plait.cluster.plans import plan_of
from plait.cluster.status import Status
from plait.data.batches import Batches
from plait.data.prepare import Progress
from plait.data.prepare import prepare as prepare_data
from plait.data.scoring import check_installed
from plait.data.tokens import Prepared
from plait.errors import DataError, Interrupted, PlaitError, RunFileError, StorageError, StorageFailed, UserError, WorkerFailed
from plait.ledger import journal
from plait.ledger.plan import Plan
from plait.ledger.state import Ledger
from plait.plan import auto, counts
from plait.store import is_url
from plait.train import manifest
from plait.train.base import beside, settle, told_of_head
from plait.train.folder import Folder, check_owner
from plait.train.home import Home
from plait.train.restore import restore
from plait.watch.disk import DiskWatch
from plait.watch.listener import Listener, build_listeners, check_alerts
from plait.watch.record import Record

if TYPE_CHECKING:
    from plait.cluster.meeting import Meeting

STATE_BYTES = {"adamw": 3, "adam": 3, "muon": 3, "sgd": 2}
"""Values kept for each parameter, itself included, by optimizer."""


@dataclass(frozen=True)
class Result:
    """How a training went. evaluated: the last evaluation, if there was one."""

    folder: Path
    step: int
    loss: float | None
    evaluated: events.Evaluated | None


def prepare(run: spec.Run, listener: Callable[[Progress], None] | None = None) -> Prepared:
    """Token files for the run's corpus: found by fingerprint, or made. Raises DataError."""
    run = run if run.settled else settle(run)
    prepared = prepare_data(run.data, listener=listener) if listener else prepare_data(run.data)
    if run.model.rows(prepared.vocabulary) < prepared.vocabulary:
        least = f"write {prepared.vocabulary} or more, or leave it out"
        raise RunFileError(f"model.vocabulary = {run.model.vocabulary}: the tokenizer has {prepared.vocabulary} tokens; {least}")
    for split in _splits(run):
        prepared.split(split, run.data.sequence)
    return prepared


def train(
    run: spec.Run,
    out: str | Path = "runs/run",
    *,
    listeners: Iterable[Listener] = (),
    preparing: Callable[[Progress], None] | None = None,
    nursery: Nursery | None = None,
    quiet: bool = False,
    faults: Sequence[dict[str, Any]] = (),
) -> Result:
    """Train to the run's duration; what `out` already holds of this run is resumed.

    listeners are told of each event, besides those of [watch]. nursery: a warm one to fork workers from, kept open. quiet: no log.
    faults: failures on purpose, plait.cluster.faults.Fault as plain values.
    Raises UserError before anything starts, Interrupted when stopped by a signal, WorkerFailed.
    """
    if world := environment.read():
        return _train_under(world, run, Path(out), listeners, preparing)
    if run.cluster.launcher == "environment":
        raise RunFileError(
            'cluster.launcher = "environment", but no launcher started this process; use torchrun, srun or mpirun, or "local"'
        )
    _check(run)
    run = settle(run, Path(out))
    prepared = prepare(run, preparing)
    run = _laid_out(_labelled(run, prepared), prepared, None, quiet)
    with Folder(Path(out)) as folder, ExitStack() as stack:
        started = Start(run, folder, prepared, elastic=True)
        if started.done:
            started.catch_up()
            return _result(started.folder.path)
        status = Status(folder.path)
        record = stack.enter_context(started.record([status, *listeners], quiet))
        stack.enter_context(started.disk_watch(record))
        stack.enter_context(started.copier(record))
        nursery = nursery or stack.enter_context(Nursery())
        ledger = started.ledger(record)
        if not quiet:
            _say(run, started, None)
        local.launch(replace(started.site, faults=tuple(faults)), ledger, nursery, status)
        return started.conclude(ledger)


def _train_under(
    world: World, run: spec.Run, out: Path, listeners: Iterable[Listener], preparing: Callable[[Progress], None] | None
) -> Result:
    """Train as one of the processes that torchrun, srun or mpirun started: rank 0 leads, the others follow."""
    _check_world(world, run)
    from plait.cluster.meeting import Meeting, follow, lead  # torch, which the launching parent elsewhere does without

    meeting = Meeting(world)
    if world.rank:
        heard = meeting.hear()
        if "config" in heard:
            follow(meeting, heard)
        _raise_outcome(meeting.part())
        return _result(out)
    outcome = 1
    try:
        _check(run)
        run = settle(run, out)
        prepared = prepare(run, preparing)
        run = _laid_out(_labelled(run, prepared), prepared, world)
        with Folder(out) as folder:
            started = Start(run, folder, prepared)
            if started.done:
                meeting.announce({})
                outcome = 0
                meeting.tell(outcome)
                started.catch_up()
                return _result(started.folder.path)
            status = Status(folder.path)
            with started.record([status, *listeners]) as record, started.disk_watch(record), started.copier(record), _telling(meeting):
                ledger = started.ledger(record)
                _say(run, started, world)
                lead(meeting, started.site, ledger, status)
                result = started.conclude(ledger)
            outcome = 0
            return result
    except BaseException as error:
        outcome = _exit_code(error)
        meeting.announce({})
        raise
    finally:
        meeting.part(outcome)


@contextmanager
def _telling(meeting: Meeting) -> Iterator[None]:
    """The others are told how the run ended before listeners are closed, which may take its time."""
    outcome = 1
    try:
        yield
        outcome = 0
    except BaseException as error:
        outcome = _exit_code(error)
        raise
    finally:
        meeting.tell(outcome)


def _exit_code(error: BaseException) -> int:
    return error.exit_code if isinstance(error, PlaitError) else 1


def _say(run: spec.Run, started: Start, world: World | None) -> None:
    """What one should know before the first step."""
    for line in filter(None, (*map(str, started.rows), told_of_head(run), _guarantee(started.plan, world))):
        print(line, flush=True)


def _guarantee(plan: Plan, world: World | None) -> str:
    """What becomes of the run when a worker fails."""
    if world is not None:
        started = f"{world.launcher} started the workers, and nobody replaces them"
        return f"{started}: a failure ends the run, and the next one goes on from its last checkpoint"
    if plan.replicas == 1:
        return "a worker that fails is replaced, and goes on from the last checkpoint"
    fewest = f", {plan.fewest} are needed" if plan.fewest > 1 else ""
    return f"a replica that fails is replaced while the others go on{fewest}; should all fail at once, they go on from the last checkpoint"


def _labelled(run: spec.Run, prepared: Prepared) -> spec.Run:
    """The run with the labels that its rows bear, so that its folder says what its numbers mean."""
    return run.model_copy(update={"data": run.data.model_copy(update={"objective": prepared.objective()})})


def _laid_out(run: spec.Run, prepared: Prepared, world: World | None, quiet: bool = False) -> spec.Run:
    """The run with its layout chosen, where that was left to plait."""
    if not run.layout.auto:
        return run
    found = resources.here(run.cluster, world)
    choice = auto.choose(run, run.model.rows(prepared.vocabulary), found.workers, found.memory)
    if not quiet:
        print(choice.why, flush=True)
    return run.model_copy(update={"layout": choice.layout})


def _check_world(world: World, run: spec.Run) -> None:
    layout, servers = run.layout, run.sync.processes
    if layout.workers + servers != world.size and not layout.auto:
        wanted = f"layout.replicas = {layout.replicas}" + (f" of {layout.ranks} ranks each" if layout.ranks > 1 else "")
        wanted += f" and sync.servers = {servers}" if servers else ""
        raise RunFileError(f"{wanted}, but {world.launcher} started {world.size} processes; make them equal")


def _raise_outcome(exit_code: int) -> None:
    """Rank 0 has shown the reason; the others only end alike."""
    if exit_code == Interrupted.exit_code:
        raise Interrupted("")
    if exit_code == UserError.exit_code:
        raise UserError("")
    if exit_code:
        raise WorkerFailed("")


class Start:
    """What a run begins from, once its folder is claimed. Raises UserError where it cannot begin."""

    def __init__(self, run: spec.Run, folder: Folder, prepared: Prepared, elastic: bool = False) -> None:
        self.run = run
        self.folder = folder
        self._prepared = prepared
        batches = Batches(prepared.split("train", run.data.sequence), run.train, prepared.fingerprint, run.data.skip)
        self.plan: Plan = plan_of(run, prepared, batches, elastic)
        self.rows = batches.filling
        self._log_every = batches.steps_of(run.train.log_every)
        home = _second_home(run, folder, prepared)
        folder.claim(run, _facts(run, prepared))
        manifest.clear_leftovers(folder.checkpoints)
        _check_space(run, folder.path, prepared)
        shutil.copy(prepared.tokenizer_file, folder.path)
        if prepared.template_file is not None:
            shutil.copy(prepared.template_file, folder.path)
        folder.keep(beside(run))
        _bring_journal(folder, home)
        history = journal.read(folder.journal)
        found = restore(folder.checkpoints, home, history)
        self._found, resume = found.told, found.checkpoint
        self.position = _position(resume, history)
        self.site = Site(run.resolved(), folder.path.resolve(), prepared.folder.resolve(), resume.resolve() if resume else None)

    @property
    def done(self) -> bool:
        return self.position is not None and self.position["step"] >= self.plan.steps

    def record(self, others: Iterable[Listener], quiet: bool = False) -> Record:
        """Tells the console, unless `quiet`, those of [watch] and [alerts], and `others`."""
        listeners = build_listeners(self.run.watch, self.folder.path, self.run, self._log_every, quiet)
        record = Record(self.folder.journal, [*listeners, *others])
        for event in self._found:
            record(event)
        return record

    def catch_up(self) -> None:
        """Of a run that is done: what could not be copied when it ended."""
        if self.run.checkpoint.copy_to is not None:
            with self.record([], quiet=False) as record, self.copier(record):
                pass

    def disk_watch(self, record: Record) -> DiskWatch:
        """Of the disks that the run and its data are kept on."""
        folders = self.folder.path.resolve(), [self._prepared.folder.resolve()]
        watch = DiskWatch(record, *folders, self.run.alerts.low_disk_mib << 20, _checkpoint_bytes(self.run, self._prepared))
        record.add(watch)
        return watch

    def copier(self, record: Record) -> Copier | nullcontext[None]:
        """Has checkpoints copied to the second home, where there is one."""
        if self.run.checkpoint.copy_to is None:
            return nullcontext()
        copier = Copier(record, self.folder.checkpoints, self.run.checkpoint)
        record.add(copier)
        return copier

    def ledger(self, record: Record) -> Ledger:
        return Ledger(self.plan, record, time.time, self.position)

    def conclude(self, ledger: Ledger) -> Result:
        """The result of a run that has ended, or the error that says how it ended instead."""
        if ledger.failure is not None:
            raise UserError(ledger.failure) if ledger.mistaken else WorkerFailed(ledger.failure)
        if ledger.committed < self.plan.steps:
            raise Interrupted(f"stopped after step {ledger.committed} of {self.plan.steps}; run the same command again to resume")
        return _result(self.folder.path)


def _position(resume: Path | None, history: Sequence[events.Event]) -> dict[str, Any] | None:
    """Where the run goes on. What it has left out since the checkpoint stays out. Steps that were journaled before any checkpoint stood are
    void, and the journal shall say so."""
    spiked = [event for event in history if isinstance(event, events.Spiked)]
    position: dict[str, Any] | None = manifest.about(resume)["position"] if resume else None
    if position is None and (spiked or events.committed(history)):
        position = {"step": 0}
    return position if position is None or not spiked else {**position, "skipped": spiked[-1].skipped}


def _result(folder: Path) -> Result:
    """What the journal says of a run that has ended."""
    history = journal.read(folder / "events.jsonl")
    steps = events.committed(history)
    evaluated = [event for event in history if isinstance(event, events.Evaluated)]
    last = steps[-1] if steps else None
    return Result(folder, last.step if last else 0, last.loss if last else None, evaluated[-1] if evaluated else None)


def _facts(run: spec.Run, prepared: Prepared) -> dict[str, Any]:
    """What the curve depends on besides the run file."""
    tokenizer = prepared.tokenizer()
    rows = run.model.rows(prepared.vocabulary)
    return {"fingerprint": prepared.fingerprint, "vocabulary": rows, "tokenizer_fingerprint": tokenizer.fingerprint}


def _splits(run: spec.Run) -> list[str]:
    return ["train", "validation"] if run.train.evaluate_every else ["train"]


def _check(run: spec.Run) -> None:
    """Refuse what cannot work wherever the run is kept, before anything is begun. Raises UserError."""
    check_alerts(run.alerts)
    if run.train.evaluate_translations is not None:
        check_installed("train.evaluate_translations")
    url = run.checkpoint.copy_to
    if url is not None and url.startswith("memory:"):
        raise RunFileError(f'checkpoint.copy = "{url}" is the memory of one process, and another copies; choose another place')
    if url is not None:
        _home_at(url)


def _home_at(url: str) -> Home:
    try:
        return Home.at(url)
    except StorageError as error:
        raise StorageError(f"checkpoint.copy: {error}") from None


def _second_home(run: spec.Run, folder: Folder, prepared: Prepared) -> Home | None:
    """That of the run's checkpoints, if it has one. Raises UserError where it cannot be used, or is another run's."""
    url = run.checkpoint.copy_to
    if url is None:
        return None
    if not is_url(url) and Path(url).resolve().is_relative_to(folder.path.resolve()):
        raise RunFileError(f'checkpoint.copy = "{url}" is in the run\'s own folder; choose another place')
    home = _home_at(url)
    with suppress(StorageFailed):  # one that does not answer now may not be needed: restore says so
        check_owner(home, url, run.identity(), prepared.fingerprint)
    return home


def _bring_journal(folder: Folder, home: Home | None) -> None:
    """A folder that is new to a run which has a second home goes on with the journal that is there: it tells which checkpoints are void."""
    if home is not None and not folder.journal.exists():
        with suppress(StorageFailed):  # whether it is needed, restore says
            home.fetch_journal(folder.journal)


def _checkpoint_bytes(run: spec.Run, prepared: Prepared) -> int:
    """What a checkpoint takes; 0 where that is not known, of a model of your own, and of adapters, which are little."""
    if ":" in run.model.family or run.adapted:
        return 0
    values = counts.parameters(run.model, run.model.rows(prepared.vocabulary), run.data.sequence)
    size = 8 if run.train.precision == "fp64" else 4
    return values * (size + 2 if run.train.optimizer.state == "int8" else size * STATE_BYTES.get(run.train.optimizer.name, 3))


def _check_space(run: spec.Run, folder: Path, prepared: Prepared) -> None:
    """Refuse a run that could not write its first checkpoint."""
    needed = _checkpoint_bytes(run, prepared)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DataError(f"{folder}: no space left: a checkpoint takes {needed / 2**20:.0f} MiB, and {free / 2**20:.0f} MiB are free")
