"""Every benchmark runs from end to end. What it measures here means nothing: models are tiny and cores are shared."""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.runs import write_corpus

ALL = Path(__file__).parents[2] / "bench/all.py"


def run(name: str, folder: Path) -> list[dict[str, Any]]:
    corpus, results = write_corpus(folder, documents=400), folder / "results.json"
    command = [sys.executable, str(ALL), "--tiny", "--only", name, "--corpus", str(corpus), "--results", str(results)]
    subprocess.run(command, check=True, timeout=400)
    figures: list[dict[str, Any]] = json.loads(results.read_text())["figures"]
    return figures


def is_measured(figure: dict[str, Any]) -> bool:
    """A number, and its spread around it: what is lost to something may come out below zero where the machine is noisy."""
    return math.isfinite(figure["value"]) and figure["low"] <= figure["value"] <= figure["high"]


@pytest.mark.slow
def test_preparing_is_measured_against_the_tokenizer_alone(tmp_path: Path) -> None:
    (figure,) = run("preparing", tmp_path)
    assert is_measured(figure)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "one_process",
        "two_replicas",
        "shard",
        "buckets",
        "line",
        "sync",
        "elastic",
        "balance",
        "dealing",
        "first_step",
        "loader",
        "cleaning",
        "checkpoints",
        "huggingface",
    ],
)
def test_training_is_measured(name: str, tmp_path: Path) -> None:
    assert all(is_measured(figure) for figure in run(name, tmp_path))


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("s3fs") is None, reason="needs the extra [servers]")
def test_storage_is_measured(tmp_path: Path) -> None:
    assert all(is_measured(figure) for figure in run("store", tmp_path))


@pytest.mark.slow
def test_fingerprints_are_measured(tmp_path: Path) -> None:
    assert all(is_measured(figure) for figure in run("corruption", tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "needed"), [("against_transformers", "accelerate"), ("classifying", "accelerate"), ("generate", "transformers")]
)
def test_transformers_is_measured(name: str, needed: str, tmp_path: Path) -> None:
    """Its Trainer needs accelerate."""
    pytest.importorskip(needed, reason="needs the extra [bench]")
    assert all(figure["value"] > 0 for figure in run(name, tmp_path))
