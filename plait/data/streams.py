"""Files as streams of bytes: plain, gzip or zstd, read block by block.

    path.jsonl.zst --> blocks --> decompressed --> cut at a separator --> one piece of bytes at a time

A stream that ends early is an error here, never a shorter corpus.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Protocol

import zstandard

from plait.data.broken import Unusable
from plait.errors import DataError

BLOCK = 1 << 20
COMPRESSIONS = (".gz", ".zst")


def read(path: Path, on_read: Callable[[int], None] = lambda count: None) -> Iterator[bytes]:
    """The blocks of a file's content, decompressed; `on_read` hears how many bytes left the disk.

    Raises DataError: unreadable file. Unusable: broken compressed stream.
    """
    blocks = _blocks(path, on_read)
    if path.suffix in COMPRESSIONS:
        blocks = _decompressed(path, blocks)
    return _without_mark(blocks)


def cut(blocks: Iterable[bytes], separator: bytes, largest: int | None = None) -> Iterator[tuple[int, bytes]]:
    """The pieces between separators, each with its offset in the stream; memory holds one piece and one block.

    Of a piece of more than `largest` bytes the first largest + 1 are kept, however long it goes on.
    """
    rest, begin = bytearray(), b""
    offset = piece_at = 0
    most = None if largest is None else largest + 1
    for block in blocks:
        searched = max(0, len(rest) - len(separator) + 1)
        rest += block
        start = 0
        while (end := rest.find(separator, searched)) >= 0:
            yield piece_at, (begin + rest[start:end])[:most]
            start = searched = end + len(separator)
            begin, piece_at = b"", offset + start
        if most is not None and len(rest) - start > most:
            begin, start = (begin + rest[start:])[:most], len(rest) - len(separator) + 1
        del rest[:start]
        offset += start
    if rest or begin:
        yield piece_at, (begin + rest)[:most]


def text(path: Path, offset: int, piece: bytes) -> str:
    """UTF-8 bytes that stand at `offset` of a file as text. Raises Unusable naming the byte that is none."""
    try:
        return piece.decode("utf-8")
    except UnicodeDecodeError as error:
        place = f"byte {offset + error.start}" + (" of the decompressed text" if path.suffix in COMPRESSIONS else "")
        why = f"is not UTF-8 at {place} (0x{piece[error.start]:02x}); convert it, for example with iconv -t UTF-8"
        raise Unusable(str(path), "not UTF-8", why, piece) from None


class _Decompressor(Protocol):
    """What zlib's and zstandard's objects share: one compressed member or frame."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, /) -> bytes: ...


def _blocks(path: Path, on_read: Callable[[int], None]) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            while block := file.read(BLOCK):
                on_read(len(block))
                yield block
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None


def _decompressed(path: Path, blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Members or frames that follow each other are one stream, as gzip and zstd have it."""
    member = None
    try:
        for block in blocks:
            while block:
                member = member or _decompressor(path)
                if content := member.decompress(block):
                    yield content
                block = member.unused_data if member.eof else b""
                member = None if member.eof else member
    except (zlib.error, zstandard.ZstdError) as error:
        raise Unusable(str(path), "broken stream", f"is no {path.suffix[1:]} stream or a broken one: {error}") from None
    if member is not None:
        raise Unusable(str(path), "broken stream", f"the {path.suffix[1:]} stream ends in the middle; the file was cut short")


def _decompressor(path: Path) -> _Decompressor:
    if path.suffix == ".gz":
        return zlib.decompressobj(zlib.MAX_WBITS | 16)
    return zstandard.ZstdDecompressor().decompressobj()


def _without_mark(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """A byte order mark is no text. (Blocks of a first few bytes do not occur: a block is what one read gives.)"""
    for first in blocks:
        yield first.removeprefix(b"\xef\xbb\xbf")
        yield from blocks
