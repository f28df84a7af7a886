"""What a run begins from: the newest checkpoint of either home that is complete, sound, and of a curve that counts.

step    OUT/checkpoints    second home
600                        manifest missing      no checkpoint
500     void               void                  the run was taken back to before it: events.jsonl says so
400     piece corrupt      piece corrupt         Damaged, Damaged
300     piece missing      sound                 Damaged, Fetched: it is this one
200     sound
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from plait import events
from plait.errors import CheckpointError, StorageFailed
from plait.events import Copied, CopyFailed, Damaged, Event, Fetched, Saved
from plait.train import manifest
from plait.train.home import Home


@dataclass
class Found:
    """checkpoint: None to start from the beginning. told: what happened on the way."""

    checkpoint: Path | None = None
    told: list[Event] = field(default_factory=list)


def restore(folder: Path, home: Home | None, history: Sequence[Event]) -> Found:
    """folder: of the run's checkpoints, which one of the second home is brought to. history: the run's journal.

    Raises CheckpointError where there are damaged ones alone: starting anew would hide the loss; StorageFailed where the second home does
    not answer, and the newest checkpoint that the journal tells of is not here.
    """
    found = Found()
    void = events.void_checkpoints(history, Saved)
    here = {step: path for path in manifest.saved(folder) if (step := manifest.step_of(path)) not in void}
    there, silence = _steps_of(home, history)
    for step in sorted({*here, *there}, reverse=True):
        if step in here and _is_sound(here[step], found):
            found.checkpoint = here[step]
        elif step in there and home is not None:
            found.checkpoint = _fetched(home, step, folder, found)
        if found.checkpoint is not None:
            break
    if silence is not None:
        _do_without(
            silence, found, max((event.step for event in history if isinstance(event, Saved) and event.step not in void), default=0)
        )
    if found.checkpoint is None and found.told:
        damaged = "; ".join(event.why for event in found.told if isinstance(event, Damaged))
        raise CheckpointError(f"{folder}: no checkpoint is sound; remove the folder to start anew, or restore one. {damaged}")
    return found


def _steps_of(home: Home | None, history: Sequence[Event]) -> tuple[list[int], StorageFailed | None]:
    """What the second home has, or why it does not say."""
    if home is None:
        return [], None
    void = events.void_checkpoints(history, Copied)
    try:
        return [step for step in home.steps() if step not in void], None
    except StorageFailed as silence:
        return [], silence


def _is_sound(path: Path, found: Found) -> bool:
    """Whether its bytes are what was written; it is told where they are not."""
    try:
        if why := manifest.problem(path):
            raise CheckpointError(why)
        manifest.verify(path)
    except CheckpointError as damage:
        found.told.append(Damaged(time.time(), manifest.step_of(path), str(path), str(damage)))
        return False
    return True


def _fetched(home: Home, step: int, folder: Path, found: Found) -> Path | None:
    """The checkpoint, brought here; None where it is damaged, which is told."""
    began = time.monotonic()
    try:
        path = home.fetch(step, folder)
    except CheckpointError as damage:
        found.told.append(Damaged(time.time(), step, home.url(step), str(damage)))
        return None
    except OSError as error:
        raise CheckpointError(f"{folder}: {home.url(step)} cannot be brought here: {error.strerror}") from None
    found.told.append(Fetched(time.time(), step, home.url(step), manifest.read(path).bytes, time.monotonic() - began))
    return path


def _do_without(silence: StorageFailed, found: Found, newest: int) -> None:
    """A second home that does not answer is no matter where what it could have is here."""
    step = 0 if found.checkpoint is None else manifest.step_of(found.checkpoint)
    if not step or step < newest:
        lacking = f"the newest checkpoint, of step {newest}, is not sound here" if newest else "there is no checkpoint here"
        raise StorageFailed(f"{silence}; {lacking}, and may be there: try again, or leave checkpoint.copy out") from silence
    found.told.append(CopyFailed(time.time(), step, str(silence)))
