"""Prepared data that is kept in a store, and its backup.

    data.prepared = "s3://bucket/prepared"                  s3://bucket/prepared/<request>/      token files in blocks, files.json last
    data.backup = "gs://other/prepared"                     gs://other/prepared/<request>/       the same
    data.cache = { folder = "~/.cache/plait", gib = 16 }    <folder>/<request>-<content>/        small files whole, token files by block
                                                            <folder>/prepared/                   where it is prepared before it is kept

What is here is found by the request, as in a folder. Small files are fetched whole when the data is opened; token files are read through
the cache (plait.store.cache), from the store or, where that fails, from the backup. A folder of prepared data that is lost or damaged is
restored from the backup; what a store has lost, or not as it was written, is written to it again from there as soon as somebody finds out.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import re
import shutil
import threading
from collections.abc import Callable, Iterator, Set
from dataclasses import asdict
from functools import partial
from pathlib import Path

from plait import spec
from plait.data.manifest import MANIFEST, check_content, check_size, read_manifest
from plait.errors import DataError, NotStored, StorageError, StorageFailed
from plait.store import Store, at, blocks, durable, is_url
from plait.store.cache import Cache, CachedFile
from plait.store.patience import Homes, to_stderr

_BY_BLOCK = re.compile(r"(train|validation|test)-\d+\.npy")

waiting: Callable[[str], None] = lambda what: None  # noqa: E731
"""Called now and then while a reader waits for a block; a worker says so to its pulse."""


def place(data: spec.Data) -> Path:
    """The folder where data is prepared: its own, or one in the cache."""
    return _cache_folder(data) / "prepared" if is_url(data.prepared) else Path(data.prepared)


def find(data: spec.Data, request: str) -> Path | None:
    """The folder, here, of what was prepared for a request and kept: fetched or restored where that is due; None where there is none.

    Raises StorageError: no store answers, and waiting would not help.
    """
    if not is_url(data.prepared):
        return _restored(data, request)
    damaged: set[str] = set()
    homes = _homes(data, request, damaged.add)
    try:
        files = homes.ask(blocks.read_files, blocks.FILES)
    except NotStored:
        return None
    folder = _fetched(data, request, homes, files)
    if damaged:
        _mend(data, request, None if blocks.FILES in damaged else damaged)
    return folder


def keep(data: spec.Data, folder: Path) -> None:
    """Put a folder that has been prepared where the run file says that it is kept, and into the backup."""
    urls = [data.prepared] if is_url(data.prepared) else []
    for url in [*urls, *([data.backup] if data.backup else [])]:
        home = at(f"{url.rstrip('/')}/{folder.name}")
        if not blocks.holds(home):
            names = sorted(path.name for path in folder.iterdir() if path.is_file() and path.name != MANIFEST)
            blocks.keep(home, folder, [*names, MANIFEST], data.compress)
        home.close()
    if urls:
        shutil.rmtree(folder)


def ensure(data: spec.Data, folder: Path) -> None:
    """Fetch the small files again where the cache was wiped meanwhile."""
    if is_url(data.prepared) and not (folder / MANIFEST).exists():
        request = folder.name.partition("-")[0]
        if find(data, request) != folder:
            raise DataError(f"data.prepared: {data.prepared}: what was kept for {request} is no longer what this run began with")


def by_block(data: spec.Data | None, folder: Path, name: str) -> bool:
    """Whether a file is read through the cache."""
    return data is not None and is_url(data.prepared) and _BY_BLOCK.fullmatch(name) is not None


def cached(data: spec.Data, folder: Path, name: str) -> CachedFile:
    """A file that is read through the cache."""
    settings = data.cache or spec.Cache()
    files = _read_kept(folder)
    index = blocks.Index((folder / blocks.index_name(name)).read_bytes(), files[name].bytes)
    cache = Cache(_cache_folder(data), int(settings.gib * 2**30))
    tier = at(settings.tier) if settings.tier else None
    request = folder.name.partition("-")[0]
    homes = _homes(data, request, partial(_mend_meanwhile, data, request, folder))
    return CachedFile(cache, folder / name, files[name].bytes, index, homes, tier, lambda what: waiting(what))


def _cache_folder(data: spec.Data) -> Path:
    return Path((data.cache or spec.Cache()).folder).expanduser()


def verified(data: spec.Data, request: str) -> Iterator[str]:
    """Read all that is kept for a request, in its home and in its backup, and mend each from the other; what is said of it. Raises
    DataError, StorageError: damaged, and no sound copy is there; StorageFailed."""
    if not is_url(data.prepared):
        yield _verified_folder(data, request)
    stores = _stores(data, request)[0 if is_url(data.prepared) else 1 :]
    for home, other in itertools.permutations(stores, 2):
        if blocks.holds(other):
            yield from blocks.mend(other, home)
    for home in stores:
        if len(stores) == 1:
            yield from blocks.mend(home, home)
        yield f"{home.url()}: is as it was written"
        home.close()


def _verified_folder(data: spec.Data, request: str) -> str:
    folder = Path(data.prepared) / request
    try:
        check_content(folder, read_manifest(folder))
    except DataError as error:
        if data.backup is None:
            raise
        to_stderr(str(error))
        _restore(data, request, folder)
        check_content(folder, read_manifest(folder))
        return f"{folder}: was restored from the backup"
    return f"{folder}: is as it was written"


def _stores(data: spec.Data, request: str) -> list[Store]:
    """The home, and the backup where there is one."""
    return [at(f"{url.rstrip('/')}/{request}") for url in (data.prepared, data.backup) if url is not None]


def _homes(data: spec.Data, request: str, damaged: Callable[[str], None]) -> Homes:
    return Homes(_stores(data, request), damaged=damaged)


_mending: set[tuple[str, str, str]] = set()
"""Files that this process mends, or could not."""


def _mend_meanwhile(data: spec.Data, request: str, folder: Path, name: str) -> None:
    """In a thread; one process of a host does it, while all read the backup."""
    this = (data.prepared, request, name)
    if this in _mending:
        return
    _mending.add(this)

    def mend() -> None:
        with contextlib.suppress(BlockingIOError), durable.locked(folder / f"{name}.mending", wait=False):
            if _mend(data, request, {name}):
                _mending.discard(this)

    threading.Thread(target=mend, name="plait-mend", daemon=True).start()


def _mend(data: spec.Data, request: str, names: Set[str] | None) -> bool:
    """Write what the first home lost, or has not as it was written, from the backup; whether it has it now. Where it cannot be written to
    the backup goes on being read, and this is tried at the next start."""
    home, backup = _stores(data, request)
    try:
        if blocks.holds(home):
            for line in blocks.mend(backup, home, names):
                to_stderr(line)
        else:
            to_stderr(f"{home.url()}: is missing; writing it back from the backup, {backup.url()}")
            blocks.mirror(backup, home)
            to_stderr(f"{home.url()}: is there again")
        return True
    except (StorageError, StorageFailed) as error:
        to_stderr(f"{error}; {home.url()} is left as it is until the next start")
        return False
    finally:
        home.close()
        backup.close()


def _fetched(data: spec.Data, request: str, homes: Homes, files: dict[str, blocks.Kept]) -> Path:
    """The folder in the cache, with all that is not read by block."""
    told = json.dumps({name: asdict(file) for name, file in files.items()}, indent=1).encode()
    folder = _cache_folder(data) / f"{request}-{hashlib.sha256(told).hexdigest()[:8]}"
    if (folder / MANIFEST).exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    with durable.locked(folder / "fetching"):
        for name, file in sorted(files.items(), key=lambda item: item[0] == MANIFEST):
            if by_block(data, folder, name):
                index = homes.ask(lambda home, n=name, f=file: blocks.read_index(home, n, f), name)  # type: ignore[misc]
                _write(folder / blocks.index_name(name), index.content)
            else:
                if name == MANIFEST:
                    _write(folder / blocks.FILES, told)
                homes.ask(lambda home, n=name, f=file: blocks.download(home, n, f, folder / n), name)  # type: ignore[misc]
    return folder


def _restored(data: spec.Data, request: str) -> Path | None:
    """A folder of this host's, out of the backup where it is gone or not whole."""
    folder = Path(data.prepared) / request
    if data.backup is None:
        return folder if folder.exists() else None
    return folder if _whole(folder) else _restore(data, request, folder)


