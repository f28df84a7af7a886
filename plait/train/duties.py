"""What a verdict asks for besides the update: rolling back, evaluating, saving."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Protocol

from plait.data.batches import EvaluationBatches, MicroBatch, in_lane
from plait.events import Ranges
from plait.ledger.messages import Kept, Measured, Message, Unkept, Verdict
from plait.ledger.progress import progress
from plait.replica.compute import Compute
from plait.replica.replica import Replica
from plait.replica.telling import Sums
from plait.sync.phases import Phases
from plait.sync.strategy import PeerLost
from plait.train import manifest
from plait.train.checkpoint import Checkpoints, load, names
from plait.train.sentences import Sentences


class Tells(Protocol):
    """The part of a ledger's client that takes facts."""

    def tell(self, message: Message) -> None: ...


class Duties:
    """One rank's. The ranks that `saves` is true of write checkpoints together; `about` goes into each of them."""

    def __init__(
        self,
        replica: Replica,
        sync: Phases,
        ledger: Tells,
        folder: Path,
        keep: int,
        about: dict[str, Any],
        validation: EvaluationBatches | None,
        micro_batch: int,
        saves: bool,
        sentences: Sentences | None = None,
    ) -> None:
        self._replica = replica
        self._sync = sync
        self._ledger = ledger
        self._folder = folder
        self._about = about
        self._validation = validation
        self._micro_batch = micro_batch
        self._sentences = sentences
        self._facts: SimpleQueue[Message] = SimpleQueue()
        self._checkpoints = Checkpoints(folder, keep, self._saved, self._failed, replica.mesh.writers) if saves else None

    def perform(self, verdict: Verdict) -> None:
        if verdict.to_step is not None:
            self._roll_back(verdict.to_step)
        if verdict.evaluate is not None and self._validation is not None:
            sums = measure(self._replica.compute, self._validation, verdict.evaluate, self._micro_batch, self._replica.mesh.lane)
            said = self._translated(verdict.evaluate)
            table = [] if sums.confusion is None else sums.confusion.tolist()
            self._ledger.tell(Measured(verdict.step, verdict.unit, "validation", sums.loss, sums.correct, sums.targets, said, table))
        if verdict.save:
            self._save(verdict)
        if verdict.bucket_bytes:
            self._sync.resize(self._replica, verdict.bucket_bytes)
        self._tell_facts()

    def finish(self) -> None:
        """Wait for the checkpoint that is being written."""
        if self._checkpoints is not None:
            progress("waits for a checkpoint to be written", "ledger")
            self._checkpoints.wait()
        self._tell_facts()

    def _translated(self, ranges: Ranges) -> list[list[str]]:
        if self._sentences is None or self._validation is None:
            return []
        progress("translates validation sentences")
        return self._sentences.translated(self._replica, ranges, self._validation.size)

    def _save(self, verdict: Verdict) -> None:
        """All that are told to give what they have; who has the position, writes."""
        progress(f"saves step {verdict.step}", "ledger")
        try:
            state = self._sync.state(self._replica)
        except PeerLost as lost:  # what becomes of the run is told by the next unit, which will break as well
            if verdict.position is not None:
                self._failed(verdict.step, f"another replica was lost: {lost}", again=True)
            return
        if self._checkpoints is not None and verdict.position is not None:
            self._checkpoints.save(verdict.step, self._replica.state() | state, {**self._about, "position": verdict.position})

    def _roll_back(self, step: int) -> None:
        progress(f"returns to step {step}")
        if self._checkpoints is not None:
            self._checkpoints.wait()
        if step:
            resume(self._replica, self._folder / manifest.name(step), self._sync)
        else:
            self._replica.start_afresh()

    def _saved(self, step: int, path: Path, size: int, seconds: float, stalled: float) -> None:
        self._facts.put(Kept(step, str(path), size, seconds, stalled))

    def _failed(self, step: int, why: str, again: bool = False) -> None:
        self._facts.put(Unkept(step, why, again))

    def _tell_facts(self) -> None:
        """The writer is a thread of its own, and the line to the ledger belongs to this one."""
        while True:
            try:
                self._ledger.tell(self._facts.get_nowait())
            except Empty:
                return


def resume(replica: Replica, checkpoint: Path, sync: Phases) -> None:
    """Bring a replica, and how it agrees with others, to the state of a checkpoint. Raises CheckpointError."""
    whole = manifest.read(checkpoint)
    state = replica.state_to_load()
    aside = sync.state_to_load(replica, whole.about["position"].get("phase", 0), names(whole))
    state |= aside
    load(checkpoint, state, elsewhere=replica.assembly.elsewhere)
    replica.restore(state)
    sync.restore(replica, {name: state[name] for name in aside})


def measure(compute: Compute, batches: EvaluationBatches, ranges: Ranges, micro_batch: int, lane: tuple[int, int] = (0, 1)) -> Sums:
    """Sums over the sequences of `ranges` in this lane."""

    def micro_batches() -> Iterator[MicroBatch]:
        for first, end in ranges:
            for start in range(first, end, micro_batch):
                progress(f"measures validation sequences from {start} on")
                yield in_lane(batches.read, start, min(start + micro_batch, end), lane)

    return compute.measure(micro_batches())
