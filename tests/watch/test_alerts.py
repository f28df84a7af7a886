"""Alerts arrive, though who takes them fails at first; they hold nothing up; what cannot be told is said; secrets are told to nobody."""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from plait import events, spec
from plait.errors import RunFileError, WorkerFailed
from plait.tasks.pretrain import train
from plait.watch.alerts import Alert, Alerts, alert_of
from plait.watch.channels import Command, Undelivered, Webhook, open_channels
from plait.watch.courier import Courier
from tests.runs import tiny

SOON = (0.01,) * 6
LOST = events.Lost(100.0, 1, 0, "its process was killed by SIGKILL")
ALERT = Alert("failure", "warning", "lost replica 1", 100.0, LOST)


class Server(ThreadingHTTPServer):
    """Answers with `answers`, one after the other, and 200 from then on; keeps what it was sent."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: list[int] = []
        self.posted: list[dict[str, Any]] = []
        self.asked: list[tuple[str, str]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(("POST", self.path))
        code = self.server.answers.pop(0) if self.server.answers else 200
        self.send_response(code)
        if code == 302:
            self.send_header("Location", f"{self.server.url}/elsewhere")
        if code == 200 and self.headers["Content-Type"] == "application/json":
            self.server.posted.append(body)
        self.end_headers()

    def do_GET(self) -> None:
        self.server.asked.append(("GET", self.path))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def script(tmp_path: Path) -> Any:
    def make(text: str, mode: int = 0o755) -> str:
        path = tmp_path / "notify.sh"
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(mode)
        return str(path)

    return make


class Held:
    """A channel that waits until it is let go."""

    name = "held"

    def __init__(self) -> None:
        self.go, self.taken = threading.Event(), []  # type: ignore[var-annotated]

    def deliver(self, letter: Any) -> None:
        self.go.wait(30)
        self.taken.append(letter)

    def stop(self) -> None: ...


def deliver(channel: Any, *alerts: Alert, patience: float = 20.0) -> None:
    courier = Courier(channel, patience, SOON)
    for alert in alerts:
        courier.take(alert)
    courier.close()


def alerts_of(tmp_path: Path, channel: Any, **settings: Any) -> Alerts:
    return Alerts(spec.Alerts(**settings), tmp_path / "run", [channel])


# --- a webhook -------------------------------------------------------------------------------------------------


def test_a_webhook_that_fails_twice_is_told_in_the_end_and_in_order(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    server.answers = [503, 429]
    second = Alert("hang", "warning", "replica 2 hangs", 101.0)
    deliver(Webhook(f"{server.url}/services/T0/SECRET", 5.0), ALERT, second)
    assert [body["text"] for body in server.posted] == ["lost replica 1", "replica 2 hangs"]
    assert server.posted[0]["event"] == json.loads(LOST.to_json())
    assert server.asked == [("POST", "/services/T0/SECRET")] * 4
    told = capsys.readouterr().err
    assert "answered 503 Service Unavailable; trying again" in told
    assert told.count("trying again") == 1
    assert "given up" not in told
    assert "SECRET" not in told


@pytest.mark.parametrize(("answer", "asked"), [(404, 1), (302, 1), (500, 7)])
def test_what_will_not_be_taken_is_given_up_and_said(server: Server, capsys: pytest.CaptureFixture[str], answer: int, asked: int) -> None:
    server.answers = [answer] * 7
    deliver(Webhook(f"{server.url}/SECRET", 5.0), ALERT)
    assert server.asked == [("POST", "/SECRET")] * asked
    told = capsys.readouterr().err
    assert f"answered {answer}" in told
    assert f"given up after {asked} attempt" in told
    assert "lost replica 1" in told
    assert "SECRET" not in told


def test_nobody_who_listens_is_said(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    server.server_close()
    deliver(Webhook(f"{server.url}/SECRET", 5.0), ALERT)
    told = capsys.readouterr().err
    assert "Connection refused; given up after 7 attempts: lost replica 1" in told
    assert "SECRET" not in told


# --- a command -------------------------------------------------------------------------------------------------


def test_a_command_gets_json_and_variables(script: Any, tmp_path: Path) -> None:
    command = script(f'cat > {tmp_path}/given; echo "$1 $PLAIT_ALERT_KIND $PLAIT_ALERT_SEVERITY $PLAIT_ALERT_TEXT" > {tmp_path}/told')
    deliver(open_channels(spec.Alerts(command=f"{command} 'to me'"))[0], ALERT)
    assert json.loads((tmp_path / "given").read_text()) == ALERT.as_dict()
    assert (tmp_path / "told").read_text() == "to me failure warning lost replica 1\n"


def test_a_command_that_fails_is_run_again(script: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = script(f"echo x >> {tmp_path}/runs; test $(wc -l < {tmp_path}/runs) = 3 || {{ echo no route; exit 7; }}")
    deliver(Command([command], 5.0), ALERT)
    assert (tmp_path / "runs").read_text() == "x\nx\nx\n"
    assert "command notify.sh: ended with status 7: no route; trying again" in capsys.readouterr().err


def test_a_command_that_hangs_is_killed_with_what_it_started(script: Any, tmp_path: Path) -> None:
    command = script(f"sleep 1000 & echo $! > {tmp_path}/child; wait")
    with pytest.raises(Undelivered, match=r"took longer than 1 s and was killed"):
        Command([command], 1.0).deliver(ALERT)
    assert_gone(int((tmp_path / "child").read_text()))


def test_a_command_under_way_when_the_patience_is_over_is_killed(script: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = script(f"echo $$ > {tmp_path}/pid; exec sleep 1000")
    deliver(Command([command], 1000.0), ALERT, Alert("hang", "warning", "replica 2 hangs", 101.0), patience=1.0)
    assert_gone(int((tmp_path / "pid").read_text()))
    told = capsys.readouterr().err
    assert "was not told within 1 s of the run's end: lost replica 1" in told
    assert "was not told within 1 s of the run's end: replica 2 hangs" in told


def assert_gone(pid: int) -> None:
    for _ in range(1000):
        try:
            os.kill(pid, 0)
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return
        except (ProcessLookupError, FileNotFoundError):
            return
        time.sleep(0.005)
    raise AssertionError(f"process {pid} is still there")


# --- which, when, and how ----------------------------------------------------------------------------------------


def test_who_tells_waits_for_nobody(tmp_path: Path) -> None:
    channel = Held()
    alerts = alerts_of(tmp_path, channel)
    for replica in range(100):
        alerts.on(events.Lost(1.0, replica, 0, "gone"))
    assert channel.taken == []
    channel.go.set()
    alerts.close()
    assert len(channel.taken) == 100


def test_an_alert_says_what_where_and_when(tmp_path: Path) -> None:
    channel = Held()
    channel.go.set()
    alerts = alerts_of(tmp_path, channel)
    alerts.on(events.Lost(100.0, 1, 0, "Traceback:\n  ...\nMemoryError: none\0 left"))
    alerts.close()
    (alert,) = channel.taken
    assert alert.text == "run: lost replica 1 (rank 0): MemoryError: none left"
    assert alert.run == str(tmp_path / "run")
    assert alert.time == 100.0
    assert set(alert.variables) == {f"PLAIT_ALERT_{name}" for name in ("KIND", "SEVERITY", "TEXT", "RUN", "HOST", "TIME", "REPEATED")}
    assert json.loads(alert.body)["event"]["why"].startswith("Traceback")


def test_equal_alerts_come_no_faster_than_asked_and_are_counted(tmp_path: Path) -> None:
    channel = Held()
    channel.go.set()
    alerts = alerts_of(tmp_path, channel, every=60.0)
    for at, replica in [(0.0, 1), (10.0, 1), (59.0, 1), (59.5, 2), (60.0, 1), (121.0, 1)]:
        alerts.on(events.Lost(at, replica, 0, "gone"))
    alerts.close()
    assert [(alert.about, alert.time, alert.repeated) for alert in channel.taken] == [
        ("1.0", 0.0, 0),
        ("2.0", 59.5, 0),
        ("1.0", 60.0, 2),
        ("1.0", 121.0, 0),
    ]


def test_a_disk_without_room_is_told_though_a_low_one_just_was(tmp_path: Path) -> None:
    channel = Held()
    channel.go.set()
    alerts = alerts_of(tmp_path, channel)
    alerts.on(events.LowDisk(1.0, "/data", 900, 1000, 500))
    alerts.on(events.LowDisk(2.0, "/data", 400, 1000, 500))
    alerts.close()
    assert [alert.severity for alert in channel.taken] == ["warning", "critical"]


def test_only_what_was_asked_for_is_told(tmp_path: Path) -> None:
    channel = Held()
    channel.go.set()
    alerts = alerts_of(tmp_path, channel, kinds=["run_ended"])
    alerts.on(LOST)
    alerts.on(events.Finished(1.0, 3))
    alerts.close()
    assert [alert.kind for alert in channel.taken] == ["run_ended"]


def test_every_trouble_is_an_alert_of_one_line(step: Any) -> None:
    troubles = {
        "run_failed": events.Failed(1.0, 3, "replica 1 rank 0: Traceback\nError: no"),
        "failure": LOST,
        "hang": events.Hung(1.0, 1, 0, "node1", 7, 30.0, "computes", 3, "a.py:1 f < b.py:2 g"),
        "waiting": events.Waiting(1.0, 1, 2),
        "straggler": events.Straggler(1.0, 3, 1, 0, "node1", 7, "computing", 0.2, 0.1, 2.0, "none"),
        "corruption": events.Corrupted(1.0, 3, 1, 0, "node1", ["model.a"], 2, "healed"),
        "spike": events.Spiked(1.0, 3, "loss", 9.0, 2.0, 4.0, [[0, 8]]),
        "rollback": events.RolledBack(1.0, 2, "5 steps in a row were not finite"),
        "nonfinite": step(3, loss=math.nan, skipped=True),
        "save_failed": events.SaveFailed(1.0, 3, "No space left on device"),
        "copy_failed": events.CopyFailed(1.0, 3, "s3://bucket: no route"),
        "damaged": events.Damaged(1.0, 3, "out/step-3", "out/step-3/piece: is corrupt"),
        "low_disk": events.LowDisk(1.0, "/data", 900, 1000, 500),
        "run_ended": events.Stopped(1.0, 3, "asked to"),
    }
    found = {kind: alert_of(event) for kind, event in troubles.items()}
    assert {kind: alert.kind for kind, alert in found.items() if alert is not None} == {kind: kind for kind in troubles}
    assert all(alert is not None and alert.text and "\n" not in alert.text for alert in found.values())
    assert set(troubles) == set(spec.AlertKind.__args__)  # type: ignore[attr-defined]
    assert alert_of(step(3)) is None


# --- what is refused, and what is not shown ----------------------------------------------------------------------


def test_a_command_that_cannot_be_run_is_refused(script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RunFileError, match=r"alerts.command: nowhere.sh cannot be run: it is neither in PATH nor in the working folder"):
        open_channels(spec.Alerts(command="nowhere.sh now"))
    with pytest.raises(RunFileError, match=r"alerts.command: .*notify.sh is not executable; chmod \+x .*notify.sh"):
        open_channels(spec.Alerts(command=script("true", mode=0o644)))
    with pytest.raises(RunFileError, match="No closing quotation"):
        open_channels(spec.Alerts(command="echo 'never"))
    script("true")
    monkeypatch.chdir(tmp_path)
    assert open_channels(spec.Alerts(command="notify.sh"))[0].name == "command notify.sh"


def test_a_webhook_may_be_in_a_variable(monkeypatch: pytest.MonkeyPatch, server: Server) -> None:
    settings = spec.Alerts(webhook="$ALERTS_GO_TO")
    with pytest.raises(RunFileError, match=r"alerts\.webhook: the variable ALERTS_GO_TO is not set"):
        open_channels(settings)
    monkeypatch.setenv("ALERTS_GO_TO", "ftp://host/SECRET")
    with pytest.raises(RunFileError, match=r"ALERTS_GO_TO: \"ftp://host/\*\*\*\" is no webhook"):
        open_channels(settings)
    monkeypatch.setenv("ALERTS_GO_TO", server.url)
    deliver(open_channels(settings)[0], ALERT)
    assert len(server.posted) == 1


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://me:SECRET@hooks.example.com:8443/services/SECRET?token=SECRET", "https://hooks.example.com:8443/***"),
        ("http://localhost:9000", "http://localhost:9000"),
        ("$ALERTS_GO_TO", "$ALERTS_GO_TO"),
    ],
)
def test_a_webhooks_secrets_stand_in_no_dump(tmp_path: Path, url: str, shown: str) -> None:
    run = spec.parse({"data": {"corpus": ["a"]}, "train": {"duration": "1 steps"}, "alerts": {"webhook": url}})
    assert run.alerts.webhook == url
    assert run.resolved()["alerts"]["webhook"] == shown
    assert "SECRET" not in f"{run!r} {run}"
    assert spec.parse(run.resolved()).alerts.webhook == shown
    if shown.endswith("***"):
        with pytest.raises(RunFileError, match=r"alerts\.webhook: https://hooks.* is masked"):
            open_channels(spec.parse(run.resolved()).alerts)


@pytest.mark.parametrize("url", ["ftp://host/SECRET", "SECRET", "https:///SECRET", "http://host:99999/SECRET", "http://host/SEC RET"])
def test_what_is_no_webhook_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(RunFileError, match=r"alerts\.webhook: .* is no webhook; write one that begins with https://") as refusal:
        spec.parse({"data": {"corpus": ["a"]}, "train": {"duration": "1 steps"}, "alerts": {"webhook": url}})
    assert "SEC" not in str(refusal.value)


# --- a run -------------------------------------------------------------------------------------------------------


def test_a_run_tells_of_its_troubles(tmp_path: Path, corpus: Path, prepared: Path, nursery: Any, server: Server, script: Any) -> None:
    told = script(f'echo "$PLAIT_ALERT_KIND" >> {tmp_path}/told')
    alerts = {"alerts__command": told, "alerts__webhook": f"{server.url}/SECRET"}
    run = tiny(corpus, prepared, train__loss="tests.wrong:failing", **alerts)
    with pytest.raises(WorkerFailed):
        train(run, tmp_path / "out", nursery=nursery, quiet=True)
    assert [body["kind"] for body in server.posted] == ["failure", "run_failed"]
    assert server.posted[1]["severity"] == "critical"
    assert "told to fail" in server.posted[1]["text"]
    assert server.posted[1]["run"] == str(tmp_path / "out")
    assert (tmp_path / "told").read_text().split() == ["failure", "run_failed"]
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file() and b"SECRET" in path.read_bytes()]


def test_a_command_that_cannot_be_run_stops_a_run_before_its_data_is_prepared(tmp_path: Path, corpus: Path) -> None:
    run = tiny(corpus, tmp_path / "prepared", alerts__command="nowhere.sh")
    with pytest.raises(RunFileError, match=r"nowhere\.sh cannot be run"):
        train(run, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == []
