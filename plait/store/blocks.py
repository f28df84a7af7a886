"""Blocks: how a large file is kept in a store, so that any part of it can be fetched, checked and kept alone.

    token file    ├ 256 KiB ┼ 256 KiB ┼ 256 KiB ┼ rest ┤
                       │ zstd     │         │        │          as it is, where that is not shorter or not wanted
    NAME.blocks   ├ frame ┼ frame ┼ frame ┼ frame ┤            at rest and on the wire
    NAME.index    length and checksum of each frame             20 bytes a block
    files.json    {NAME: bytes, sha256, and those of its index}  written last: what it does not name is not there

A frame is checked before it is unpacked, wherever it came from: the store, a cache of another host, the backup. A frame as long as its
block is the block. The frames of a file follow each other, so that many blocks in a row are one range.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import tempfile
import threading
from collections.abc import Iterator, Set
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import zstandard

from plait.errors import NotStored, StorageError, StorageFailed
from plait.store import durable, trouble
from plait.store.patience import CutShort, Damaged, insistently
from plait.store.protocol import Store

BLOCK = 256 << 10
FILES = "files.json"
_FORMAT = 1
_INDEX = np.dtype([("length", "<u4"), ("checksum", "V16")])
_LEVEL = 1  # of tokens as small as 3, and unpacked half as fast again
_MANY = 32  # blocks in one range


Frame = bytes | memoryview

_threads = threading.local()


@dataclass(frozen=True)
class Kept:
    """A file that is kept in blocks. sha256: of the file; index_sha256: of its index."""

    bytes: int
    sha256: str
    index_sha256: str

    @property
    def blocks(self) -> int:
        return -(-self.bytes // BLOCK)


class Index:
    """Where each frame of a file of `size` bytes is, and its checksum."""

    def __init__(self, content: bytes, size: int) -> None:
        self.content = content
        self._size = size
        entries = np.frombuffer(content, _INDEX)
        self._checksums = entries["checksum"]
        self._ends = np.cumsum(entries["length"], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends)

    @property
    def size(self) -> int:
        """Bytes of all frames."""
        return int(self._ends[-1]) if len(self) else 0

    def span(self, block: int) -> tuple[int, int]:
        """The bytes [first, end) of a frame."""
        return (int(self._ends[block - 1]) if block else 0), int(self._ends[block])

    def unpacked(self, block: int, frame: Frame) -> Frame:
        """The content of a frame that has been checked."""
        size = min(BLOCK, self._size - block * BLOCK)
        return frame if len(frame) == size else _unpack(frame, size)

    def checksum(self, block: int) -> str:
        return bytes(self._checksums[block]).hex()

    def fits(self, block: int, frame: Frame) -> bool:
        """Whether a frame is the one that was written."""
        return checksum(frame).hex() == self.checksum(block)


def checksum(frame: Frame) -> bytes:
    return hashlib.sha256(frame).digest()[:16]  # processors have instructions for it: twice blake2b's speed


def fetch(store: Store, name: str, index: Index, first: int, end: int) -> list[Frame]:
    """The frames [first, end) in one read, as parts of what came. Raises NotStored, CutShort, Damaged, StorageFailed."""
    low, high = index.span(first)[0], index.span(end - 1)[1]
    url = store.url(blocks_name(name))
    read = store.read(blocks_name(name), low, high)
    if len(read) < high - low:
        _check_length(store, name, index)
    content = memoryview(trouble.whole(url, read, low, high))
    frames: list[Frame] = [content[index.span(block)[0] - low : index.span(block)[1] - low] for block in range(first, end)]
    for block, frame in enumerate(frames, first):
        _check(index, block, frame, url)
    return frames


def keep(store: Store, folder: Path, names: list[str], compress: bool = True) -> None:
    """Put files into a store, whole or not at all; what stands there already of the same content is left alone."""
    kept = {}
    for name in names:
        kept[name] = _keep_file(store, folder / name, name, compress)
    content = json.dumps({"format": _FORMAT, "block": BLOCK, "files": {name: asdict(file) for name, file in kept.items()}}, indent=1)
    insistently(lambda: store.write(FILES, content.encode()))


def mirror(source: Store, target: Store) -> None:
    """Copy what a store keeps to another, checking it on the way."""
    for name, file in read_files(source).items():
        _copy(source, target, name, file)
    insistently(lambda: target.write(FILES, source.read(FILES)))


def mend(source: Store, target: Store, names: Set[str] | None = None) -> Iterator[str]:
    """Have a store keep what another does: what it has not, or not as it was written, is written again, checked on the way; what is said of
    each such file. names: of the files that are looked at, all when None.

    Raises StorageError, one that says so where the target keeps something else; StorageFailed, Damaged.
    """
    files = read_files(source)
    _check_same(target, files)
    for name in files if names is None else names & files.keys():
        if sound(target, name, files[name]):
            continue
        if source is target or not sound(source, name, files[name]):
            raise StorageError(f"{target.url(name)}: is not what was written, and there is no sound copy of it")
        yield f"{target.url(name)}: is not what was written; writing it again from {source.url(name)}"
        _copy(source, target, name, files[name])
        yield f"{target.url(name)}: is whole again"
    if target.find(FILES) != source.read(FILES):
        insistently(lambda: target.write(FILES, source.read(FILES)))


def sound(store: Store, name: str, file: Kept) -> bool:
    """Whether a store has a file as it was written, all of it being read. Raises StorageError where it may not be read, StorageFailed where
    nobody answers."""
    try:
        index = read_index(store, name, file)
        for first in range(0, len(index), _MANY):
            _fetched_again(store, name, index, first, min(first + _MANY, len(index)))
        return store.stat(blocks_name(name)) is not None
    except (NotStored, CutShort, Damaged):
        return False


def download(store: Store, name: str, file: Kept, path: Path) -> None:
    """Bring a file here, which appears whole. Raises NotStored, StorageFailed, Damaged."""
    index = read_index(store, name, file)
    whole = hashlib.sha256()
    with durable.writing(path) as target:
        for first in range(0, len(index), _MANY):
            for block, frame in enumerate(fetch(store, name, index, first, min(first + _MANY, len(index))), first):
                content = index.unpacked(block, frame)
                whole.update(content)
                target.write(content)
        if whole.hexdigest() != file.sha256:
            raise Damaged(f"{store.url(name)}: is not what was written: its checksum differs")


def holds(store: Store) -> bool:
    return store.stat(FILES) is not None


def read_files(store: Store) -> dict[str, Kept]:
    """What a store keeps. Raises NotStored, Damaged."""
    content = store.read(FILES)
    try:
        told = json.loads(content)
        files = {name: Kept(**file) for name, file in told["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise Damaged(f"{store.url(FILES)}: is not what was written") from None
    if told["format"] != _FORMAT or told["block"] != BLOCK:
        raise StorageError(f"{store.url(FILES)}: has format {told['format']}, and this plait reads format {_FORMAT}")
    if strangers := [name for name in files if Path(name).name != name]:
        raise StorageError(f"{store.url(FILES)}: {strangers[0]!r} is no name of a file")
    return files


def read_index(store: Store, name: str, file: Kept) -> Index:
    """Raises NotStored, StorageFailed, Damaged."""
    content = store.read(index_name(name))
    if hashlib.sha256(content).hexdigest() != file.index_sha256:
        raise Damaged(f"{store.url(index_name(name))}: is not what was written: its checksum differs")
    return Index(content, file.bytes)


def blocks_name(name: str) -> str:
    return f"{name}.blocks"


def index_name(name: str) -> str:
    return f"{name}.index"


def _check_same(store: Store, files: dict[str, Kept]) -> None:
    """Raises StorageError: it keeps other files than these, sound or not."""
    with contextlib.suppress(NotStored, Damaged):
        if read_files(store) != files:
            raise StorageError(f"{store.url(FILES)}: names other files than the backup's, which cannot stand for them")


def _fetched_again(store: Store, name: str, index: Index, first: int, end: int) -> None:
    """Twice, where need be: a wire may damage too. Raises as `fetch`."""
    try:
        fetch(store, name, index, first, end)
    except StorageFailed:
        fetch(store, name, index, first, end)


def _copy(source: Store, target: Store, name: str, file: Kept) -> None:
    index = read_index(source, name, file)
    with tempfile.TemporaryDirectory() as folder:
        packed = Path(folder) / "blocks"
        insistently(lambda: source.download(blocks_name(name), packed))
        with packed.open("rb") as frames:
            for block in range(len(index)):
                first, end = index.span(block)
                _check(index, block, frames.read(end - first), source.url(blocks_name(name)))
        insistently(lambda: target.upload(packed, blocks_name(name)))
    insistently(lambda: target.write(index_name(name), index.content))


def _check_length(store: Store, name: str, index: Index) -> None:
    """Whether a read was cut short, or what is there was."""
    entry = store.stat(blocks_name(name))
    if entry is not None and entry.bytes != index.size:
        raise CutShort(f"{store.url(blocks_name(name))}: has {entry.bytes:,} bytes, not {index.size:,}: it was cut short")


def _check(index: Index, block: int, frame: Frame, url: str) -> None:
    if not index.fits(block, frame):
        raise Damaged(f"{url}: block {block} is not what was written: its checksum differs")


def _unpack(frame: Frame, size: int) -> bytes:
    if not hasattr(_threads, "decompressor"):
        _threads.decompressor = zstandard.ZstdDecompressor()  # of each thread, kept: making one costs as much as a block
    content: bytes = _threads.decompressor.decompress(frame, max_output_size=size)
    return content


def _keep_file(store: Store, path: Path, name: str, compress: bool) -> Kept:
    whole = hashlib.sha256()
    entries = []
    with tempfile.NamedTemporaryFile(prefix="plait-") as packed, path.open("rb") as source:
        for frame in _frames(source, whole, compress):
            packed.write(frame)
            entries.append((len(frame), checksum(frame)))
        packed.flush()
        insistently(lambda: store.upload(Path(packed.name), blocks_name(name)))
    index = np.array(entries, _INDEX).tobytes()
    insistently(lambda: store.write(index_name(name), index))
    return Kept(path.stat().st_size, whole.hexdigest(), hashlib.sha256(index).hexdigest())


def _frames(source: BinaryIO, whole: hashlib._Hash, compress: bool) -> Iterator[bytes]:
    compressor = zstandard.ZstdCompressor(level=_LEVEL)
    while content := source.read(BLOCK):
        whole.update(content)
        packed = compressor.compress(content) if compress else content
        yield min(packed, content, key=len)
