"""Event files that TensorBoard reads, proved by decoding them with protocol buffers and checksums that are not ours."""

import struct

import pytest

from plait import events
from plait.watch.tensorboard import TensorBoard, _masked_checksum


@pytest.fixture
def decode():
    crc32c = pytest.importorskip("tensorboardX.crc32c")
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")

    def masked(content):
        crc = crc32c.crc32c(content)
        return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)

    def read(folder):
        (file,) = folder.iterdir()
        content = file.read_bytes()
        found = []
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            assert content[8:12] == masked(content[:8])
            body, content = content[12 : 12 + length], content[12 + length :]
            assert content[:4] == masked(body)
            content = content[4:]
            found.append(event_pb2.Event.FromString(body))
        return found

    return read


def test_the_checksum_is_castagnolis():
    crc = 0xE3069283  # of "123456789", RFC 3720 and every table of CRCs
    assert _masked_checksum(b"123456789") == struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def test_what_was_told_is_what_is_read(tmp_path, step, decode):
    board = TensorBoard(tmp_path / "tensorboard")
    board.on(events.Started(1.0, "0.1.0", 1, 10, 4, "cpu"))
    board.on(step(300, mfu=0.4))
    board.on(events.Evaluated(2.5, 70_000, "validation", 3.25, 25.0, 0.5, 100))
    board.close()
    head, first, second = decode(tmp_path / "tensorboard")
    assert head.file_version == "brain.Event:2"
    assert (first.step, second.step, second.wall_time) == (300, 70_000, 2.5)
    values = {value.tag: value.simple_value for value in first.summary.value}
    assert values["train/loss"] == pytest.approx(3.762)
    assert values["speed/mfu"] == pytest.approx(0.4)
    assert {value.tag: value.simple_value for value in second.summary.value}["validation/loss"] == 3.25


def test_void_steps_are_hidden_from_the_first_one_on(tmp_path, step, decode):
    board = TensorBoard(tmp_path)
    board.on(step(300))
    board.on(events.RolledBack(2.0, 200, "not finite"))
    board.close()
    last = decode(tmp_path)[-1]
    assert last.step == 201
    assert last.session_log.status == 1


def test_numbers_that_a_single_cannot_hold_are_shown_as_infinite(tmp_path, step, decode):
    board = TensorBoard(tmp_path)
    board.on(step(1, loss=float("nan"), grad_norm=1e300))
    board.close()
    values = {value.tag: value.simple_value for value in decode(tmp_path)[-1].summary.value}
    assert values["train/loss"] != values["train/loss"]
    assert values["train/grad_norm"] == float("inf")


def test_what_is_written_can_be_read_while_the_run_lives(tmp_path, step, decode):
    board = TensorBoard(tmp_path)
    board.on(step(1))
    assert len(decode(tmp_path)) == 2
    board.close()
