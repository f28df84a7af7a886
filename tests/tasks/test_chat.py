"""Conversations: trained on under every layout, and held with what was trained."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plait import events
from plait.cluster.nursery import Nursery
from plait.tasks.pretrain import train
from tests.runs import WORDS, differences, steps_of, tiny

LOSS, GRAD_NORM = 1e-9, 1e-7


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    rows = [{"prompt": f"say {one} {other}", "answer": f"{one} {other}"} for one in WORDS[:9] for other in WORDS[5:14]]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


Curve = Callable[..., list[events.Step]]


@pytest.fixture
def curve(tmp_path: Path, pairs: Path, prepared: Path, nursery: Nursery) -> Curve:
    def run(name: str, **changes: Any) -> list[events.Step]:
        settings = {"train__duration": "4 steps", "model__dropout": 0.1, "data__sequence": 64, "data__tokenizer": {"train": 266}, **changes}
        train(tiny(pairs, prepared, **settings), tmp_path / name, nursery=nursery, quiet=True)
        return steps_of(tmp_path / name)

    return run


@pytest.mark.parametrize("layout", [{"tensor": 2}, pytest.param({"replicas": 2, "shard": 2}, marks=pytest.mark.slow)], ids=str)
def test_answers_draw_the_curve_of_one_process(curve: Curve, layout: dict[str, int]) -> None:
    """Packed, so that rows have masks and unequal numbers of targets."""
    alone = curve("alone", data__chat={"pack": True})
    spread = curve("spread", data__chat={"pack": True}, **{f"layout__{axis}": size for axis, size in layout.items()})
    loss, grad_norm = differences(alone, spread)
    assert loss <= LOSS
    assert grad_norm <= GRAD_NORM


def test_a_step_counts_the_tokens_of_answers(curve: Curve, tmp_path: Path, prepared: Path) -> None:
    assert all(step.tokens < 8 * 64 / 4 for step in curve("alone", data__chat={}, train__duration="2 steps"))
    assert (tmp_path / "alone" / "chat_template.jinja").exists()
