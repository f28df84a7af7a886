"""A checkpoint's manifest: what is in the folder, in JSON, readable without torch.

    OUT/checkpoints/
      step-00000200/
        manifest.json              written last: the checkpoint exists when this folder has its name
        piece-0000-000.safetensors
      .step-00000400.1f3a.partial  being written, or left behind by a process that died
      .step-00000200.9c0e.dead     being removed
      .step-00000200.40d2.held     hard links to it, while it is being copied to a second home
  .step-00000200.77b1.replaced was step-00000200 until a new one of the same step took its name

The launching parent asks here which checkpoint to resume from; the workers write and read the pieces (pieces.py).
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from plait.errors import CheckpointError

FILE = "manifest.json"
VERSION = 1
CORRUPT = "is corrupt: its checksum is not the one that was written"
_NAME = re.compile(r"step-(\d{8,})")
_HIDDEN = re.compile(r"\.(step-\d{8,})\.[0-9a-f]+\.(partial|dead|replaced|held)")
_READ = 8 << 20


@dataclass(frozen=True)
class Chunk:
    """A box of a tensor, stored whole as one entry of one piece file."""

    offsets: list[int]
    sizes: list[int]
    piece: str
    key: str


@dataclass(frozen=True)
class TensorEntry:
    """A tensor of the whole replica: dtype as torch names it, its global shape, and the boxes that cover it."""

    dtype: str
    shape: list[int]
    chunks: list[Chunk]


@dataclass(frozen=True)
class Piece:
    """A piece file as it was written."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """All that is known of a checkpoint but the tensors' values. `about` is the caller's; scalars are state without a tensor."""

    step: int
    about: dict[str, Any]
    scalars: dict[str, Any]
    tensors: dict[str, TensorEntry]
    pieces: dict[str, Piece]

    @property
    def bytes(self) -> int:
        return sum(piece.bytes for piece in self.pieces.values())


def name(step: int) -> str:
    return f"step-{step:08d}"


def step_named(name: str) -> int | None:
    """The step that a folder's name tells; None where it is no checkpoint's."""
    found = _NAME.fullmatch(name)
    return None if found is None else int(found[1])


def step_of(path: Path) -> int:
    """The step in a checkpoint folder's name."""
    step = step_named(path.name)
    if step is None:
        raise CheckpointError(f"{path}: is no checkpoint; its name would be like {name(200)}")
    return step


def latest(folder: Path) -> Path | None:
    """The newest complete checkpoint in a run's checkpoints folder, or None."""
    return next(iter(candidates(folder)), None)


def candidates(folder: Path) -> list[Path]:
    """The complete checkpoints, newest first. Whether their bytes are sound, `verify` or loading them tells."""
    return [path for path in saved(folder) if problem(path) is None]


