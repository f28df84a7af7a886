"""No listener stops or holds up the training; what cannot be listened with is refused before it starts."""

import subprocess
import sys
import threading

import pytest

from plait import events, spec
from plait.errors import RunFileError
from plait.watch.console import Console
from plait.watch.listener import Aside, Listeners, build_listeners
from plait.watch.tensorboard import TensorBoard

FINISHED = events.Finished(1.0, 3)


class Keeps:
    def __init__(self, folder=None, run=None):
        self.folder, self.run, self.told, self.closed = folder, run, [], 0

    def on(self, event):
        self.told.append(event)

    def close(self):
        self.closed += 1


class Breaks(Keeps):
    def on(self, event):
        super().on(event)
        raise RuntimeError("the network is gone")


class BreaksAtTheEnd(Keeps):
    def close(self):
        raise RuntimeError("no goodbye")


class Refuses:
    def __init__(self, folder, run):
        raise OSError("no such server")


class Deaf:
    def __init__(self, folder, run):
        pass


def test_one_that_raises_is_reported_once_and_dropped(capsys):
    bad, good = Breaks(), Keeps()
    with Listeners([bad, good]) as told:
        for _ in range(3):
            told(FINISHED)
    assert len(bad.told) == 1
    assert bad.closed == 0
    assert len(good.told) == 3
    assert good.closed == 1
    assert capsys.readouterr().err.count("the network is gone") == 1


def test_one_that_cannot_be_closed_leaves_the_others_closed(capsys):
    good = Keeps()
    Listeners([BreaksAtTheEnd(), good]).close()
    assert good.closed == 1
    assert "no goodbye" in capsys.readouterr().err


def test_aside_tells_everything_in_order_and_closes():
    inner = Keeps()
    aside = Aside(inner)
    for number in range(100):
        aside.on(events.Finished(1.0, number))
    aside.close()
    assert [event.step for event in inner.told] == list(range(100))
    assert inner.closed == 1


def test_aside_does_not_wait_for_a_slow_one_and_gives_up_at_the_end(capsys):
    never = threading.Event()
    inner = Keeps()
    inner.on = lambda event: never.wait(20)
    aside = Aside(inner, patience=0.01)
    for _ in range(1000):
        aside.on(FINISHED)
    aside.close()
    never.set()
    assert "left behind" in capsys.readouterr().err


def test_one_aside_that_raises_is_reported_and_dropped(capsys):
    inner = Breaks()
    aside = Aside(inner)
    aside.on(FINISHED)
    aside.on(FINISHED)
    aside.close()
    assert len(inner.told) == 1
    assert "the network is gone" in capsys.readouterr().err


def test_the_run_file_says_who_listens(tmp_path, run):
    watch = spec.Watch(listeners=[f"{__name__}:Keeps"])
    console, board, own = build_listeners(watch, tmp_path, run)
    assert isinstance(console, Console)
    assert isinstance(board, TensorBoard)
    own.on(FINISHED)
    own.close()
    assert own._listener.told == [FINISHED]
    assert (own._listener.folder, own._listener.run) == (tmp_path, run)


def test_nothing_is_written_for_a_run_that_tells_nothing(tmp_path, run):
    Listeners(build_listeners(spec.Watch(), tmp_path, run)).close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "why"), [("Refuses", "no such server"), ("Deaf", r"no method on\(\)"), ("Missing", "has no Missing")])
def test_your_own_that_cannot_listen_is_refused(tmp_path, run, name, why):
    with pytest.raises(RunFileError, match=why) as found:
        build_listeners(spec.Watch(listeners=[f"{__name__}:{name}"]), tmp_path, run)
    assert "watch.listeners" in str(found.value)


@pytest.mark.parametrize("extra", ["wandb", "mlflow"])
def test_a_missing_extra_is_named_with_its_remedy(tmp_path, run, extra, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RunFileError, match=rf'pip install "plait\[{extra}\]"'):
        build_listeners(spec.Watch(**{extra: "project"}), tmp_path, run)


def test_watching_does_not_import_torch(tmp_path):
    script = """
import sys
from pathlib import Path
from plait import events, spec
from plait.watch.listener import Listeners, build_listeners
run = spec.parse({"data": {"corpus": ["a.txt"]}, "train": {"duration": "4 steps"}})
with Listeners(build_listeners(run.watch, Path(sys.argv[1]), run)) as told:
    told(events.Evaluated(1.0, 1, "validation", 2.0, 7.4, 0.3, 100))
sys.exit("torch" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False, capture_output=True).returncode == 0
