"""The nursery: forks what it is told to, says how it ended, and outlives nobody."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

from plait.cluster.nursery import LATER, Nursery


def write_and_return(config: dict) -> int:
    Path(config["path"]).write_text(config["text"])
    return int(config["status"])


def wait_for_ever(config: dict) -> int:
    Path(config["path"]).write_text(str(os.getpid()))
    while True:
        signal.pause()


def tell_modules(config: dict) -> int:
    """How many of these are not imported yet."""
    return sum(module not in sys.modules for module in config["modules"])


def endings(nursery: Nursery, worker: str) -> int:
    while True:
        select.select([nursery], [], [], 30)
        for message in nursery.messages():
            if message.get("ended") == worker:
                return int(message["status"])


def appears(path: Path) -> str:
    end = time.monotonic() + 30
    while not path.exists() or not path.read_text():
        assert time.monotonic() < end
        time.sleep(0.01)
    return path.read_text()


def test_a_worker_gets_its_config_and_its_status_is_told(nursery: Nursery, tmp_path: Path) -> None:
    config = {"path": str(tmp_path / "file"), "text": "hello" * 50_000, "status": 7}
    nursery.fork("writer", "tests.cluster.test_nursery:write_and_return", config)
    assert endings(nursery, "writer") == 7
    assert len((tmp_path / "file").read_text()) == 250_000


def test_workers_of_many_runs_find_what_they_import_later(nursery: Nursery) -> None:
    modules = [*LATER, "torch.distributed.checkpoint.state_dict_saver", "torch.distributed.fsdp", "torch.distributed.pipelining"]
    nursery.fork("teller", "tests.cluster.test_nursery:tell_modules", {"modules": modules})
    assert endings(nursery, "teller") == 0


def test_a_signal_reaches_its_worker(nursery: Nursery, tmp_path: Path) -> None:
    nursery.fork("waiter", "tests.cluster.test_nursery:wait_for_ever", {"path": str(tmp_path / "pid")})
    appears(tmp_path / "pid")
    nursery.signal("waiter", signal.SIGKILL)
    assert endings(nursery, "waiter") == -signal.SIGKILL


def test_workers_die_with_the_parent_however_it_dies(tmp_path: Path) -> None:
    """A parent is killed: its nursery sees the end of the line and takes its workers along."""
    code = f"""
import time
from plait.cluster.nursery import LATER, Nursery
nursery = Nursery()
nursery.fork("waiter", "tests.cluster.test_nursery:wait_for_ever", {{"path": {str(tmp_path / "pid")!r}}})
time.sleep(60)
"""
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[2])
    pid = int(appears(tmp_path / "pid"))
    parent.kill()
    parent.wait()
    end = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < end, "the worker outlived its parent"
        time.sleep(0.02)
