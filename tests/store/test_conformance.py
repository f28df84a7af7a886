"""Each storage system keeps the same promises: one suite, against real servers."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from plait.errors import NotStored, StorageError
from plait.store import Store
from plait.store.check import check
from tests.store import table
from tests.store.park import Park

FAST = ["file", "memory", "redis", "memcached", "s3", "gs", "mongodb", "cassandra"]
SLOW = ["alluxio", "hdfs", "webhdfs"]
EVERY = pytest.mark.parametrize("system", [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
CONTENT = bytes(range(256)) * 40


@EVERY
def test_what_is_written_is_read(home: Store) -> None:
    home.write("a/b c.bin", CONTENT)
    home.write("a/empty", b"")
    assert home.read("a/b c.bin") == CONTENT
    assert home.read("a/empty") == b""
    home.write("a/b c.bin", b"after")
    assert home.read("a/b c.bin") == b"after"


@EVERY
def test_a_range_is_a_slice(home: Store) -> None:
    home.write("content", CONTENT)
    for first, end in [(0, 1), (3, 700), (10_000, None), (10_230, 20_000), (10_240, 10_250), (99_999, 100_000), (5, 5)]:
        assert home.read("content", first, end) == CONTENT[first:end], (first, end)


@EVERY
def test_what_is_not_there_is_told_by_its_url(home: Store) -> None:
    assert home.stat("absent") is None
    home.delete("absent")
    for read in (lambda: home.read("absent"), lambda: home.read("absent", 0, 4), lambda: home.download("absent", Path("never"))):
        with pytest.raises(NotStored, match=f"{home.url('absent')}: there is nothing of that name"):
            read()


@EVERY
def test_a_name_tells_its_size_and_changes_its_version(home: Store) -> None:
    home.write("content", CONTENT)
    before = home.stat("content")
    home.write("content", CONTENT[:-1] + b"!")
    after = home.stat("content")
    assert before is not None
    assert after is not None
    assert before.bytes == after.bytes == len(CONTENT)
    assert before.version is None or before.version != after.version


@EVERY
def test_names_are_listed_in_order_through_folders(home: Store) -> None:
    if not home.lists:
        with pytest.raises(StorageError, match="cannot list"):
            home.entries()
        return
    assert home.entries() == []
    names = ["a", "b/c", "b/d/e", "bb", "z"]
    for name in reversed(names):
        home.write(name, name.encode())
    assert [(entry.name, entry.bytes) for entry in home.entries()] == [(name, len(name)) for name in names]
    assert [entry.name for entry in home.entries("b/")] == ["b/c", "b/d/e"]
    assert [entry.name for entry in home.entries("b")] == ["b/c", "b/d/e", "bb"]
    assert home.entries("none/") == []
    home.delete("b/c")
    assert [entry.name for entry in home.entries("b/")] == ["b/d/e"]


@EVERY
def test_of_many_that_create_one_name_one_is_first(home: Store) -> None:
    if not home.conditional:
        pytest.skip(f"{home.location.scheme} has no condition")
    with ThreadPoolExecutor(4) as threads:
        told = list(threads.map(lambda index: home.create("once", b"%d" % index), range(8)))
    assert told.count(True) == 1
    assert home.read("once") == b"%d" % told.index(True)


@EVERY
def test_a_file_goes_there_and_back(home: Store, tmp_path: Path) -> None:
    content = os.urandom(min(9 << 20, home.largest or 9 << 20))
    (tmp_path / "there").write_bytes(content)
    home.upload(tmp_path / "there", "folder/file")
    home.download("folder/file", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == content


@EVERY
def test_a_name_stays_inside(home: Store) -> None:
    for name in ("../other", "a/../../b", "/etc/passwd"):
        with pytest.raises(StorageError, match="is no name inside it"):
            home.write(name, b"")


@EVERY
def test_the_check_finds_nothing_wrong_leaves_nothing_and_is_what_the_page_tells(url: str, home: Store, system: str, park: Park) -> None:
    checked = list(check(url, 1 << 20))
    assert [each for each in checked if each.state == "failed"] == []
    assert not home.lists or home.entries() == []
    server = "" if system in ("file", "memory") else f"{park(system).name} {park(system).version}"
    table.compare(system, server, home, checked)