def saved(folder: Path) -> list[Path]:
    """Whatever has a checkpoint's name, newest first, sound or not."""
    try:
        found = [path for path in folder.iterdir() if step_named(path.name) is not None and path.is_dir()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(found, key=step_of, reverse=True)


def problem(path: Path) -> str | None:
    """Why the checkpoint cannot be used, as far as the manifest and the sizes of its files tell; None where they agree."""
    try:
        manifest = read(path)
    except CheckpointError as error:
        return str(error)
    for file, piece in manifest.pieces.items():
        try:
            found = (path / file).stat().st_size
        except OSError as error:
            return f"{path / file}: {error.strerror}"
        if found != piece.bytes:
            return f"{path / file}: has {found} bytes, and {piece.bytes} were written"
    return None


def about(path: Path) -> dict[str, Any]:
    """What the run said of itself when it saved. Raises CheckpointError."""
    return read(path).about


def read(path: Path) -> Manifest:
    """The manifest of a checkpoint folder. Raises CheckpointError: missing, damaged, of a later version."""
    try:
        return parse((path / FILE).read_bytes(), str(path / FILE))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: is no complete checkpoint: {FILE} is missing") from None
    except OSError as error:
        raise CheckpointError(f"{path / FILE}: cannot be read as a manifest: {error}") from None


def parse(content: bytes, place: str) -> Manifest:
    """The manifest that a file holds; place: the file, for messages. Raises CheckpointError: damaged, of a later version."""
    try:
        record = json.loads(content)
        if record["version"] != VERSION:
            raise CheckpointError(f"{place}: has version {record['version']}, and this plait reads version {VERSION}")
        if record.pop("sha256") != _seal(record):
            raise CheckpointError(f"{place}: its checksum is wrong: the file was changed or damaged")
        return _from_json(record)
    except CheckpointError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{place}: cannot be read as a manifest: {error}") from None


def verify(path: Path, pieces: Iterable[str] | None = None) -> None:
    """Read the named piece files (all, when left out) and compare their checksums. Raises CheckpointError, naming the file."""
    manifest = read(path)
    wanted = sorted(manifest.pieces if pieces is None else pieces)
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:  # hashing releases the interpreter's lock
        for file, found in zip(wanted, pool.map(lambda file: checksum(path / file), wanted), strict=True):
            if found != manifest.pieces[file].sha256:
                raise CheckpointError(f"{path / file}: {CORRUPT}")


def write(partial: Path, manifest: Manifest) -> Path:
    """Make a partial folder, whose pieces are on disk, the checkpoint of its step; returns its path. Raises OSError."""
    record = {"format": "plait checkpoint", "version": VERSION, **asdict(manifest), "bytes": manifest.bytes}
    record["sha256"] = _seal(record)
    return complete(partial, manifest.step, json.dumps(record, indent=1).encode())


def complete(partial: Path, step: int, content: bytes) -> Path:
    """The same with a manifest as it is in a file."""
    with open(partial / FILE, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    sync_folder(partial)
    path = partial.parent / name(step)
    replaced = _hide(path, "replaced") if path.exists() else None
    os.rename(partial, path)
    sync_folder(path.parent)
    if replaced is not None:
        shutil.rmtree(replaced, ignore_errors=True)
    return path


def partial_folder(folder: Path, step: int) -> Path:
    """A new, empty, hidden folder to write the checkpoint of `step` into. Raises OSError."""
    partial = _hidden(folder / name(step), "partial")
    partial.mkdir(parents=True)
    return partial


def hold(path: Path) -> Path:
    """A hidden folder with the checkpoint's files, which stay though the checkpoint goes; to be removed by the caller. Where there are no
    hard links it holds copies. Raises CheckpointError, OSError."""
    held = _hidden(path, "held")
    held.mkdir()
    try:
        for file in [*read(path).pieces, FILE]:
            _link(path / file, held / file)
    except BaseException:
        shutil.rmtree(held, ignore_errors=True)
        raise
    return held


def prune(folder: Path, step: int, keep: int) -> None:
    """Remove all but the `keep` newest complete checkpoints; that of `step`, the one just written, stays in any case.

    Later ones stay too: another replica may have written them while this one took its time. Each loses its name first, so that a folder
    half removed is never taken for a checkpoint. Raises OSError.
    """
    kept = [path for place, path in enumerate(candidates(folder)) if place < keep or step_of(path) == step]
    for path in saved(folder):
        if path not in kept and step_of(path) <= step:
            shutil.rmtree(_hide(path, "dead"))


def remove_later(folder: Path, step: int) -> None:
    """Remove what is of later steps than the one that is about to be saved: the run was taken back to before them, so that they are of a
    curve that is void. Raises OSError."""
    for path in saved(folder):
        if step_of(path) > step:
            shutil.rmtree(_hide(path, "dead"))


def clear_leftovers(folder: Path) -> None:
    """Remove what processes that died left half written or half removed. For the run's start, while no one saves into the folder.

    A checkpoint that had just given up its name to a new one of the same step gets it back if the new one never arrived.
    """
    with suppress(FileNotFoundError, NotADirectoryError):
        for path in sorted(folder.iterdir()):
            found = _HIDDEN.fullmatch(path.name)
            if found is None:
                continue
            if found[2] == "replaced" and not (folder / found[1]).exists():
                os.rename(path, folder / found[1])
            else:
                shutil.rmtree(path, ignore_errors=True)


def checksum(file: Path) -> str:
    """Of a file's content. Raises CheckpointError."""
    digest = hashlib.sha256()
    buffer = bytearray(_READ)
    try:
        with open(file, "rb", buffering=0) as stream:
            while size := stream.readinto(buffer):
                digest.update(memoryview(buffer)[:size])
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error.strerror}") from None
    return digest.hexdigest()


def sync_folder(folder: Path) -> None:
    """Bring a folder's names to disk, where the file system can (some network ones cannot)."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def _link(file: Path, other: Path) -> None:
    try:
        os.link(file, other)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copyfile(file, other)


def _hidden(path: Path, state: str) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.{state}")


def _hide(path: Path, state: str) -> Path:
    hidden = _hidden(path, state)
    os.rename(path, hidden)
    return hidden


def _seal(record: dict[str, Any]) -> str:
    """The checksum of the manifest without its checksum, however it is laid out in the file."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _from_json(record: dict[str, Any]) -> Manifest:
    tensors = {
        path: TensorEntry(entry["dtype"], entry["shape"], [Chunk(**chunk) for chunk in entry["chunks"]])
        for path, entry in record["tensors"].items()
    }
    pieces = {file: Piece(**piece) for file, piece in record["pieces"].items()}
    for file in pieces | {chunk.piece: None for entry in tensors.values() for chunk in entry.chunks}:
        if file not in pieces or Path(file).name != file:
            raise ValueError(f"{file!r} is no piece of it")
    return Manifest(record["step"], record["about"], record["scalars"], tensors, pieces)
