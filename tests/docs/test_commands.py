"""Each command that a page shows is run, smoke-sized; a refusal that is shown is what is printed."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest

from plait import cli, spec
from plait.proof import faults
from tests.docs.conftest import SMOKE
from tests.docs.pages import PAGES, ROOT, Shown, name, shown
from tests.runs import slow

OTHER_PROGRAMS = {"git", "cd", "kill", "tail", "tensorboard", "pip", "python", "jq", "cat", "ls", "pytest", "ruff", "mypy"}
LAUNCHERS = {"torchrun", "mpirun", "srun"}
LONG = {"compare", "layouts", "elastic"}
"""Pages whose commands train many times over, smoke-sized as they are."""
Plait = Callable[[list[str]], SimpleNamespace]


@pytest.fixture
def plait(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Plait:
    """Runs a command in this process; returns its exit code and what it printed. Of the failures that are tried, the first two."""
    every = faults.scenarios
    monkeypatch.setattr(faults, "scenarios", lambda run, steps: islice(every(run, steps), 2))

    def run(words: list[str]) -> SimpleNamespace:
        monkeypatch.setattr(sys, "argv", ["plait", *words])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        out, err = capsys.readouterr()
        return SimpleNamespace(code=exit_.value.code or 0, out=out, err=err)

    return run


@pytest.mark.usefixtures("examples", "smoke")
@pytest.mark.parametrize("page", [slow(page) if page.stem in LONG else page for page in PAGES if shown(page)], ids=name)
def test_commands(page: Path, plait: Plait) -> None:
    for example in shown(page):
        words = words_of(example.command)
        if words[0] in LAUNCHERS:
            # tests/cluster/test_launchers.py starts such; here it is read alone
            expect_success(plait, [*words[words.index("plait") + 1 :], "--resolved"], example)
        elif words[0] == "make":
            assert set(words[1:]) <= targets(), example.command
        elif words[0] == "plait":
            if example.output.startswith("plait: "):
                expect_refusal(plait, words[1:], example)
            else:
                expect_success(plait, words[1:], example)
        else:
            assert words[0] in OTHER_PROGRAMS, f"{name(page)}: how should this be tried? {example.command}"


def words_of(command: str) -> list[str]:
    """The command without variables and .venv/bin/ before it, and without what a shell adds behind it."""
    words = [word for word in shlex.split(command.rstrip(" &"), comments=True) if not re.fullmatch(r"[A-Z_]+=.*", word)]
    words = [word.removeprefix(".venv/bin/") for word in words]
    return words[: words.index("|")] if "|" in words else words


def expect_success(plait: Plait, words: list[str], example: Shown) -> None:
    answer = plait([*words, *smaller(words)])
    assert answer.code == 0, f"{example.command}\n{answer.out}{answer.err}"


def expect_refusal(plait: Plait, words: list[str], example: Shown) -> None:
    answer = plait(words)
    assert answer.code in (1, 2), example.command
    assert without_progress(answer.err) == example.output.rstrip("\n"), example.command


def smaller(words: list[str]) -> list[str]:
    """What makes a command quick. Trainings are made small by the fixture `smoke`, behind the reading of their own settings."""
    if words[:2] in (
        ["data", "prepare"],
        ["data", "verify"],
        ["data", "stats"],
        ["data", "explain"],
        ["verify", "layouts"],
        ["verify", "faults"],
    ) or (words[0] == "compare" and "--runs" not in words):
        spec.load(next(word for word in words if word.endswith(".toml")), [word for word in words[3:] if "." in word and "=" in word])
        return SMOKE
    if words[:2] == ["verify", "soak"]:
        return [*SMOKE, "--kills", "2"]
    return ["--tokens", "4"] if words[0] == "generate" and "--help" not in words else []


def without_progress(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if not line.startswith("preparing: "))


def targets() -> set[str]:
    return set(re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