def _restore(data: spec.Data, request: str, folder: Path) -> Path | None:
    assert data.backup is not None
    backup = Homes([at(f"{data.backup.rstrip('/')}/{request}")])
    try:
        files = backup.ask(blocks.read_files)
    except NotStored:
        return folder if folder.exists() else None
    to_stderr(f"{folder}: is {'damaged' if folder.exists() else 'missing'}; restoring it from the backup")
    with durable.locked(folder.with_name(f"{request}.lock")):
        restoring = folder.with_name(f"{request}.restoring")
        shutil.rmtree(restoring, ignore_errors=True)
        restoring.mkdir(parents=True)
        for name, file in files.items():
            backup.ask(lambda home, n=name, f=file: blocks.download(home, n, f, restoring / n))  # type: ignore[misc]
        shutil.rmtree(folder, ignore_errors=True)
        durable.rename(restoring, folder)
    return folder


def _whole(folder: Path) -> bool:
    """Whether each file of a folder has the size that the manifest says."""
    try:
        for name, file in read_manifest(folder).files.items():
            check_size(folder, name, file)
    except DataError:
        return False
    return True


def _read_kept(folder: Path) -> dict[str, blocks.Kept]:
    try:
        told = json.loads((folder / blocks.FILES).read_bytes())
        return {name: blocks.Kept(**file) for name, file in told.items()}
    except (OSError, ValueError, TypeError) as error:
        raise StorageError(f"{folder / blocks.FILES}: cannot be read: {error}; remove {folder} and it is fetched again") from None


def _write(path: Path, content: bytes) -> None:
    with durable.writing(path) as file:
        file.write(content)
