"""A thread that works on what is sent, step by step, while backward goes on in another.

job 0   step ~~~~~~ step      ~~~~~~ step
job 1        step ~~~~~~ step      ~~~~~~ step       ~ what a step began to send travels
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future
from functools import cache
from typing import NamedTuple

import torch

from plait.sync.link import Span

Steps = Generator[Callable[[], None], None, None]
"""What is done with a bucket; each time it yields, what it yields has to be called before it goes on."""
DEPTH = 2
"""Buckets under way at once: while one travels, another is encoded or summed."""


class Job(NamedTuple):
    """steps: on what is ready on the device when the job is submitted. span: told how long it was under way."""

    steps: Steps
    span: Span
    device: torch.device


class Sender:
    """A thread that does jobs for as long as somebody holds this. After one that failed none is done: its error is theirs too."""

    def __init__(self) -> None:
        self._jobs: _Jobs = queue.SimpleQueue()
        self._running = False

    def submit(self, job: Job) -> Future[None]:
        if not self._running:
            self._running = True
            # A daemon: a process that fails must be able to end while others keep this thread waiting.
            threading.Thread(target=_work, args=(self._jobs,), name="plait-sender", daemon=True).start()
            weakref.finalize(self, self._jobs.put, None)
        progress = _Progress(job)
        self._jobs.put(progress)
        return progress.future


class _Progress:
    """Of one job. On a GPU its steps are queued on a stream of their own, behind what was on the current one when this was made."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._began = time.monotonic()
        self._stream: torch.cuda.Stream | None = None
        if job.device.type == "cuda":
            self._stream = _stream(job.device)
            self._stream.wait_stream(torch.cuda.current_stream(job.device))
        self._wait: Callable[[], None] | None = None
        self.future: Future[None] = Future()

    def go_on(self) -> bool:
        """Wait for what the last step began, and do the next. False when there is none."""
        with torch.cuda.stream(self._stream):
            if self._wait is not None:
                self._wait()
            self._wait = next(self._job.steps, None)
        if self._wait is not None:
            return True
        if self._stream is not None:
            self._stream.synchronize()
        self._job.span.add(self._began, time.monotonic())
        self.future.set_result(None)
        return False

    @property
    def alone(self) -> bool:
        """Whether no other may be under way: collectives begin in the same order everywhere, whatever thread is quick or slow."""
        return self._job.device.type != "cpu"


_Jobs = queue.SimpleQueue[_Progress | None]


def _work(jobs: _Jobs) -> None:
    under_way: deque[_Progress] = deque()
    while True:
        try:
            if not _advance(jobs, under_way):
                return
        except BaseException as error:
            _refuse(jobs, under_way, error)
            return


def _advance(jobs: _Jobs, under_way: deque[_Progress]) -> bool:
    """Begin the next job if there is room for it, or go on with the one that was gone on with longest ago. False at the end."""
    if len(under_way) < DEPTH and not any(each.alone for each in under_way):
        with contextlib.suppress(queue.Empty):
            next_one = jobs.get(block=not under_way)
            if next_one is None:
                return False
            under_way.appendleft(next_one)
    if under_way[0].go_on():
        under_way.rotate(-1)
    else:
        under_way.popleft()
    return True


def _refuse(jobs: _Jobs, under_way: deque[_Progress], error: BaseException) -> None:
    """These jobs and all that come.

    What they had begun to send or receive is not let go: gloo would stop reading where something comes for memory that is gone, and
    never see that a member has ended.
    """
    for each in under_way:
        each.future.set_exception(error)
    while (late := jobs.get()) is not None:
        late.future.set_exception(error)


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
