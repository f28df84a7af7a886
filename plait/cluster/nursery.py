"""The nursery: a process that has torch imported and forks workers when asked, so that a worker starts in milliseconds.

    launching parent ◄── JSON lines over a socket pair ──► nursery ──fork──► workers

It runs in a session of its own, so that Ctrl-C in a terminal reaches the parent alone. It ends, and its workers with it,
as soon as the parent does.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Sequence
from typing import Any, Self

from plait.errors import PlaitError

_PR_SET_PDEATHSIG = 1


LATER = ("plait.replica.shard", "plait.replica.pipeline", "plait.replica.stages", "plait.train.pieces")
"""What a worker imports when it comes to it: to save, or for its layout. A second of CPU, most of it torch's checkpoints and compilers."""


class Nursery:
    """The parent's handle. `messages` is to be called when `fileno` is readable. many: workers of many runs are forked, and what they would
    import later is imported once, before the first of them."""

    def __init__(self, many: bool = False) -> None:
        self._socket, theirs = socket.socketpair()
        command = [sys.executable, "-m", "plait.cluster.nursery", str(theirs.fileno()), *(LATER if many else ())]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], start_new_session=True, env=environment)
        theirs.close()
        self._unread = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fileno(self) -> int:
        return self._socket.fileno()

    def fork(self, worker: str, target: str, config: dict[str, Any]) -> None:
        """Start a worker that calls `target` ("module:function") with `config`."""
        self._send({"fork": worker, "target": target, "config": config})

    def signal(self, worker: str, number: int) -> None:
        """Send a signal to a worker that lives; others are passed over."""
        self._send({"signal": worker, "number": number})

    def messages(self) -> list[dict[str, Any]]:
        """What has happened: {"forked": worker, "pid"} and {"ended": worker, "status"}; a negative status is a signal.

        Raises PlaitError when the nursery itself is gone.
        """
        try:
            received = self._socket.recv(1 << 16)
        except ConnectionResetError:
            received = b""
        if not received:
            raise PlaitError("the process that forks workers died; its message stands above")
        *lines, self._unread = (self._unread + received).split(b"\n")
        return [json.loads(line) for line in lines]

    def close(self) -> None:
        """End the nursery, and any worker that still lives."""
        self._socket.close()
        self._process.wait()

    def _send(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(BrokenPipeError):  # its end is noticed in `messages`
            self._socket.sendall(json.dumps(message).encode() + b"\n")


def serve(parent: socket.socket, later: Sequence[str] = ()) -> None:
    """The nursery's own loop: until the parent goes."""
    _import_what_workers_need()
    for module in later:
        importlib.import_module(module)
    wake, alarm = socket.socketpair()
    for end in (wake, alarm):
        end.setblocking(False)
    signal.set_wakeup_fd(alarm.fileno())
    signal.signal(signal.SIGCHLD, lambda *_: None)
    workers: dict[int, str] = {}
    unread = b""
    while True:
        ready, _, _ = select.select([parent, wake], [], [])
        if wake in ready:
            wake.recv(4096)
            _reap(parent, workers)
        if parent in ready:
            received = parent.recv(1 << 16)
            if not received:
                break
            *lines, unread = (unread + received).split(b"\n")
            for line in lines:
                _obey(json.loads(line), parent, workers)
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
    for pid in workers:
        os.waitpid(pid, 0)


def _obey(message: dict[str, Any], parent: socket.socket, workers: dict[int, str]) -> None:
    if "fork" in message:
        pid = os.fork()
        if pid == 0:
            _become_worker(message["target"], message["config"])
        workers[pid] = message["fork"]
        _tell(parent, {"forked": message["fork"], "pid": pid})
    else:
        for pid, worker in workers.items():
            if worker == message["signal"]:
                os.kill(pid, message["number"])


def _become_worker(target: str, config: dict[str, Any]) -> None:
    """Runs in the child and never returns to the nursery's loop."""
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        _die_with_parent()
        os.closerange(3, 64)
        module, _, function = target.partition(":")
        status = getattr(__import__(module, fromlist=[function]), function)(config) or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _reap(parent: socket.socket, workers: dict[int, str]) -> None:
    for pid in list(workers):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            _tell(parent, {"ended": workers.pop(pid), "status": os.waitstatus_to_exitcode(status)})


def _tell(parent: socket.socket, message: dict[str, Any]) -> None:
    with contextlib.suppress(BrokenPipeError):
        parent.sendall(json.dumps(message).encode() + b"\n")


def _die_with_parent() -> None:
    """Linux: a worker gets SIGKILL when the nursery dies, however it dies."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _import_what_workers_need() -> None:
    import plait.cluster.worker  # noqa: F401  (torch and the rooms below, once for all workers)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])), sys.argv[2:])
    os._exit(0)  # taking torch apart again is of use to nobody
