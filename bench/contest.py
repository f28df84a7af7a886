"""Contests: contenders that train by turns on the same cores, within one run.

    A  ▓▓▓▓____▓▓▓▓____▓▓▓▓____        ▓ runs (SIGCONT), _ stands still (SIGSTOP)
    B  ____▓▓▓▓____▓▓▓▓____▓▓▓▓        ratio = median of A/B over the rounds

A machine's speed drifts by tens of percent within a minute, so only neighbouring turns are compared. Each contender writes a
tick, (time, tokens), after each step; a turn's rate is taken between its own first and last tick, so that the step that a stop
fell into counts for nobody.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

Tick = tuple[float, int]
WARM = 5
"""Ticks before anything counts."""
PATIENCE = 300.0
"""Seconds that a contender may take for its next tick: compiling takes long."""


class Contender:
    """Processes that train until they are closed. `streams`: files of ticks, one a trainer that works for itself."""

    def __init__(self, name: str, commands: list[list[str]], streams: list[Path], log: Path) -> None:
        self.name = name
        self._log = log
        self._streams = [Stream(path) for path in streams]
        with log.open("wb") as output:
            self._processes = [subprocess.Popen(command, stdout=output, stderr=output) for command in commands]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
        self.signal(signal.SIGCONT)
        for process in self._processes:
            process.wait()

    def signal(self, number: int) -> None:
        """To all processes that compute."""
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def pids(self) -> list[int]:
        return [process.pid for process in self._processes]

    def ticks(self) -> list[list[Tick]]:
        """Those that came since the last call, by stream."""
        return [stream.read() for stream in self._streams]

    def run(self, ticks: int, seconds: float = 0.0) -> list[list[Tick]]:
        """Let it train until each stream has so many more ticks and the time is over; returns them."""
        came = self.ticks()
        came = [[] for _ in came]
        self.signal(signal.SIGCONT)
        began = heard = time.monotonic()
        while time.monotonic() < began + seconds or min(map(len, came)) < ticks:
            time.sleep(0.02)
            for stream, new in zip(came, self.ticks(), strict=True):
                stream += new
                heard = time.monotonic() if new else heard
            self._check(time.monotonic() - heard)
        self.signal(signal.SIGSTOP)
        return came

    def _check(self, silent: float) -> None:
        if silent > PATIENCE or any(process.poll() is not None for process in self._processes):
            raise SystemExit(f"{self.name} ended or hangs:\n{self._log.read_text()[-4000:]}")


class Stream:
    """A file of ticks that grows: lines "time tokens"."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._at = 0

    def lines(self) -> list[str]:
        """Whole lines that are new."""
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            file.seek(self._at)
            whole = file.read().rpartition(b"\n")[0]
        self._at += len(whole) + 1 if whole else 0
        return whole.decode().splitlines()

    def read(self) -> list[Tick]:
        return [(float(when), int(tokens)) for when, tokens in map(str.split, self.lines())]


class PlaitTraining(Contender):
    """`plait train`, the command, as a user runs it; ticks are the Step events of its journal. worker: another one, one of the tests'."""

    def __init__(self, run_file: Path, out: Path, *overrides: str, name: str = "plait", worker: str | None = None) -> None:
        start = "from plait.cli import main; main()"
        if worker is not None:
            start = f"from plait.cluster import local; local.WORKER = {worker!r}; {start}"
        command = [sys.executable, "-c", start, "train", str(run_file), *overrides, "--out", str(out)]
        super().__init__(name, [command], [], out.with_suffix(".log"))
        self._events = Stream(out / "events.jsonl")
        self._workers: list[int] = []
        self.saved: list[dict[str, Any]] = []

    def pids(self) -> list[int]:
        """The workers': the parent only waits for them."""
        return self._workers

    def ticks(self) -> list[list[Tick]]:
        events = [json.loads(line) for line in self._events.lines()]
        self._workers += [event["pid"] for event in events if event["event"] == "Joined"]
        self.saved += [event for event in events if event["event"] == "Saved"]
        return [[(event["time"], event["tokens"]) for event in events if event["event"] == "Step"]]


def script(place: Any, name: str, *configs: dict[str, Any]) -> Contender:
    """A script of this folder, a process for each config; it writes ticks to the file `config["ticks"]`."""
    streams = [place.new(name, ".ticks") for _ in configs]
    commands = []
    for config, stream in zip(configs, streams, strict=True):
        commands.append([sys.executable, str(Path(__file__).with_name(f"{name}.py")), json.dumps({**config, "ticks": str(stream)})])
    return Contender(name, commands, streams, place.new(name, ".log"))


class Ticker:
    """The other end of a stream, in the contender's process."""

    def __init__(self, path: str) -> None:
        self._file = open(path, "w", buffering=1)  # noqa: SIM115  (open as long as the process lives)

    def __call__(self, tokens: int) -> None:
        self._file.write(f"{time.time()} {tokens}\n")


def contest(contenders: list[Contender], rounds: int, seconds: float, ticks: int = 4) -> list[list[float]]:
    """Tokens a second of each contender in each round: rates[contender][round]. They must be entered already."""
    for contender in contenders:
        contender.run(WARM)
    rates: list[list[float]] = [[] for _ in contenders]
    for _ in range(rounds):
        for contender, mine in zip(contenders, rates, strict=True):
            mine.append(sum(map(rate, contender.run(ticks, seconds))))
    return rates


def rate(ticks: list[Tick]) -> float:
    """Tokens a second between the first tick and the last."""
    return sum(tokens for _, tokens in ticks[1:]) / (ticks[-1][0] - ticks[0][0])


def ratios(rates: list[list[float]]) -> list[float]:
    """The first contender's over the second's, round by round."""
    return [one / other for one, other in zip(*rates, strict=True)]
