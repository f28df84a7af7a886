"""Functions on several processes, forked from one warm process so that torch is imported once in a session.

    results = run_distributed("tests.sync.test_group:sum_of_ranks", 3, length=4)

The function is called in each process as function(rank, size, group, **arguments), where group is a bare gloo group of them
all; what it returns must be JSON and comes back by rank.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import select
import sys
import tempfile
import time
import traceback
from functools import cache
from pathlib import Path
from typing import Any

from plait.cluster.nursery import Nursery


class ProcessesFailed(AssertionError):
    """A process raised or died; the message holds its traceback."""


@cache
def warm_nursery() -> Nursery:
    """This session's nursery, closed when the session ends."""
    nursery = Nursery(many=True)
    atexit.register(nursery.close)
    return nursery


def run_distributed(function: str, size: int, *, timeout: float = 60.0, **arguments: Any) -> list[Any]:
    """Call "module:function" on `size` processes; returns what each returned. Raises ProcessesFailed."""
    nursery = warm_nursery()
    with tempfile.TemporaryDirectory(prefix="plait-test-") as place:
        waiting = set()
        for rank in range(size):
            config = {"function": function, "rank": rank, "size": size, "place": place, "path": sys.path, "arguments": arguments}
            worker = f"{place}/{rank}"
            waiting.add(worker)
            nursery.fork(worker, "plait.testing.processes:_call", config)
        statuses = _await(nursery, waiting, timeout)
        failures = [Path(place, f"error-{rank}").read_text() for rank in range(size) if Path(place, f"error-{rank}").exists()]
        if failures or any(statuses.values()):
            raise ProcessesFailed("\n".join(failures) or f"{function}: {statuses}")
        return [json.loads(Path(place, f"result-{rank}").read_text()) for rank in range(size)]


def _await(nursery: Nursery, waiting: set[str], timeout: float) -> dict[str, int]:
    statuses: dict[str, int] = {}
    end = time.monotonic() + timeout
    while waiting:
        ready, _, _ = select.select([nursery], [], [], max(0.0, end - time.monotonic()))
        if not ready:
            for worker in waiting:
                nursery.signal(worker, 9)
            raise ProcessesFailed(f"{len(waiting)} processes were not done after {timeout} s")
        for message in nursery.messages():
            if message.get("ended") in waiting:
                waiting.remove(message["ended"])
                statuses[message["ended"]] = message["status"]
    return statuses


def _call(config: dict[str, Any]) -> int:
    """Runs in the forked process."""
    import torch
    import torch.distributed

    from plait.sync.group import local_store, make_group

    place, rank, size = Path(config["place"]), config["rank"], config["size"]
    try:
        sys.path[:] = config["path"]
        torch.set_num_threads(1)
        group = make_group(local_store(place), rank, size, torch.device("cpu"), loopback=True)
        group.barrier(torch.distributed.BarrierOptions()).wait()  # who fails at once would break connections still being made
        module, _, name = config["function"].partition(":")
        result = getattr(importlib.import_module(module), name)(rank, size, group, **config["arguments"])
        (place / f"result-{rank}").write_text(json.dumps(result))
        with contextlib.suppress(RuntimeError):  # who leaves early breaks the connections that others are still making
            group.barrier(torch.distributed.BarrierOptions()).wait()
    except BaseException:
        (place / f"error-{rank}").write_text(f"rank {rank}:\n{traceback.format_exc()}")
        return 1
    return 0
