"""TensorBoard: the run's curves as event files, written here without a library.

The libraries that write them import torch where it is installed, for which the launching parent should not wait. Scalars need little:

    file    a record for each event, appended
    record  length (8 bytes), its checksum (4), the event, its checksum (4): TensorFlow's TFRecord
    event   protocol buffer: wall_time = 1, step = 2, file_version = 3, summary = 5, session_log = 7
    summary repeated value = 1 { tag = 1, simple_value = 2 }

A session_log with status START tells TensorBoard to hide what was written at that step or later before: that is how steps that a
resume or a roll-back made void disappear from the curves.
"""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path
from typing import BinaryIO

from plait.events import Event
from plait.watch.metrics import metrics, void_after


class TensorBoard:
    """Appends to a new event file in `folder`; `tensorboard --logdir` on it, or on a folder above it, shows the curves."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: BinaryIO | None = None

    def on(self, event: Event) -> None:
        last = void_after(event)
        if last is not None:
            self._write(event.time, _varint_field(2, last + 1) + _bytes_field(7, _varint_field(1, 1)))
        found = metrics(event)
        if found is not None:
            step, values = found
            self._write(event.time, _varint_field(2, step) + _bytes_field(5, b"".join(_value(tag, value) for tag, value in values.items())))

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, time: float, content: bytes) -> None:
        if self._file is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            name = f"events.out.tfevents.{int(time):010d}.{socket.gethostname()}.{os.getpid()}"
            self._file = open(self._folder / name, "ab", buffering=0)  # noqa: SIM115 (it lives as long as the run)
            self._file.write(_record(_double_field(1, time) + _bytes_field(3, b"brain.Event:2")))
        self._file.write(_record(_double_field(1, time) + content))


def _record(content: bytes) -> bytes:
    length = struct.pack("<Q", len(content))
    return length + _masked_checksum(length) + content + _masked_checksum(content)


def _value(tag: str, value: float) -> bytes:
    return _bytes_field(1, _bytes_field(1, tag.encode()) + b"\x15" + struct.pack("<f", _as_single(value)))


def _as_single(value: float) -> float:
    """What exceeds single precision is shown as infinite."""
    try:
        struct.pack("<f", value)
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")
    return value


def _varint_field(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _double_field(number: int, value: float) -> bytes:
    return _varint(number << 3 | 1) + struct.pack("<d", value)


def _bytes_field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first; the highest bit says that more follow."""
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    return bytes([*encoded, value])


def _masked_checksum(content: bytes) -> bytes:
    """CRC-32C, turned by 15 bits and moved: TFRecord's guard against checksums of checksums."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def _crc_of(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)  # Castagnoli's polynomial, reversed
    return byte


_TABLE = [_crc_of(byte) for byte in range(256)]
