"""A second home of checkpoints, under any URL: what is there, copying to it, fetching from it.

    URL/step-00000200/
      copying.json                 while it is being copied: the manifest that it will have
      piece-0000-000.safetensors   each whole or not there
      manifest.json                created last: the checkpoint exists when it does
    URL/events.jsonl               the run's journal, as it was when the last checkpoint was copied, and when the run ended

A copy that was cut short goes on where it was: pieces of the size that copying.json tells are there already. Going away, a checkpoint
loses its manifest first.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from plait import store
from plait.errors import CheckpointError, NotStored, StorageFailed
from plait.store import Store
from plait.train import manifest
from plait.train.manifest import Manifest

COPYING = "copying.json"
JOURNAL = "events.jsonl"
_READ = 8 << 20
_AT_ONCE = 4  # pieces on their way


class Home:
    """Errors of storage are StorageError's and StorageFailed's; what is wrong with a checkpoint is a CheckpointError that names the URL."""

    def __init__(self, at: Store) -> None:
        self._at = at

    @classmethod
    def at(cls, url: str) -> Home:
        return cls(store.at(url))

    def url(self, step: int) -> str:
        return self._at.url(manifest.name(step))

    def steps(self) -> list[int]:
        """Of complete checkpoints, newest first; whether their bytes are sound, `verify` tells."""
        return sorted((step for step, files in self._files().items() if manifest.FILE in files), reverse=True)

    def seen(self) -> list[int]:
        """Of whatever has a checkpoint's name and is not being copied, newest first, sound or not."""
        return sorted((step for step, files in self._files().items() if manifest.FILE in files or COPYING not in files), reverse=True)

    def read(self, step: int) -> Manifest:
        return manifest.parse(self._content(step), self._at.url(_name(step, manifest.FILE)))

    def problem(self, step: int) -> str | None:
        """Why a checkpoint cannot be used, as far as its manifest and the sizes of its files tell."""
        try:
            self._compare_sizes(step, self.read(step))
        except CheckpointError as error:
            return str(error)
        return None

    def verify(self, step: int) -> None:
        """Read every byte and compare checksums."""
        for file, piece in self.read(step).pieces.items():
            digest = hashlib.sha256()
            for first in range(0, piece.bytes, _READ):
                digest.update(self._at.read(_name(step, file), first, min(first + _READ, piece.bytes)))
            self._expect(step, file, piece.sha256, digest.hexdigest())

    def fetch(self, step: int, folder: Path) -> Path:
        """Bring a checkpoint to a folder of checkpoints, in place of what has its name there; returns its path.

        Raises CheckpointError: a piece is missing or corrupt. OSError.
        """
        content = self._content(step)
        whole = manifest.parse(content, self._at.url(_name(step, manifest.FILE)))
        self._compare_sizes(step, whole)
        partial = manifest.partial_folder(folder, step)
        try:
            with ThreadPoolExecutor(_AT_ONCE) as pool:
                for fetched in [pool.submit(self._fetch_piece, step, file, piece.sha256, partial) for file, piece in whole.pieces.items()]:
                    fetched.result()
            return manifest.complete(partial, step, content)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise

    def copy(self, path: Path, sent: Callable[[int], None] = lambda _: None) -> bool:
        """Make a local checkpoint one of this home; what is there of it already is not sent again. sent: told bytes, piece by piece.

        Checksums are compared on the way: what is corrupt here is not copied. Returns whether it was not complete there before. Raises
        CheckpointError.
        """
        whole, content = manifest.read(path), (path / manifest.FILE).read_bytes()
        standing = self._stored(whole.step, manifest.FILE)
        if standing != content:
            if standing is not None:
                self.remove(whole.step)  # of a curve that is void
            self._send(path, whole, content, sent)
        self._at.delete(_name(whole.step, COPYING))
        return standing != content

    def copy_journal(self, path: Path) -> None:
        """Put a journal here as it is now: it may be growing, and who opens it drops a line that is cut short."""
        with tempfile.NamedTemporaryFile(prefix="plait-journal-") as still, suppress(FileNotFoundError):
            shutil.copyfile(path, still.name)
            self._at.upload(Path(still.name), JOURNAL)

    def fetch_journal(self, path: Path) -> bool:
        """Bring the journal of the checkpoints that are here; whether there is one."""
        if not self.steps() or self._at.stat(JOURNAL) is None:
            return False  # without checkpoints nothing tells whose it is
        self._at.download(JOURNAL, path)
        return True

    def prune(self, step: int, keep: int) -> None:
        """Remove all but the `keep` newest complete checkpoints up to `step`, and what was begun before it and never completed. What is of
        later steps belongs to a curve that is void."""
        kept = [there for there in self.steps() if there <= step][:keep]
        for there in self._files():
            if there not in kept:
                self.remove(there)

    def remove(self, step: int) -> None:
        """The manifest first: half removed it is no checkpoint. What tells of pieces that were under way goes last."""
        begun = self._stored(step, COPYING)
        files = {*self._files(step).get(step, {}), *(_pieces(begun) if begun is not None else ())}
        for file in sorted(files, key=lambda file: (file != manifest.FILE, file == COPYING)):
            self._at.delete(_name(step, file))

    def _send(self, path: Path, whole: Manifest, content: bytes, sent: Callable[[int], None]) -> None:
        there = self._begun(whole.step, content)
        for file, piece in whole.pieces.items():
            if there.get(file) != piece.bytes:
                if manifest.checksum(path / file) != piece.sha256:
                    raise CheckpointError(f"{path / file}: {manifest.CORRUPT}")
                self._at.upload(path / file, _name(whole.step, file))
                sent(piece.bytes)
        self._compare_sizes(whole.step, whole)
        if not self._at.create(_name(whole.step, manifest.FILE), content) and self._stored(whole.step, manifest.FILE) != content:
            raise StorageFailed(f"{self.url(whole.step)}: another run has just written a checkpoint of this step there")

    def _begun(self, step: int, content: bytes) -> dict[str, int]:
        """The sizes of pieces that were copied of this very checkpoint; it is noted that it is this one from here on."""
        if self._stored(step, COPYING) == content:
            return self._files(step).get(step, {})
        self.remove(step)
        self._at.write(_name(step, COPYING), content)
        return {}

    def _fetch_piece(self, step: int, file: str, sha256: str, folder: Path) -> None:
        try:
            self._at.download(_name(step, file), folder / file)
        except NotStored as error:
            raise CheckpointError(str(error)) from None
        self._expect(step, file, sha256, manifest.checksum(folder / file))

    def _expect(self, step: int, file: str, sha256: str, found: str) -> None:
        if found != sha256:
            raise CheckpointError(f"{self._at.url(_name(step, file))}: {manifest.CORRUPT}")

    def _compare_sizes(self, step: int, whole: Manifest) -> None:
        there = self._files(step).get(step, {})
        for file, piece in whole.pieces.items():
            if there.get(file) != piece.bytes:
                found = f"has {there[file]} bytes, and {piece.bytes} were written" if file in there else "is missing"
                raise CheckpointError(f"{self._at.url(_name(step, file))}: {found}")

    def _content(self, step: int) -> bytes:
        content = self._stored(step, manifest.FILE)
        if content is None:
            raise CheckpointError(f"{self.url(step)}: is no complete checkpoint: {manifest.FILE} is missing")
        return content

    def _stored(self, step: int, file: str) -> bytes | None:
        try:
            return self._at.read(_name(step, file))
        except NotStored:
            return None

    def _files(self, step: int | None = None) -> dict[int, dict[str, int]]:
        """The sizes of files by step."""
        found: dict[int, dict[str, int]] = defaultdict(dict)
        for entry in self._at.entries("step-" if step is None else f"{manifest.name(step)}/"):
            folder, _, file = entry.name.partition("/")
            if (there := manifest.step_named(folder)) is not None and file:
                found[there][file] = entry.bytes
        return found


def _pieces(begun: bytes) -> set[str]:
    """What a copy that was begun has, or had under way."""
    with suppress(CheckpointError):
        return set(manifest.parse(begun, COPYING).pieces)
    return set()


def _name(step: int, file: str) -> str:
    return f"{manifest.name(step)}/{file}"
