"""A local cache of remote files, block by block: of bounded size, shared by all processes of a host.

    <folder>/lock              shared by who copies out of the cache, exclusive for who changes it
    <folder>/used              bytes that blocks take, of all files together
    <folder>/<set>/NAME        the file itself, with holes where a block is not here
    <folder>/<set>/NAME.held   a byte a block: 0 not here, 1 here, 2 here and lately read
    <folder>/<set>/NAME.busy   who fetches a block holds a lock on its byte, so that no other process fetches it too

Blocks are fetched when they are read; ahead of that, where the reader knows what it will read; and one process fills the file from its
beginning, until all is here or the cache is full. When it is full, blocks that were not read lately lose their place (the clock of
operating systems: a second chance, no lists). A process that dies leaves nothing wrong: a block counts once its byte says so, and that
is set after its content.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import itertools
import os
import queue
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from plait.errors import PlaitError
from plait.store import blocks
from plait.store.blocks import BLOCK, Frame, Index
from plait.store.patience import Homes
from plait.store.protocol import Store

RUN = 16
"""Blocks that are fetched in one range."""
THREADS = 4
_AHEAD = 256
"""Blocks that may be on their way before they are needed."""
_NOW, _SOON, _SOMETIME, _LAST = 0, 1, 2, 3
"""What is fetched first: what is waited for, then what a reader will need, then what fills the cache."""
_LONG = 64 << 10
"""Bytes from which a span is read from the file: shorter ones are gathered from its memory map."""
_TAKE_OVER = 2.0
"""Seconds after which another process looks whether the one that fills has gone."""
_TIER_REST = 30.0
"""Seconds for which a shared cache that failed is left alone."""
_PUNCH_HOLE = 0x02 | 0x01  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE


class Cache:
    """A folder of so many bytes of blocks. Raises OSError where it cannot be written."""

    def __init__(self, folder: Path, limit: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._lock_path = str(folder / "lock")
        self.limit = max(limit, 4 * BLOCK)
        with self.changing():
            self._used = _mapped(folder / "used", 8).view(np.int64)
            self._used[0] = sum(int(np.count_nonzero(np.fromfile(held, np.uint8))) for held in folder.glob("*/*.held")) * BLOCK

    @property
    def used(self) -> int:
        return int(self._used[0])

    @property
    def full(self) -> bool:
        return self.used + BLOCK > self.limit

    def reading(self) -> contextlib.AbstractContextManager[None]:
        return self._locked(fcntl.LOCK_SH)

    def changing(self) -> contextlib.AbstractContextManager[None]:
        return self._locked(fcntl.LOCK_EX)

    def take(self, count: int) -> None:
        """Count blocks in, and make room for them. Only while `changing`."""
        self._used[0] += count * BLOCK
        over = self.used - self.limit
        if over > 0:
            self._evict(-(-over // BLOCK) + self.limit // BLOCK // 16)

    def _evict(self, count: int) -> None:
        """Free blocks: those not read since the clock passed last, then any."""
        for _ in range(3):
            for held_path in sorted(self.folder.glob("*/*.held")):
                held = np.memmap(held_path, np.uint8, "r+")
                victims = np.flatnonzero(held == 1)[:count]
                held[victims] = 0
                freed = _punch(held_path.with_suffix(""), victims, held)
                self._used[0] -= freed * BLOCK
                count -= freed
                if count <= 0:
                    return
            for held_path in self.folder.glob("*/*.held"):
                held = np.memmap(held_path, np.uint8, "r+")
                held[held == 2] = 1

    @contextlib.contextmanager
    def _locked(self, how: int) -> Iterator[None]:
        lock = self._opened_lock()  # of this call's own, since threads exclude each other too
        try:
            fcntl.flock(lock, how)
            yield
        finally:
            os.close(lock)

    def _opened_lock(self) -> int:
        """Whoever wiped the cache shall not stop who reads."""
        try:
            return os.open(self._lock_path, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:
            self.folder.mkdir(parents=True, exist_ok=True)
            return os.open(self._lock_path, os.O_RDWR | os.O_CREAT, 0o644)


class CachedFile:
    """A remote file, read through the cache.

    tier: a cache that hosts share, of frames by their checksums; what fails there is passed over. waiting: called now and then while the
    reader waits for a block.
    """

    def __init__(
        self,
        cache: Cache,
        path: Path,
        size: int,
        index: Index,
        homes: Homes,
        tier: Store | None = None,
        waiting: Callable[[str], None] = lambda what: None,
    ) -> None:
        self.size = size
        self._cache, self._path, self._index, self._homes = cache, path, index, homes
        self._tier, self._tier_rests_until = tier, 0.0
        self._waiting = waiting
        self._content = _mapped(path, size)
        self._file = os.open(path, os.O_RDWR)
        self._held = _mapped(path.with_name(f"{path.name}.held"), len(index))
        self._busy = os.open(path.with_name(f"{path.name}.busy"), os.O_RDWR | os.O_CREAT, 0o644)
        self._coming: dict[int, Future[dict[int, Frame]]] = {}
        self._lock = threading.Lock()
        self._asked: queue.PriorityQueue[tuple[int, int, range, Future[dict[int, Frame]]]] = queue.PriorityQueue()
        self._number = itertools.count()  # first come, first served, among what is as urgent
        self._filler: threading.Thread | None = None
        self._closed = threading.Event()
        weakref.finalize(self, _close, self._file, self._busy)

    def read(self, firsts_E: np.ndarray, length: int) -> np.ndarray:
        """Spans of `length` bytes that begin at `firsts_E`, as bytes_EL. Raises StorageError where they cannot be had."""
        blocks_E2 = np.stack([firsts_E, firsts_E + length - 1], axis=1) // BLOCK
        wanted = np.unique(np.concatenate([np.arange(low, high + 1) for low, high in np.unique(blocks_E2, axis=0)]))
        self._start()
        with self._cache.reading():
            if self._held[wanted].all():
                self._held[wanted] = 2
                return self._copied(firsts_E, length)
        futures = self._fetch([int(block) for block in wanted if not self._held[block]], _NOW)
        rows_EL = np.empty((len(firsts_E), length), np.uint8)
        for row_L, first in zip(rows_EL, firsts_E, strict=True):
            self._fill_row(row_L, int(first), futures)
        return rows_EL

    def ahead(self, firsts_E: np.ndarray, length: int) -> None:
        """Begin to fetch what these spans will need."""
        self._start()
        wanted = np.unique(np.concatenate([firsts_E, firsts_E + length - 1]) // BLOCK)
        absent = wanted[self._held[wanted] == 0]
        if len(absent) and len(self._coming) < _AHEAD:
            self._fetch([int(block) for block in absent[:_AHEAD]], _SOON)

    def close(self) -> None:
        """End what fetches, once it has done what is under way; the file's pages are given back with the last reference."""
        self._closed.set()
        for _ in range(THREADS):
            self._asked.put((_LAST, next(self._number), range(0), Future()))

    def complete(self) -> bool:
        return bool(self._held.all())

    def fill(self) -> None:
        """Fetch the file from its beginning, until all is here or the cache is full."""
        self._start()
        coming: deque[Future[dict[int, Frame]]] = deque()
        for first in range(0, len(self._index), RUN):
            if self._cache.full or self._closed.is_set():
                break
            absent = [block for block in range(first, min(first + RUN, len(self._index))) if not self._held[block]]
            coming.extend(dict.fromkeys(self._fetch(absent, _SOMETIME).values()))
            while len(coming) > 2 * THREADS:
                coming.popleft().result()
        for future in coming:
            future.result()

    def _fill_alone(self) -> None:
        """Fill, if no other process does; take over from one that is gone. What fails here, fails again for whoever reads."""
        lock = os.open(self._path.with_name(f"{self._path.name}.filling"), os.O_RDWR | os.O_CREAT, 0o644)
        while not self.complete() and not self._cache.full and not self._closed.is_set():
            with contextlib.suppress(BlockingIOError, PlaitError, OSError, RuntimeError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self.fill()
            self._closed.wait(_TAKE_OVER)
        os.close(lock)

    def _copied(self, firsts_E: np.ndarray, length: int) -> np.ndarray:
        """Spans of blocks that are all here."""
        if length < _LONG:
            gathered: np.ndarray = sliding_window_view(self._content, length)[firsts_E]
            return gathered
        rows_EL = np.empty((len(firsts_E), length), np.uint8)
        for row_L, first in zip(rows_EL, firsts_E, strict=True):
            os.preadv(self._file, [row_L.data], int(first))  # a fault a page of the map costs more than the copy
        return rows_EL

    def _fill_row(self, row_L: np.ndarray, first: int, futures: dict[int, Future[dict[int, Frame]]]) -> None:
        """A span out of one block or several, wherever each is."""
        at = 0
        for block in range(first // BLOCK, (first + len(row_L) - 1) // BLOCK + 1):
            low, high = max(first - block * BLOCK, 0), min(first + len(row_L) - block * BLOCK, BLOCK)
            self._fill_piece(row_L[at : at + high - low], block, low, futures)
            at += high - low

    def _fill_piece(self, piece: np.ndarray, block: int, low: int, futures: dict[int, Future[dict[int, Frame]]]) -> None:
        """A block that was here a moment ago may have lost its place: then it is fetched."""
        while block not in futures:
            with self._cache.reading():
                if self._held[block]:
                    piece[:] = self._copied(np.array([block * BLOCK + low]), len(piece))[0]
                    return
            futures |= self._fetch([block], _NOW)
        piece[:] = np.frombuffer(self._awaited(futures[block])[block], np.uint8, len(piece), low)

    def _awaited(self, future: Future[dict[int, Frame]]) -> dict[int, Frame]:
        while not wait([future], timeout=1).done:
            self._waiting(f"waits for {self._path.name} to be fetched")
        return future.result()

    def _start(self) -> None:
        """Threads that do not keep a process from ending: a server that is gone may be waited for without end."""
        if self._filler is None:
            for _ in range(THREADS):
                threading.Thread(target=self._serve, name="plait-fetch", daemon=True).start()
            self._filler = threading.Thread(target=self._fill_alone, name="plait-fill", daemon=True)
            self._filler.start()

    def _serve(self) -> None:
        while True:
            *_, run, future = self._asked.get()
            if not run:
                return
            try:
                future.set_result(self._fetch_run(run))
            except BaseException as error:
                future.set_exception(error)

    def _fetch(self, wanted: list[int], urgency: int) -> dict[int, Future[dict[int, Frame]]]:
        """Blocks on their way, those that were already with the rest; neighbours share a range."""
        with self._lock:
            fresh = [block for block in wanted if block not in self._coming]
            for run in _runs(fresh):
                future: Future[dict[int, Frame]] = Future()
                self._coming.update(dict.fromkeys(run, future))
                self._asked.put((urgency, next(self._number), run, future))
            return {block: self._coming[block] for block in wanted}

    def _fetch_run(self, run: range) -> dict[int, Frame]:
        try:
            with self._alone(run):
                here, absent = self._brought(run)
                if absent:
                    frames = self._frames(absent)
                    fetched = {block: self._index.unpacked(block, frame) for block, frame in frames.items()}
                    self._publish(fetched)
                    here |= fetched
                return here
        finally:
            with self._lock:
                for block in run:
                    self._coming.pop(block, None)

    def _brought(self, run: range) -> tuple[dict[int, Frame], list[int]]:
        """What another process brought meanwhile, and what is still to be fetched."""
        with self._cache.reading():
            here: dict[int, Frame] = {
                block: self._content[block * BLOCK : (block + 1) * BLOCK].tobytes() for block in run if self._held[block]
            }
        return here, [block for block in run if block not in here]

    def _frames(self, wanted: list[int]) -> dict[int, Frame]:
        """Frames from the tier, or from home; those from home go to the tier."""
        frames: dict[int, Frame] = {**self._from_tier(wanted)}
        name = self._path.name
        for run in _runs([block for block in wanted if block not in frames]):
            found = self._homes.ask(lambda home, run=run: blocks.fetch(home, name, self._index, run.start, run.stop), name)  # type: ignore[misc]
            fetched = dict(zip(run, found, strict=True))
            self._to_tier(fetched)
            frames |= fetched
        return frames

    def _from_tier(self, wanted: list[int]) -> dict[int, Frame]:
        found: dict[int, Frame] = {}
        with self._tier_trouble():
            for block in wanted if self._tier_serves() else ():
                frame = self._tier.find(self._index.checksum(block))  # type: ignore[union-attr]
                if frame is not None and self._index.fits(block, frame):
                    found[block] = frame
        return found

    def _to_tier(self, frames: dict[int, Frame]) -> None:
        with self._tier_trouble():
            for block, frame in frames.items() if self._tier_serves() else ():
                self._tier.write(self._index.checksum(block), bytes(frame))  # type: ignore[union-attr]

    def _tier_serves(self) -> bool:
        return self._tier is not None and time.monotonic() >= self._tier_rests_until

    @contextlib.contextmanager
    def _tier_trouble(self) -> Iterator[None]:
        """A cache is no reason to fail."""
        try:
            yield
        except PlaitError as error:
            with self._lock:
                known, self._tier_rests_until = not self._tier_serves(), time.monotonic() + _TIER_REST
            if not known:
                self._homes.tell(f"{error}; going on without this cache for a while")

    def _publish(self, fetched: dict[int, Frame]) -> None:
        with self._cache.changing():
            new = [block for block in fetched if not self._held[block]]
            self._cache.take(len(new))
            for run in _runs(new):
                _write(self._file, [fetched[block] for block in run], run.start * BLOCK)
                self._held[run.start : run.stop] = 2

    @contextlib.contextmanager
    def _alone(self, run: range) -> Iterator[None]:
        """The only process that fetches these blocks. The kernel may see a circle where other threads will let go: then two fetch them."""
        with contextlib.suppress(OSError):
            fcntl.lockf(self._busy, fcntl.LOCK_EX, len(run), run.start)
        try:
            yield
        finally:
            fcntl.lockf(self._busy, fcntl.LOCK_UN, len(run), run.start)


def _runs(wanted: list[int]) -> Iterator[range]:
    """Neighbours together, RUN at most."""
    start = 0
    for place in range(1, len(wanted) + 1):
        if place == len(wanted) or wanted[place] != wanted[place - 1] + 1 or place - start == RUN:
            yield range(wanted[start], wanted[place - 1] + 1)
            start = place


def _close(*files: int) -> None:
    for file in files:
        os.close(file)


def _write(file: int, parts: list[Frame], first: int) -> None:
    """In one call; seen through the map at once, and without a fault a page. Raises OSError."""
    if os.pwritev(file, parts, first) != sum(map(len, parts)):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _mapped(path: Path, size: int) -> np.ndarray:
    """A file of so many bytes, shared; made of zeros where it is not there yet."""
    with path.open("ab") as file:
        if file.tell() != size:
            file.truncate(size)
    mapped: np.ndarray = np.memmap(path, np.uint8, "r+", shape=(size,))
    return mapped


def _punch(path: Path, victims: np.ndarray, held: np.ndarray) -> int:
    """Give the space of blocks back; where the file system has no holes, that of the whole file. Returns the blocks freed."""
    if not len(victims):
        return 0
    with path.open("r+b") as file:
        for block in victims:
            if _libc.fallocate(file.fileno(), _PUNCH_HOLE, ctypes.c_int64(int(block) * BLOCK), ctypes.c_int64(BLOCK)):
                size, others = os.fstat(file.fileno()).st_size, int(np.count_nonzero(held))
                file.truncate(0)
                file.truncate(size)
                held[:] = 0
                return len(victims) + others
    return len(victims)


_libc = ctypes.CDLL(None, use_errno=True)
