"""Who hangs is found, and who only waits for it is not taken for it."""

from __future__ import annotations

import os
import sys
from types import FrameType

import pytest

from plait.cluster.pulse import collective_of
from plait.cluster.watchdog import FIRST, Watchdog
from plait.ledger.messages import Beat

LIMIT = 10.0


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def watchdog(clock: Clock) -> Watchdog:
    watchdog = Watchdog(LIMIT, clock)
    for replica in range(3):
        watchdog.started((replica, 0))
    return watchdog


def beat(seconds: float, waiting: str = "", units: int = 1, stack: str = "loop.py:7 train", collective: str = "") -> Beat:
    return Beat("computes" if not waiting else "waits", waiting, seconds, 3, units, stack, collective)


def hanging(watchdog: Watchdog) -> list[int]:
    return [hang.member[0] for hang in watchdog.look(lambda member: os.getpid())]


def test_who_makes_no_progress_hangs_and_who_waits_for_it_does_not(clock: Clock, watchdog: Watchdog) -> None:
    clock.now = 20.0
    for replica, (seconds, waiting) in enumerate([(11.0, "peers"), (11.0, ""), (11.0, "ledger")]):
        watchdog.hear((replica, 0), beat(seconds, waiting))
    (hang,) = watchdog.look(lambda member: None)
    assert (hang.member, hang.doing, hang.stack) == ((1, 0), "computes", "loop.py:7 train")
    assert hanging(watchdog) == [], "told twice"


def test_who_has_no_pulse_hangs_whatever_it_said(clock: Clock, watchdog: Watchdog) -> None:
    for replica in range(3):
        watchdog.hear((replica, 0), beat(0.0, "ledger"))
    clock.now = LIMIT + 1
    for replica in (0, 2):
        watchdog.hear((replica, 0), beat(0.0))
    assert hanging(watchdog) == [1]


def test_a_worker_without_a_unit_has_longer(clock: Clock, watchdog: Watchdog) -> None:
    watchdog.hear((0, 0), beat(0.0, units=0))
    for replica in (1, 2):
        watchdog.ended((replica, 0))
    clock.now = LIMIT * FIRST - 1
    watchdog.hear((0, 0), beat(clock.now, units=0))
    assert hanging(watchdog) == []
    clock.now += 2
    assert hanging(watchdog) == [0]


def test_when_all_wait_for_one_another_who_waited_longest_is_taken(clock: Clock, watchdog: Watchdog) -> None:
    clock.now = 20.0
    for replica, seconds in enumerate([11.0, 13.0, 12.0]):
        watchdog.hear((replica, 0), beat(seconds, "peers"))
    assert hanging(watchdog) == [1]


def test_a_run_that_waits_for_replicas_does_not_hang(clock: Clock, watchdog: Watchdog) -> None:
    clock.now = 1000.0
    for replica in range(3):
        watchdog.hear((replica, 0), beat(900.0, "ledger"))
    assert hanging(watchdog) == []


def test_what_the_system_says_of_a_process_that_does_not_answer(clock: Clock, watchdog: Watchdog) -> None:
    clock.now = LIMIT * FIRST + 1
    assert {hang.stack for hang in watchdog.look(lambda member: -1)} == {"it does not answer"}


def test_a_rank_that_waits_in_a_collective_for_one_that_hangs_is_not_taken_for_it(clock: Clock, watchdog: Watchdog) -> None:
    clock.now = 20.0
    for replica, collective in enumerate(["all_reduce", "", "gather_rows"]):
        watchdog.hear((replica, 0), beat(11.0, collective=collective))
    assert hanging(watchdog) == [1]


def test_ranks_that_all_wait_in_a_collective_hang_and_it_is_named(clock: Clock, watchdog: Watchdog) -> None:
    clock.now = 20.0
    for replica, seconds in enumerate([12.0, 11.0, 11.0]):
        watchdog.hear((replica, 0), beat(seconds, collective="all_reduce"))
    (hang,) = watchdog.look(lambda member: None)
    assert (hang.member, hang.doing) == ((0, 0), "computes, in all_reduce")


def test_a_collective_is_known_by_where_it_waits() -> None:
    """In torch.distributed or in our own transport, in the innermost frame: what computes below one of them waits for nobody."""
    frames: list[FrameType] = []
    for file in ("/lib/torch/distributed/distributed_c10d.py", "/lib/plait/replica/transport.py", "/own/loss.py"):
        exec(compile("def all_reduce(): frames.append(sys._getframe())\nall_reduce()", file, "exec"), {"frames": frames, "sys": sys})
    assert [collective_of(frame) for frame in frames] == ["all_reduce", "all_reduce", ""]
