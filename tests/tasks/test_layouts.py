"""Promise 1 under every layout: the curve of one process, whatever its model is spread over."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plait import events
from plait.cluster.nursery import Nursery
from plait.errors import WorkerFailed
from plait.tasks.pretrain import train
from plait.testing.failures import SignalAt
from tests.runs import differences, history_of, steps_of, tiny

LOSS, GRAD_NORM = 1e-9, 1e-7

Train = Callable[..., list[events.Step]]


@pytest.fixture
def curve(tmp_path: Path, corpus: Path, prepared: Path, nursery: Nursery) -> Train:
    """Trains some steps with dropout and returns the curve."""

    def run(name: str, listeners: tuple = (), **changes: Any) -> list[events.Step]:
        settings = {"train__duration": "5 steps", "model__dropout": 0.1, **changes}
        train(tiny(corpus, prepared, **settings), tmp_path / name, listeners=listeners, nursery=nursery)
        return steps_of(tmp_path / name)

    return run


def assert_one_curve(one: list[events.Step], other: list[events.Step]) -> None:
    loss, grad_norm = differences(one, other)
    assert loss <= LOSS
    assert grad_norm <= GRAD_NORM


GPT2 = {"model__family": "gpt2", "model__kv_heads": None, "data__document_mask": True}


@pytest.mark.parametrize("layout", [{"tensor": 2}, {"tensor": 2, "replicas": 2}], ids=str)
@pytest.mark.parametrize("family", [{}, GPT2], ids=["llama", "gpt2"])
def test_layouts_draw_the_curve_of_one_process(curve: Train, layout: dict[str, int], family: dict[str, Any]) -> None:
    alone = curve("alone", **family)
    assert_one_curve(alone, curve("spread", **family, **{f"layout__{axis}": size for axis, size in layout.items()}))


def test_saved_in_one_layout_the_curve_goes_on_in_another(curve: Train, tmp_path: Path) -> None:
    settings = {"train__duration": "6 steps", "checkpoint__every": "2 steps", **GPT2}
    with pytest.raises(WorkerFailed, match="SIGKILL"):
        curve("moved", [SignalAt(2, replica=0, kind=events.Saved)], layout__tensor=2, **settings)
    with pytest.raises(WorkerFailed, match="SIGKILL"):
        curve("moved", [SignalAt(4, replica=0, kind=events.Saved)], **settings)
    assert_one_curve(curve("alone", **settings), curve("moved", layout__tensor=2, **settings))
    assert [event.from_step for event in history_of(tmp_path / "moved") if isinstance(event, events.Resumed)] == [2, 4]
