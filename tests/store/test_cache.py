"""Remote files in blocks, read through a local cache: the right bytes, whatever is here, evicted, damaged or gone."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from plait import store
from plait.errors import NotStored, StorageError, StorageFailed
from plait.store import Store, blocks
from plait.store.blocks import BLOCK
from plait.store.cache import Cache, CachedFile
from plait.store.patience import Homes

SIZE = 20 * BLOCK + 1234


@pytest.fixture
def content() -> bytes:
    return np.random.default_rng(7).integers(0, 4000, SIZE // 2, dtype=np.uint16).tobytes()


@pytest.fixture
def home(tmp_path: Path, content: bytes) -> Store:
    """A store that keeps one file."""
    return kept(tmp_path, content, str(tmp_path / "home"))


def kept(folder: Path, content: bytes, url: str) -> Store:
    (folder / "tokens").write_bytes(content)
    home = store.at(url)
    blocks.keep(home, folder, ["tokens"])
    return home


class Told(list[str]):
    """What was said, and no time passes while waiting; `during` acts at the first wait."""

    during: Callable[[], None] | None = None

    def sleep(self, seconds: float) -> None:
        if self.during is not None and seconds >= 1:
            during, self.during = self.during, None
            during()

    def homes(self, *homes: Store) -> Homes:
        return Homes(homes, self.append, self.sleep)


def opened(folder: Path, home: Store, homes: Homes, blocks_held: int = 100, tier: Store | None = None) -> CachedFile:
    """Without what fetches ahead by itself."""
    (folder / "cache" / "set").mkdir(parents=True, exist_ok=True)
    file = blocks.read_files(home)["tokens"]
    cache = Cache(folder / "cache", blocks_held * BLOCK)
    cached = CachedFile(cache, folder / "cache" / "set" / "tokens", file.bytes, blocks.read_index(home, "tokens", file), homes, tier)
    cached._fill_alone = lambda: None  # type: ignore[method-assign]
    return cached


def spans(count: int, length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, SIZE - length, count)


def check(cached: CachedFile, content: bytes, firsts: np.ndarray, length: int) -> None:
    found = cached.read(firsts, length)
    assert [row.tobytes() for row in found] == [content[first : first + length] for first in firsts]


@pytest.mark.parametrize("length", [2, 258, BLOCK + 10, 3 * BLOCK])
@pytest.mark.parametrize("held", [4, 100])
def test_any_span_is_what_was_kept(tmp_path: Path, home: Store, content: bytes, length: int, held: int) -> None:
    cached = opened(tmp_path, home, Homes([home]), held)
    for seed in range(4):
        check(cached, content, spans(9, length, seed), length)
    check(cached, content, np.array([0, SIZE - length, BLOCK - 1, BLOCK]), length)


@pytest.mark.parametrize("compress", [True, False])
def test_a_block_that_is_not_packed_or_would_not_be_shorter_is_kept_as_it_is(tmp_path: Path, content: bytes, compress: bool) -> None:
    content = np.random.default_rng(1).bytes(SIZE) if compress else content
    (tmp_path / "tokens").write_bytes(content)
    home = store.at(str(tmp_path / "home"))
    blocks.keep(home, tmp_path, ["tokens"], compress)
    assert home.read("tokens.blocks") == content
    check(opened(tmp_path, home, Homes([home])), content, spans(9, 3 * BLOCK), 3 * BLOCK)
    blocks.download(home, "tokens", blocks.read_files(home)["tokens"], tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == content


def test_what_is_waited_for_is_fetched_before_what_fills_the_cache(tmp_path: Path, home: Store) -> None:
    cached = opened(tmp_path, home, Homes([home]))
    cached._start = lambda: None  # type: ignore[method-assign]
    cached._fetch([0, 1], 2)
    cached.ahead(np.array([9 * BLOCK]), 10)
    cached._fetch([4], 0)
    assert [list(cached._asked.get()[2]) for _ in range(3)] == [[4], [9], [0, 1]]


def test_what_is_closed_ends_its_threads_and_lets_go_of_its_files(tmp_path: Path, home: Store, content: bytes) -> None:
    before = set(os.listdir("/proc/self/fd"))
    cached = opened(tmp_path, home, Homes([home]))
    check(cached, content, np.array([5, SIZE - 9]), 9)
    cached.close()
    gone = weakref.ref(cached)
    del cached
    end = time.monotonic() + 10
    while gone() is not None and time.monotonic() < end:
        gc.collect()
    assert gone() is None
    assert set(os.listdir("/proc/self/fd")) <= before


def test_the_cache_stays_within_its_bounds_on_the_disk(tmp_path: Path, home: Store, content: bytes) -> None:
    cached = opened(tmp_path, home, Homes([home]), 6)
    for seed in range(12):
        check(cached, content, spans(5, 500, seed), 500)
        taken = (tmp_path / "cache" / "set" / "tokens").stat().st_blocks * 512
        assert taken <= 6 * BLOCK + 4096
        assert np.count_nonzero(cached._held) <= 6


def test_what_is_here_is_not_fetched_again_by_any_process(tmp_path: Path, home: Store, content: bytes) -> None:
    opened(tmp_path, home, Homes([home])).fill()
    shutil.rmtree(tmp_path / "home")
    check(opened(tmp_path, kept(tmp_path, content, "memory://again"), Homes([home])), content, spans(30, 600), 600)


def test_bytes_flipped_at_home_are_read_from_the_backup(tmp_path: Path, home: Store, content: bytes) -> None:
    backup = store.at(str(tmp_path / "backup"))
    blocks.mirror(home, backup)
    flip(tmp_path / "home" / "tokens.blocks")
    told = Told()
    check(opened(tmp_path, home, told.homes(home, backup)), content, np.arange(0, SIZE - 100, BLOCK // 2), 100)
    assert [line for line in told if "is not what was written: its checksum differs; reading the backup" in line]


def test_bytes_flipped_without_a_backup_stop_the_reader(tmp_path: Path, home: Store) -> None:
    flip(tmp_path / "home" / "tokens.blocks")
    told = Told()
    with pytest.raises(StorageError, match=r"tokens\.blocks: block 0 is not what was written"):
        opened(tmp_path, home, told.homes(home)).read(np.array([0]), 10)


def test_a_mirror_is_not_made_of_damaged_bytes(tmp_path: Path, home: Store) -> None:
    flip(tmp_path / "home" / "tokens.blocks")
    with pytest.raises(StorageFailed, match="is not what was written"):
        blocks.mirror(home, store.at("memory://mirror-of-damage"))
    assert not blocks.holds(store.at("memory://mirror-of-damage"))


def test_a_file_cut_short_is_waited_for_and_then_whole(tmp_path: Path, home: Store, content: bytes) -> None:
    path = tmp_path / "home" / "tokens.blocks"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    told = Told()
    told.during = lambda: path.write_bytes(whole) and None
    check(opened(tmp_path, home, told.homes(home)), content, np.array([SIZE - 100]), 100)
    assert "it was cut short; waiting 1 s, then trying again" in told[0]
    assert told[-1].endswith("answers again")


def test_a_home_that_is_deleted_is_replaced_by_its_backup(tmp_path: Path, home: Store, content: bytes) -> None:
    backup = store.at(str(tmp_path / "backup"))
    blocks.mirror(home, backup)
    cached = opened(tmp_path, home, Told().homes(home, backup))
    shutil.rmtree(tmp_path / "home")
    check(cached, content, spans(20, 100), 100)
    shutil.rmtree(tmp_path / "backup")
    (tmp_path / "cache" / "set" / "tokens.held").write_bytes(bytes(len(cached._index)))
    with pytest.raises(NotStored, match="there is nothing of that name"):
        opened(tmp_path, kept(tmp_path, content, "memory://index"), Told().homes(home, backup)).read(np.array([0]), 10)


def test_a_tier_serves_other_hosts_and_its_damage_is_noticed(tmp_path: Path, home: Store, content: bytes) -> None:
    tier = store.at("memory://tier")
    opened(tmp_path / "one", home, Homes([home]), tier=tier).fill()
    gone = store.at("memory://gone")
    check(opened(tmp_path / "two", home, Homes([gone]), tier=tier), content, spans(50, 100), 100)
    for entry in tier.entries():
        tier.write(entry.name, tier.read(entry.name)[:-1] + b"?")
    check(opened(tmp_path / "three", home, Homes([home]), tier=tier), content, spans(50, 100), 100)


def test_a_tier_that_fails_is_passed_over(tmp_path: Path, home: Store, content: bytes) -> None:
    from tests.store.servers import free_port

    told = Told()
    cached = opened(tmp_path, home, told.homes(home), tier=store.at(f"redis://127.0.0.1:{free_port()}"))
    check(cached, content, spans(20, 100), 100)
    assert len([line for line in told if "going on without this cache for a while" in line]) == 1


def test_nothing_changes_while_someone_copies(tmp_path: Path) -> None:
    cache, changed = Cache(tmp_path / "cache", 4 * BLOCK), threading.Event()

    def change() -> None:
        with cache.changing():
            changed.set()

    with cache.reading(), cache.reading():
        threading.Thread(target=change).start()
        assert not changed.wait(0.2)
    assert changed.wait(10)


def test_processes_share_the_cache(tmp_path: Path, home: Store, content: bytes) -> None:
    """Three at once in a cache too small for all, each evicting what the others read."""
    script = "import sys; from pathlib import Path; from tests.store.test_cache import stress; stress(Path(sys.argv[1]), int(sys.argv[2]))"
    processes = [subprocess.Popen([sys.executable, "-c", script, str(tmp_path), str(seed)]) for seed in range(3)]
    assert [process.wait(60) for process in processes] == [0, 0, 0]


def stress(folder: Path, seed: int) -> None:
    home = store.at(str(folder / "home"))
    cached = opened(folder, home, Homes([home]), 7)
    content = (folder / "tokens").read_bytes()
    for turn in range(15):
        check(cached, content, spans(6, 700, 100 * seed + turn), 700)
    os._exit(0)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[10] ^= 1
    path.write_bytes(content)
