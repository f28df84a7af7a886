"""A worker's pulse: a thread that tells the ledger's process that the worker lives, and what it does.

    main thread    computes, waits, computes ...  ─► progress
    pulse          every PERIOD: Beat(doing, since when, its Python stack where that is long)   ─► watchdog
                   ◄─ "void": abort what waits for a peer that is gone (NCCL does not notice by itself)
                   ◄─ the connection is closed and does not come back: the ledger is gone, and this worker ends

Aliveness and progress are two signals: a process that is stopped has no pulse, one that hangs has a pulse and makes no progress.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from types import FrameType
from typing import Any, Self

import zmq
from zmq.utils.monitor import recv_monitor_message

from plait.ledger.messages import Beat, Member, encode
from plait.ledger.progress import progress
from plait.ledger.wire import PULSE

PERIOD = 0.5
"""Seconds."""
ORPHANED = 5.0
"""Seconds without a connection to the ledger's process after which a worker ends."""
_FRAMES = 6
"""Of the stack, from the innermost outwards."""
_COLLECTIVES = ("/torch/distributed/", "/plait/replica/transport.py")
"""Files whose functions wait for other ranks."""


class Pulse:
    """Beats while it is entered. hang_after: seconds without progress that are too many; the stack is told from a half of them on."""

    def __init__(self, address: str, token: str, member: Member, hang_after: float) -> None:
        self._address, self._token, self._member = address, token.encode(), member
        self._told_after = hang_after / 2
        self._ended = threading.Event()
        self._main = threading.main_thread().ident
        self.on_void: Callable[[], None] = lambda: None

    def __enter__(self) -> Self:
        self._main = threading.get_ident()
        threading.Thread(target=self._run, name="pulse", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()

    def _run(self) -> None:
        context = zmq.Context()
        socket = context.socket(zmq.DEALER)
        socket.setsockopt(zmq.IDENTITY, f"{self._member[0]}.{self._member[1]}.{PULSE}".encode())
        socket.setsockopt(zmq.LINGER, 0)
        monitor = socket.get_monitor_socket(zmq.EVENT_CONNECTED | zmq.EVENT_DISCONNECTED)
        socket.connect(self._address)
        cut_off: float | None = None
        while not self._ended.is_set():
            if cut_off is None:
                socket.send_multipart([self._token, encode(self._beat())])
            if socket.poll(int(PERIOD * 1000)):
                socket.recv_multipart()
                self.on_void()
            cut_off = _connection(monitor, cut_off)
            if cut_off is not None and time.monotonic() > cut_off + ORPHANED and not self._ended.is_set():
                print(f"plait: worker {self._member}: the process that keeps the ledger is gone; stopping", file=sys.stderr, flush=True)
                os._exit(1)
        socket.disable_monitor()
        socket.close()
        context.term()

    def _beat(self) -> Beat:
        seconds = time.monotonic() - progress.since
        frame = sys._current_frames().get(self._main or 0)
        stack = _stack(frame) if frame and seconds > self._told_after else ""
        collective = collective_of(frame) if frame and not progress.waiting else ""
        return Beat(progress.doing, progress.waiting, seconds, progress.step, progress.units, stack, collective)


def collective_of(frame: FrameType) -> str:
    """The collective that waits for other ranks where Python's innermost frame is; empty where none does.

    Who is in one waits for another rank of its replica, whatever it says of itself.
    """
    code = frame.f_code
    return code.co_name if any(place in code.co_filename for place in _COLLECTIVES) else ""


def _stack(frame: FrameType) -> str:
    return " < ".join(f"{_short(each.filename)}:{each.lineno} {each.name}" for each in reversed(traceback.extract_stack(frame)[-_FRAMES:]))


def _connection(monitor: Any, cut_off: float | None) -> float | None:
    """Since when there has been no connection."""
    while monitor.poll(0):
        connected = recv_monitor_message(monitor)["event"] == zmq.EVENT_CONNECTED
        cut_off = None if connected else time.monotonic()
    return cut_off


def _short(path: str) -> str:
    return "/".join(path.split("/")[-2:])
