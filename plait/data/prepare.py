"""Preparing: a corpus to token files, in parallel, resumable, found again by what was asked.

    request = hash(content of the source files, settings that shape tokens, format)

    <prepared>/hashes.json           checksums of source files already read, by path, size and time
    <prepared>/<request>.lock        one preparation of a request at a time
    <prepared>/<request>.making/     tokenizer, pieces, then token files and the manifest; left behind by a kill, found again
    <prepared>/<request>/            the same folder under its last name: complete

Each file appears under its name whole, and the folder last, by one rename.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from plait import spec
from plait.data import pieces, sources, tokenizer, tokens, vocabulary
from plait.data.hashes import Hashes
from plait.data.sources import Source
from plait.data.tokens import Prepared
from plait.data.worker import Workers
from plait.errors import DataError
from plait.store import durable

Stage = Literal["reading", "training the tokenizer", "tokenising", "writing"]
TRAINING_BYTES = 1 << 30  # a tokenizer learns no more from more text than this


@dataclass(frozen=True)
class Progress:
    """How far preparing is; bytes are those of the source files, done in this stage."""

    done_bytes: int
    total_bytes: int
    documents: int
    tokens: int
    stage: Stage


Listener = Callable[[Progress], None]


def find(data: spec.Data) -> Prepared | None:
    """The folder that was prepared for these settings and this very content, if it stands.

    Raises DataError: the corpus cannot be read, the folder is corrupt.
    """
    prepared = Path(data.prepared)
    if not prepared.is_dir():
        return None
    found = sources.resolve(data)
    return _opened(prepared / _request(data, found, Hashes(prepared).of(_paths(found))), data)


def prepare(data: spec.Data, *, listener: Listener = lambda progress: None) -> Prepared:
    """Find what was prepared, or prepare it; a preparation that was cut off goes on where it was.

    Raises DataError: a mistake in the corpus or the tokenizer, no space left. WorkerFailed: a process died.
    """
    found = sources.resolve(data)
    prepared = Path(data.prepared)
    with _space(prepared, found, data):
        prepared.mkdir(parents=True, exist_ok=True)
        folder = prepared / _request(data, found, _sums(prepared, found, listener))
        if (ready := _opened(folder, data)) is not None:
            return ready
        with durable.locked(prepared / f"{folder.name}.lock"):
            if not folder.exists():
                _Preparation(data, found, folder, listener).run()
    return Prepared.open(folder, data)


def _opened(folder: Path, data: spec.Data) -> Prepared | None:
    return Prepared.open(folder, data) if folder.exists() else None


def _sums(prepared: Path, found: list[Source], listener: Listener) -> dict[Path, str]:
    """The checksums of the source files, with progress."""
    total, done = _size(found), 0

    def on_read(count: int) -> None:
        nonlocal done
        done += count
        listener(Progress(done, total, 0, 0, "reading"))

    return Hashes(prepared).of(_paths(found), on_read)


def _request(data: spec.Data, found: list[Source], sums: dict[Path, str]) -> str:
    """What is asked for, as a name: content and settings, not paths, names or weights."""
    learned = data.tokenizer
    told = vocabulary.fingerprint(Path(learned.file), learned.pattern) if learned.file else f"train {learned.train}"
    content = [[[sums[file.path], file.format] for file in source.files] for source in found]
    asked = [tokens.FORMAT, content, data.field, data.separator, data.split.model_dump(), told]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]


@contextlib.contextmanager
def _space(prepared: Path, found: list[Source], data: spec.Data) -> Iterator[None]:
    """Errors of the disk in the user's words."""
    try:
        yield
    except OSError as error:
        kept = "nothing that was written is lost: run again to go on"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            needed = math.ceil(_need(found, data) / 2**20)
            raise DataError(
                f"data.prepared: {prepared}: no space left; preparing this corpus takes about {needed:,} MiB there, "
                f"free some or set data.prepared to another disk; {kept}"
            ) from None
        raise DataError(f"data.prepared: {prepared}: cannot be written: {error.strerror}; {kept}") from None


def _need(found: list[Source], data: spec.Data) -> float:
    """Bytes on the disk while preparing: pieces and token files side by side, at 3 bytes of text a token."""
    texts = sum(os.path.getsize(file.path) * (4 if file.path.suffix in (".gz", ".zst", ".parquet") else 1) for file in _files(found))
    return 2 * texts / 3 * (2 if data.tokenizer.train and data.tokenizer.train <= 1 << 16 else 4)


def _files(found: list[Source]) -> list[sources.SourceFile]:
    return [file for source in found for file in source.files]


def _paths(found: list[Source]) -> list[Path]:
    return [file.path for file in _files(found)]


def _size(found: list[Source]) -> int:
    """Of the source files, in bytes on the disk."""
    return sum(os.path.getsize(path) for path in _paths(found))


