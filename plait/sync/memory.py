"""Memory that processes of one host share: without a name, sealed.

    owner                                             reader
      makes it, seals it, writes    ── number, fd ──►   opens /proc/<owner>/fd/<fd>, checks the seals, maps it
      may write there again         ◄── released ───    has read it

It has no name in any file system: nothing has to remove it, and it is gone with the last process that maps it, however that ended. The
small /dev/shm of a container does not bound it. The seal keeps its size, so that no reader dies of SIGBUS because its owner cut it off.
A message says only which segment it is: where tensors lie in it follows from their shapes, and its size is what the kernel says.
"""

from __future__ import annotations

import fcntl
import itertools
import mmap
import os
import secrets
import weakref
from collections import OrderedDict
from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import Tensor

NAME = "plait-segment"
MOST_MAPPED = 32
"""Segments of one owner that a reader keeps mapped: each takes a file descriptor."""


class Unshared(ValueError):
    """What was named is no sealed memory that this process can map."""


class Segment:
    """Memory of this process. holders: those who have been told of it and have not released it; readers: those who have mapped it."""

    _numbers = itertools.count(1)

    def __init__(self, size: int) -> None:
        self.size = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        self.number = next(self._numbers)
        self.fd = os.memfd_create(NAME, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        weakref.finalize(self, os.close, self.fd)
        os.posix_fallocate(self.fd, 0, self.size)  # where memory is short it fails here, not by a signal while it is written
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        self.bytes_N = _mapped(self.fd, self.size)
        self.holders: set[str] = set()
        self.readers: set[str] = set()


class Segments:
    """An owner's segments, each free again when all its holders have released it."""

    def __init__(self) -> None:
        self._segments: dict[int, Segment] = {}

    @property
    def numbers(self) -> list[int]:
        return list(self._segments)

    @property
    def size(self) -> int:
        """Bytes of all segments."""
        return sum(segment.size for segment in self._segments.values())

    def fits(self, size: int) -> bool:
        """Whether a free segment is large enough."""
        return any(segment.size >= size for segment in self._free())

    def take(self, size: int, holders: Collection[str]) -> Segment:
        """A segment of at least `size` bytes, if possible one that its holders have mapped before.

        A new one takes the place of all free ones, since these were too small.
        """
        fitting = [segment for segment in self._free() if segment.size >= size]
        if not fitting:
            for small in self._free():
                del self._segments[small.number]
            fitting = [Segment(size)]
        segment = min(fitting, key=lambda segment: (len(set(holders) - segment.readers), segment.size))
        self._segments[segment.number] = segment
        segment.holders.update(holders)
        segment.readers.update(holders)
        return segment

    def release(self, number: Any, holder: str) -> bool:
        """Whether `holder` held that segment."""
        segment = self._segments.get(number) if type(number) is int else None
        if segment is None or holder not in segment.holders:
            return False
        segment.holders.remove(holder)
        return True

    def held(self, holder: str) -> int:
        """How many segments the holder has not released."""
        return sum(holder in segment.holders for segment in self._segments.values())

    def forget(self, holder: str) -> None:
        """The holder is gone."""
        for segment in self._segments.values():
            segment.holders.discard(holder)
            segment.readers.discard(holder)

    def _free(self) -> list[Segment]:
        return [segment for segment in self._segments.values() if not segment.holders]


class Mappings:
    """Another process's segments as this one has mapped them: the latest MOST_MAPPED."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._mapped: OrderedDict[int, Tensor] = OrderedDict()

    def open(self, number: int, fd: int) -> Tensor:
        """Its bytes. Raises Unshared."""
        if number not in self._mapped:
            self._mapped[number] = _open(self._pid, fd)
        self._mapped.move_to_end(number)
        if len(self._mapped) > MOST_MAPPED:
            self._mapped.popitem(last=False)
        return self._mapped[number]

    def keep(self, numbers: Iterable[Any]) -> None:
        """Unmap all others: their owner has let them go. Tensors that lie there live on."""
        kept = {number for number in numbers if type(number) is int}
        for number in [number for number in self._mapped if number not in kept]:
            del self._mapped[number]

    def clear(self) -> None:
        self._mapped.clear()


class Proof:
    """Shows that two processes see the same memory: one offers where random bytes lie, the other looks there.

    In another host or process namespace the number of a process means another, or none.
    """

    def __init__(self) -> None:
        self._segment = Segment(32)
        self._word = secrets.token_bytes(32)
        self._segment.bytes_N[:32] = torch.frombuffer(bytearray(self._word), dtype=torch.uint8)

    def offer(self) -> list[Any]:
        return [os.getpid(), self._segment.fd, self._word.hex()]


def proof() -> Proof | None:
    """None where there is no such memory: it takes Linux."""
    try:
        return Proof() if hasattr(os, "memfd_create") and os.path.isdir("/proc/self/fd") else None
    except OSError:
        return None


def seen(offer: Any) -> bool:
    """Whether this process sees what another has offered."""
    match offer:
        case [int(pid), int(fd), str(word)] if len(word) == 64:
            try:
                return bytes(_open(pid, fd)[:32].tolist()).hex() == word
            except Unshared:
                return False
    return False


def lives(offer: list[Any]) -> bool:
    """Whether the process of an offer that was seen still runs. (A dead one that nobody has waited for has no open files.)"""
    return os.path.lexists(f"/proc/{offer[0]}/fd/{offer[1]}")


def _open(pid: int, fd: int) -> Tensor:
    try:
        looking = os.open(f"/proc/{int(pid)}/fd/{int(fd)}", os.O_PATH | os.O_CLOEXEC)
    except (OSError, OverflowError) as error:
        raise Unshared("its memory cannot be seen from here") from error
    try:
        return _reopen(f"/proc/self/fd/{looking}")
    except OSError as error:
        raise Unshared(f"its memory cannot be mapped: {error.strerror}") from error
    finally:
        os.close(looking)


def _reopen(path: str) -> Tensor:
    # A look at the path first: to open whatever a peer names might wait (a pipe) or do something (a device).
    if not os.readlink(path).startswith(f"/memfd:{NAME}"):
        raise Unshared("what it calls its memory is something else")
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        if not fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK:
            raise Unshared("its memory is not sealed")
        size = os.fstat(fd).st_size
        if not size:
            raise Unshared("its memory is empty")
        return _mapped(fd, size)
    finally:
        os.close(fd)


def _mapped(fd: int, size: int) -> Tensor:
    # The tensor holds the mapping: it is unmapped with the last tensor that lies there.
    return torch.frombuffer(mmap.mmap(fd, size), dtype=torch.uint8)
