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
    "model.layers=1",
    "model.width=16",
    "model.heads=2",
    "model.kv_heads=1",
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


@pytest.fixture
def examples(tmp_path: Path, corpus: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a copy of examples/ on a tiny corpus; token files are kept for the session."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples", ignore=shutil.ignore_patterns("*.zst", "__pycache__"))
    text = zstandard.compress(corpus.read_bytes())
    for source in (ROOT / "examples").rglob("*.zst"):
        (tmp_path / source.relative_to(ROOT)).write_bytes(text)
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    (tmp_path / "my").mkdir()
    (tmp_path / "my" / "book.txt").write_bytes(corpus.read_bytes())
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "prepared").symlink_to(prepared)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def smoke(monkeypatch: pytest.MonkeyPatch, nursery: Nursery, tmp_path: Path) -> None:
    """Makes every preparation and training small, and forks the latter from the session's nursery."""
    train, prepare = pretrain.train, data_prepare.prepare

    def small(run: spec.Run) -> spec.Run:
        whole = tmp_path / "whole.toml"
        whole.write_text(tomli_w.dumps(run.resolved()))
        return spec.load(whole, SMOKE)

    def train_small(run: spec.Run, *arguments: Any, **named: Any) -> pretrain.Result:
        return train(small(run), *arguments, **{**named, "nursery": nursery})

    def prepare_small(data: spec.Data, **named: Any) -> Prepared:
        return prepare(small(spec.Run(data=data, train=spec.Train(duration=spec.Duration("1 steps")))).data, **named)

    monkeypatch.setattr(pretrain, "train", train_small)
    monkeypatch.setattr(data_prepare, "prepare", prepare_small)
