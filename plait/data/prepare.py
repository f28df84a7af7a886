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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from plait import spec
from plait.data import chat, fetched, kept, manifest, sources, vocabulary
from plait.data.hashes import Hashes
from plait.data.preparation import Preparation
from plait.data.progress import Listener, Progress
from plait.data.sources import Source
from plait.data.tokens import Prepared
from plait.errors import DataError
from plait.spec.split import SOURCE
from plait.store import durable

__all__ = ["Listener", "Progress", "find", "prepare"]


def find(data: spec.Data) -> Prepared | None:
    """The folder that was prepared for these settings and this very content, if it stands.

    Raises DataError: the corpus cannot be read, the folder is corrupt.
    """
    prepared = kept.place(data)
    if not prepared.is_dir():
        return None
    here = fetched.here(data, prepared)
    return _opened(data, _request(here, sources.resolve(here), Hashes(prepared)))


def prepare(data: spec.Data, *, listener: Listener = lambda progress: None) -> Prepared:
    """Find what was prepared, or prepare it; a preparation that was cut off goes on where it was.

    Raises DataError: a mistake in the corpus or the tokenizer, no space left. WorkerFailed: a process died.
    """
    prepared = kept.place(data)
    with fetched.named(prepared):
        here = fetched.here(data, prepared)
        found = sources.resolve(here)
        with _space(prepared, found, here):
            return _prepared(data, here, found, prepared, listener)


def _prepared(data: spec.Data, here: spec.Data, found: list[Source], prepared: Path, listener: Listener) -> Prepared:
    """data: as the run file has it; here: with what it names brought here."""
    prepared.mkdir(parents=True, exist_ok=True)
    _sum(prepared, found, listener)
    folder = prepared / _request(here, found, Hashes(prepared))
    if (ready := _opened(data, folder.name)) is not None:
        fetched.bound(data, prepared, sources.read_paths(found))
        return ready
    with durable.locked(prepared / f"{folder.name}.lock"):
        if not folder.exists():
            fetched.here(data, prepared, whole=True)
            Preparation(here, found, folder, listener).run(lambda: _request(here, found, Hashes(prepared)) == folder.name)
        kept.keep(data, folder)
    made = _opened(data, folder.name)
    assert made is not None
    fetched.bound(data, prepared, sources.read_paths(found))
    return made


def _opened(data: spec.Data, request: str) -> Prepared | None:
    folder = kept.find(data, request)
    return None if folder is None else Prepared.open(folder, data)


def _sum(prepared: Path, found: list[Source], listener: Listener) -> None:
    """The checksums of the source files, with progress."""
    total, done = sources.size(found), 0

    def on_read(count: int) -> None:
        nonlocal done
        done += count
        listener(Progress(done, total, 0, 0, "reading"))

    Hashes(prepared).of(sources.read_paths(found), on_read)


def _request(data: spec.Data, found: list[Source], hashes: Hashes) -> str:
    """What is asked for, as a name: content and settings, not paths, names or weights."""
    learned = data.tokenizer
    special = vocabulary.special_tokens(data.objective)[1:]
    trained = " ".join(["train", str(learned.train), *special])
    told = vocabulary.fingerprint(Path(learned.file), learned.pattern) if learned.file else trained
    sums = hashes.of(sources.read_paths(found))
    content = [[[sums[file.path], file.format] for file in source.files] for source in found]
    shares = {"validation": data.split.validation, "test": data.split.test}
    asked = [manifest.FORMAT, content, data.field, data.separator, shares, told, *_besides(data, found, hashes)]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]


def _besides(data: spec.Data, found: list[Source], hashes: Hashes) -> list[Any]:
    """What else shapes the folder, where it is asked for: folders of those who never asked keep their names."""
    split = data.split.model_dump(exclude_defaults=True, exclude={"validation", "test"})
    settings: dict[str, Any] = {"split": split, "numeric": data.numbers, "largest": data.largest}
    if data.chat is not None:
        settings["chat"] = [data.chat.model_dump(exclude={"template", "pack"}), chat.template_of(data.chat)]
    settings |= {
        "broken": None if data.broken == "fail" else data.broken,
        "clean": data.clean and data.clean.model_dump(exclude={"against"}),
    }
    if data.clean is not None and data.clean.against:
        settings["against"] = sorted(hashes.of([file.path for file in sources.files(data.clean.against)]).values())
    if any(file.split for file in sources.every_file(found)):
        settings["told"] = [file.split for file in sources.every_file(found)]
    indices = [file.path.with_suffix(".idx") for file in sources.every_file(found) if file.format == "bin"]
    if indices := [path for path in indices if path.exists()]:
        settings["indices"] = list(hashes.of(indices).values())
    if data.translates:
        sums = hashes.of(sources.read_paths(found))
        settings["pairs"] = [[file.target and sums[file.target], file.sides, file.prefix] for file in sources.every_file(found)]
    if data.objective.labelled:
        settings["objective"] = data.objective.model_dump(exclude=set(data.objective.MADE), exclude_none=True)
    if data.split.by == SOURCE:
        settings["names"] = [source.name for source in found]
    asked = {name: setting for name, setting in settings.items() if setting}
    return [asked] if asked else []


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
    texts = sum(
        os.path.getsize(file.path) * (4 if file.path.suffix in (".gz", ".zst", ".parquet") else 1) for file in sources.every_file(found)
    )
    return 2 * texts / 3 * (2 if data.tokenizer.train and data.tokenizer.train <= 1 << 16 else 4)
