"""A smoke-sized world for what pages show: the examples on a tiny corpus, a tiny model, a few steps."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import zstandard

from plait import spec
from plait.cluster.nursery import Nursery
from plait.data import prepare as data_prepare
from plait.data.tokens import Prepared
from plait.tasks import pretrain
from tests.docs.pages import ROOT

SMOKE = [
    "model.layers=2",
    "model.width=16",
    "model.heads=2",
    "model.kv_heads=2",
    "data.tokenizer={ train = 272 }",
    "data.sequence=48",
    "data.workers=1",
    "train.duration=3 steps",
    "train.batch=4",
    "train.micro_batch=2",
    "train.schedule.warmup=1 steps",
    "train.evaluate_every=3 steps",
    "train.evaluate_sequences=4",
    "train.log_every=1 steps",
    "train.compile=false",
    "checkpoint.every=2 steps",
    "cluster.threads=1",
    "cluster.device=cpu",
]
"""Laid over each run of a page, after the page's own settings."""
ROWS = 60
"""Of each file of rows."""
SENTINELS = ["data.tokenizer={ train = 400 }"]
"""Fewer tokens leave no room for them."""


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory, corpus: Path, prepared: Path) -> Path:
    """A folder with the examples on a tiny corpus, a text of one's own, and token files that are kept for the session."""
    folder = tmp_path_factory.mktemp("world")
    shutil.copytree(ROOT / "examples", folder / "examples", ignore=shutil.ignore_patterns("*.zst", "__pycache__"))
    for source in (ROOT / "examples").rglob("*.zst"):
        text = corpus.read_bytes() if source.name.endswith(".txt.zst") else _first_rows(source)
        (folder / source.relative_to(ROOT)).write_bytes(zstandard.compress(text))
    (folder / "my").mkdir()
    shutil.copy(corpus, folder / "my" / "book.txt")
    (folder / "runs").mkdir()
    (folder / "runs" / "prepared").symlink_to(prepared)
    return folder


def _first_rows(source: Path) -> bytes:
    return b"".join(zstandard.decompress(source.read_bytes()).splitlines(keepends=True)[:ROWS])


@pytest.fixture
def examples(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder that is a copy of the world."""
    shutil.copytree(world, tmp_path / "here", symlinks=True)
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.fixture(scope="session")
def demo(world: Path, nursery: Nursery) -> Path:
    """A run's folder, as pages assume it to be there; trained once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(world)
        pretrain.train(spec.load("examples/austen.toml", SMOKE), "runs/demo", nursery=nursery)
    (world / "runs" / "austen").symlink_to("demo")
    return world / "runs" / "demo"


@pytest.fixture
def smoke(monkeypatch: pytest.MonkeyPatch, nursery: Nursery, tmp_path: Path) -> None:
    """Makes every preparation and training small, and forks the latter from the session's nursery."""
    train, prepare = pretrain.train, data_prepare.prepare

    def small(run: spec.Run) -> spec.Run:
        whole = tmp_path / "whole.toml"
        whole.write_text(tomli_w.dumps(run.resolved()))
        told = () if run.settled else ("model.", "data.tokenizer", "data.sequence")  # by the base
        told += ("data.sequence", "data.tokenizer") if run.data.chat else ()  # an answer has to begin in a sequence
        roomy = SENTINELS if run.data.objective.kind == "span" else []
        return spec.load(whole, [*(setting for setting in SMOKE if not setting.startswith(told)), *roomy])

    def train_small(run: spec.Run, *arguments: Any, **named: Any) -> pretrain.Result:
        return train(small(run), *arguments, **{**named, "nursery": nursery})

    def prepare_small(data: spec.Data, **named: Any) -> Prepared:
        return prepare(small(spec.Run(data=data, train=spec.Train(duration=spec.Duration("1 steps")))).data, **named)

    monkeypatch.setattr(pretrain, "train", train_small)
    monkeypatch.setattr(data_prepare, "prepare", prepare_small)