class _Preparation:
    """One corpus on its way to a folder."""

    def __init__(self, data: spec.Data, found: list[Source], folder: Path, listener: Listener) -> None:
        self._data = data
        self._sources = found
        self._folder = folder
        self._making = folder.with_name(f"{folder.name}.making")
        self._pieces = self._making / "pieces"
        self._listener = listener
        self._total = _size(found)
        self._documents = 0
        self._tokens = 0

    def run(self) -> None:
        """Whatever stands in `making` is done already."""
        self._pieces.mkdir(parents=True, exist_ok=True)
        for cut_short in self._making.glob("*.part"):
            cut_short.unlink()
        if not (self._making / tokens.MANIFEST).exists():
            with Workers(self._processes()) as workers:
                stored = self._tokenizer(workers)
                numbers = self._tokenise(workers, stored)
            self._check_unchanged()
            self._write(stored, numbers)
        shutil.rmtree(self._pieces)
        durable.rename(self._making, self._folder)

    def _check_unchanged(self) -> None:
        """The folder's name tells the content that was hashed: it must be the content that was read."""
        sums = Hashes(self._folder.parent).of(_paths(self._sources))
        if _request(self._data, self._sources, sums) != self._folder.name:
            shutil.rmtree(self._making)
            raise DataError("data.corpus: a file changed while it was being prepared; run again once it is at rest")

    def _processes(self) -> int:
        """No more than there is work for: a worker takes longer to start than a small chunk to tokenise."""
        cores = self._data.workers or len(os.sched_getaffinity(0))
        return max(1, min(cores, math.ceil(self._total / pieces.SMALLEST)))

    def _tokenizer(self, workers: Workers) -> Path:
        """The tokenizer's file in the folder: copied there, or trained on the training split."""
        asked = self._data.tokenizer
        if asked.file is not None:
            source = Path(asked.file)
            stored = self._making / f"tokenizer{source.suffix}"
            tokenizer.load(source, asked.pattern)
            with durable.writing(stored) as file:
                file.write(source.read_bytes())
            return stored
        stored = self._making / "tokenizer.json"
        if not stored.exists():
            assert asked.train is not None
            trained = workers.train(self._training_texts(), asked.train)
            with durable.writing(stored) as file:
                file.write(trained.encode())
        return stored

    def _training_texts(self) -> Iterator[list[str]]:
        """Documents of the training split; of a very large corpus an even sample."""
        share = min(1.0, TRAINING_BYTES / max(1, self._total))
        held, texts, taken, empty = 0, [], 0.0, True
        for _, text, read in self._read():
            empty = False
            if pieces.split_of(text, self._data.split) != "train":
                continue
            taken += share
            if taken < 1:
                continue
            taken -= 1
            texts.append(text)
            held += len(text)
            if held >= pieces.SMALLEST:
                self._tell("training the tokenizer", read)
                yield texts
                held, texts = 0, []
        if empty:
            raise self._empty()
        if texts:
            yield texts

    def _tokenise(self, workers: Workers, stored: Path) -> list[list[int]]:
        """All pieces, those that stand already left alone; returns their numbers by source."""
        numbers: list[list[int]] = [[] for _ in self._sources]
        waiting: deque[tuple[pieces.Chunk, Future[pieces.Done]]] = deque()
        for chunk in pieces.chunks(self._read(), self._total):
            numbers[chunk.source].append(chunk.number)
            if (done := pieces.done(self._pieces, chunk.number)) is not None:
                self._count(done, chunk.read)
                continue
            waiting.append((chunk, workers.write(self._pieces, chunk, stored, self._data.tokenizer.pattern, self._data.split)))
            if len(waiting) > 2 * self._processes():
                self._settle(waiting)
        while waiting:
            self._settle(waiting)
        if not any(numbers):
            raise self._empty()
        return numbers

    def _empty(self) -> DataError:
        paths = [str(path) for path in _paths(self._sources)]
        more = f" and {len(paths) - 4} more" if len(paths) > 4 else ""
        return DataError(f"data.corpus: is empty: no text in {', '.join(paths[:4])}{more}")

    def _settle(self, waiting: deque[tuple[pieces.Chunk, Future[pieces.Done]]]) -> None:
        chunk, future = waiting.popleft()
        self._count(future.result(), chunk.read)

    def _count(self, done: pieces.Done, read: int) -> None:
        self._documents += done.documents
        self._tokens += done.tokens
        self._tell("tokenising", read)

    def _write(self, stored: Path, numbers: list[list[int]]) -> None:
        """Token files, and the manifest after them."""
        engine = tokenizer.load(stored, self._data.tokenizer.pattern)
        files = {stored.name: _stored(stored)}
        splits: dict[str, list[tokens.Part]] = {split: [] for split in tokens.SPLITS}
        for split, parts in splits.items():
            self._tell("writing", self._total)
            for index, mine in enumerate(numbers):
                part, written = pieces.join(self._pieces, mine, split, index, self._making, engine.vocabulary)
                parts.append(part)
                files |= written
        manifest = tokens.Manifest(
            format=tokens.FORMAT,
            request=self._folder.name,
            vocabulary=engine.vocabulary,
            end_of_text=engine.end_of_text,
            tokenizer=tokens.StoredTokenizer(file=stored.name, pattern=self._data.tokenizer.pattern, fingerprint=engine.fingerprint),
            splits=splits,
            files=files,
        )
        with durable.writing(self._making / tokens.MANIFEST) as file:
            file.write(manifest.model_dump_json(indent=1).encode())
        durable.sync_folder(self._making)

    def _read(self) -> Iterator[tuple[int, str, int]]:
        """Every document with its source, and the bytes read so far."""
        read = 0

        def on_read(count: int) -> None:
            nonlocal read
            read += count

        for index, source in enumerate(self._sources):
            for file in source.files:
                for text in sources.documents(file, self._data, on_read):
                    yield index, text, read

    def _tell(self, stage: Stage, read: int) -> None:
        self._listener(Progress(min(read, self._total), self._total, self._documents, self._tokens, stage))


def _stored(path: Path) -> tokens.StoredFile:
    with path.open("rb") as file:
        return tokens.StoredFile(bytes=path.stat().st_size, sha256=hashlib.file_digest(file, "sha256").hexdigest())
