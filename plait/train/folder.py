"""A run's folder: what is in it, and whether a run may go on there.

OUT/run.toml         the resolved run file
OUT/about.json       what the curve depends on besides: data fingerprint, vocabulary; and who wrote it
OUT/events.jsonl     the journal
OUT/tokenizer.*      the tokenizer, so that the folder is a usable model
OUT/huggingface/     of a model that came from Hugging Face: what plait has no use for, and an export shall have again
OUT/checkpoints/     step-N/, complete when its manifest stands
OUT/lock             held while a run lives
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

import tomli_w

from plait import spec
from plait.data import chat
from plait.errors import CheckpointError
from plait.train.home import Home

KEPT = chat.KEPT
INT8 = "int8"
"""In the identity of a folder whose weights are rounded: plait.model.int8's mode."""


class Folder:
    """The folder of one run, locked while it is open. Use as a context manager."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def journal(self) -> Path:
        return self.path / "events.jsonl"

    def __enter__(self) -> Self:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise CheckpointError(f"{self.path}: cannot keep a run here: {error.strerror}; choose another folder with --out") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            raise CheckpointError(f"{self.path}: another plait train is at work here; wait for it, or choose another --out") from None
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def claim(self, run: spec.Run, data: dict[str, Any], rounded: str | None = None) -> bool:
        """Make the folder this run's, or check that it is. Returns whether it was already. rounded: how its weights are, where they are
        no floats.

        Raises CheckpointError for a folder of another run, naming each setting that differs.
        """
        wanted = {**run.identity(), **{f"data.{key}": value for key, value in data.items()}}
        if rounded is not None:
            wanted[INT8] = rounded
        if (self.path / "about.json").exists():
            kept = read_about(self.path)["identity"]
            _refuse_other(f"{self.path}: holds another run; use its settings, or another --out", kept, wanted)
            self._write("run.toml", tomli_w.dumps(run.resolved()))
            return True
        if strangers := sorted(item.name for item in self.path.iterdir() if item.name != "lock"):
            raise CheckpointError(f"{self.path}: holds {', '.join(strangers[:3])}, which is no run of plait; choose another --out")
        self._write("run.toml", tomli_w.dumps(run.resolved()))
        self._write("about.json", json.dumps({"identity": wanted, "revision": _revision()}, indent=1))
        self.checkpoints.mkdir(exist_ok=True)
        return False

    def keep(self, files: Iterable[Path]) -> None:
        """Copies of files of Hugging Face's, which an export shall have again."""
        for path in files:
            (self.path / KEPT).mkdir(exist_ok=True)
            shutil.copy(path, self.path / KEPT)

    def _write(self, name: str, text: str) -> None:
        partial = self.path / f".{name}.partial"
        try:
            partial.write_text(text, encoding="utf-8")
            partial.replace(self.path / name)
        except OSError as error:
            raise CheckpointError(f"{self.path / name}: cannot be written: {error.strerror}") from None


def read_about(folder: Path) -> dict[str, Any]:
    """What `about.json` of a run's folder says. Raises CheckpointError."""
    try:
        about: dict[str, Any] = json.loads((folder / "about.json").read_text(encoding="utf-8"))
        about["identity"]
    except FileNotFoundError:
        raise CheckpointError(f"{folder}: there is no run here (no about.json); name the folder that plait train printed") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / 'about.json'}: cannot be read: {error}") from None
    return about


def read_run(folder: Path) -> spec.Run:
    """The run file that a run's folder keeps."""
    read_about(folder)
    return spec.load(folder / "run.toml")


def check_floats(folder: Path, what: str) -> None:
    """Raises CheckpointError for a folder of rounded weights. what: what it cannot be used for."""
    if INT8 in read_about(folder)["identity"]:
        raise CheckpointError(f"{folder}: holds weights in int8, which {what}; take the run that they were rounded from")


def tokenizer_file(folder: Path) -> Path:
    """The tokenizer that a run's folder keeps. Raises CheckpointError."""
    found = sorted(folder.glob("tokenizer.*"))
    if not found:
        raise CheckpointError(f"{folder}: the tokenizer is missing; run plait train on it once more")
    return found[0]


def check_owner(home: Home, url: str, identity: dict[str, Any], fingerprint: str) -> None:
    """Raises CheckpointError for a second home with checkpoints of another run; StorageError, StorageFailed."""
    for step in home.steps():
        try:
            about = home.read(step).about
        except CheckpointError:
            continue  # a damaged one does not say whose it is
        kept = {key: value for key, value in spec.flatten(about["run"]).items() if spec.shapes_curve(key)}
        kept["data.fingerprint"] = about["fingerprint"]
        refusal = f"{url}: holds checkpoints of another run; use its settings, or another checkpoint.copy"
        _refuse_other(refusal, kept, {**identity, "data.fingerprint": fingerprint})
        return


def _refuse_other(refusal: str, kept: dict[str, Any], wanted: dict[str, Any]) -> None:
    differing = [key for key in sorted({*kept, *wanted}) if kept.get(key) != wanted.get(key)]
    if differing:
        lines = [f"  {key}: {kept.get(key)!r} there, {wanted.get(key)!r} now" for key in differing]
        raise CheckpointError(f"{refusal}. What differs:\n" + "\n".join(lines))


def _revision() -> str | None:
    """The git revision of the working folder, for the record."""
    try:
        return subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=5).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
