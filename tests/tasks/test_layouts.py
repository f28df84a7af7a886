"""Promise 1 under every layout: the curve of one process, whatever its model is spread over."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plait import events
from plait.cluster.nursery import Nursery
from plait.tasks.pretrain import train
from plait.testing.failures import CutOff, CutOffAt, SignalAt
from tests.runs import T5_PAIRS, bf16_floor, differences, history_of, slow, steps_of, tiny, write_pairs

LOSS, GRAD_NORM = 1e-9, 1e-7

Train = Callable[..., list[events.Step]]


@pytest.fixture
def curve(tmp_path: Path, corpus: Path, prepared: Path, nursery: Nursery) -> Train:
    """Trains some steps with dropout and returns the curve."""

    def run(name: str, listeners: tuple = (), **changes: Any) -> list[events.Step]:
        settings = {"train__duration": "4 steps", "model__dropout": 0.1, **changes}
        translating = settings.get("data__objective") == {"kind": "translate"}
        text = write_pairs(tmp_path) if translating else corpus
        train(tiny(text, prepared, **settings), tmp_path / name, listeners=listeners, nursery=nursery)
        return steps_of(tmp_path / name)

    return run


def assert_one_curve(one: list[events.Step], other: list[events.Step]) -> None:
    loss, grad_norm = differences(one, other)
    assert loss <= LOSS
    assert grad_norm <= GRAD_NORM


GPT2 = {"model__family": "gpt2", "model__kv_heads": None, "data__document_mask": True}
MOE = {"model__family": "moe", "model__experts": 4, "model__shared_experts": 1, "model__auxiliary": 0.01}
QWEN = {"model__qk_norm": True, "model__qkv_bias": True, "model__head_size": 12}
BERT = {"model__family": "bert", "model__kv_heads": None, "data__objective": {"kind": "masked", "whole_words": True}}
T5 = {
    "model__family": "t5",
    "model__kv_heads": None,
    "data__objective": {"kind": "span"},
    "data__sequence": 32,
    "data__tokenizer": {"train": 400},
    "train__label_smoothing": 0.1,
}
FAMILIES = {"translate": T5_PAIRS, "t5": T5, "llama": {}, "gpt2": GPT2, "moe": MOE, "qwen": QWEN, "bert": BERT}

LAYOUTS = [
    ("llama", {"tensor": 2}),
    ("gpt2", {"tensor": 2, "replicas": 2}),
    ("llama", {"shard": 2}),
    slow("gpt2", {"shard": 3, "zero": 2}),
    ("moe", {"shard": 2, "zero": 1}),
    ("gpt2", {"context": 2}),
    slow("llama", {"context": 2, "context_by": "ulysses"}),
    ("moe", {"expert": 2}),
    ("llama", {"shard": 2, "tensor": 2}),
    slow("moe", {"context": 2, "tensor": 2}),
    slow("moe", {"expert": 2, "shard": 2}),
    slow("qwen", {"tensor": 2}),
    slow("bert", {"context": 2, "tensor": 2}),
    slow("bert", {"pipeline": 2, "shard": 2}),
    slow("t5", {"pipeline": 2, "tensor": 2}),
    slow("translate", {"pipeline": 2, "shard": 2}),
    slow("translate", {"shard": 2, "context": 2, "context_by": "ulysses"}),
    slow("translate", {"replicas": 2, "pipeline": 2, "schedule": "interleaved"}),
    slow("t5", {"shard": 2, "context": 2, "context_by": "ulysses"}),
    slow("t5", {"context": 2}),
    slow("t5", {"context": 2, "tensor": 2}),
    slow("t5", {"shard": 2, "pipeline": 2, "schedule": "interleaved", "zero": 2}),
    slow("t5", {"shard": 2, "pipeline": 2, "schedule": "zero_bubble", "zero": 2}),
    slow("t5", {"shard": 2, "pipeline": 2, "schedule": "interleaved", "zero": 3}),
    slow("t5", {"replicas": 2, "pipeline": 2, "schedule": "interleaved"}),
    slow("bert", {"replicas": 2, "context": 2, "context_by": "ulysses"}),
    ("gpt2", {"pipeline": 2}),
    slow("llama", {"pipeline": 2, "schedule": "gpipe", "tensor": 2}),
    slow("moe", {"pipeline": 2, "shard": 2}),
    slow("gpt2", {"pipeline": 2, "replicas": 2}),
]


def spread(layout: dict[str, Any]) -> dict[str, Any]:
    return {f"layout__{axis}": size for axis, size in layout.items()}


@pytest.mark.parametrize(("family", "layout"), LAYOUTS, ids=str)
def test_layouts_draw_the_curve_of_one_process(curve: Train, family: str, layout: dict[str, Any]) -> None:
    alone = curve("alone", **FAMILIES[family])
    assert_one_curve(alone, curve("spread", **FAMILIES[family], **spread(layout)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "layout",
    [{"schedule": "zero_bubble", "zero": 2}, {"schedule": "interleaved", "zero": 3}, {"schedule": "gpipe", "zero": 1}],
    ids=str,
)
def test_stages_keep_rows(curve: Train, layout: dict[str, Any]) -> None:
    alone = curve("alone", model__layers=4)
    assert_one_curve(alone, curve("spread", model__layers=4, **spread({"pipeline": 2, "shard": 2, **layout})))


@pytest.mark.parametrize("layout", [{"tensor": 2}, slow({"shard": 3}), slow({"shard": 2, "tensor": 2})], ids=str)
def test_muon_orthogonalises_whole_matrices(curve: Train, layout: dict[str, Any]) -> None:
    alone = curve("alone", train__optimizer={"name": "muon", "lr": 1e-2})
    assert_one_curve(alone, curve("spread", train__optimizer={"name": "muon", "lr": 1e-2}, **spread(layout)))


@pytest.mark.parametrize("layout", [{"tensor": 2}, slow({"shard": 2}), slow({"context": 2})], ids=str)
def test_short_curves_agree_in_fp32(curve: Train, layout: dict[str, Any]) -> None:
    """Over the first 8 steps: later any reordering of sums makes such curves drift apart."""
    settings = {"train__precision": "fp32", "train__duration": "8 steps"}
    loss, _ = differences(curve("alone", **settings), curve("spread", **settings, **spread(layout)))
    assert loss <= 1e-5


BF16 = {"train__precision": "bf16", "train__duration": "8 steps"}


@pytest.mark.slow
def test_short_curves_agree_in_bf16_where_the_same_sums_are_rounded(curve: Train) -> None:
    """A micro-batch of two sequences on two ranks: each rank rounds what a micro-batch of one rounds."""
    alone, spread_ = curve("alone", **BF16, train__micro_batch=1), curve("spread", **BF16, layout__shard=2)
    first, _ = differences(alone[:2], spread_[:2])
    assert first <= 1e-7


@pytest.mark.slow
def test_short_curves_agree_in_bf16_as_far_as_one_process_agrees_with_itself(curve: Train) -> None:
    alone = curve("alone", **BF16)
    floor = bf16_floor(curve, alone, **BF16)
    for layout in ({"tensor": 2}, {"context": 2}, {"shard": 2}):
        loss, _ = differences(alone, curve(str(layout), **BF16, **spread(layout)))
        assert loss <= 2 * floor, layout


MOVES = [
    slow("translate", {"replicas": 2, "tensor": 2}, {"pipeline": 2}),
    slow("gpt2", {"tensor": 2}, {}),
    ("llama", {}, {"shard": 2}),
    slow("llama", {"shard": 3}, {"tensor": 2}),
    slow("moe", {"shard": 2, "zero": 1}, {"expert": 2}),
    slow("moe", {"expert": 2, "shard": 2}, {"context": 2, "tensor": 2}),
    slow("gpt2", {"tensor": 2, "shard": 2}, {"replicas": 2, "shard": 2, "zero": 1}),
    slow("gpt2", {"pipeline": 2}, {"tensor": 2}),
    slow("moe", {"shard": 2}, {"pipeline": 2, "expert": 2}),
]


@pytest.mark.parametrize(("family", "before", "after"), MOVES, ids=str)
def test_saved_in_one_layout_the_curve_goes_on_in_another(
    curve: Train, tmp_path: Path, family: str, before: dict[str, Any], after: dict[str, Any]
) -> None:
    """The run goes on until it is cut off, so that a later save may have been made by then."""
    settings = {"train__duration": "8 steps", "checkpoint__every": "2 steps", **FAMILIES[family]}
    with pytest.raises(CutOff):
        curve("moved", [CutOffAt(2, kind=events.Saved)], **settings, **spread(before))
    saved = [event.step for event in history_of(tmp_path / "moved") if isinstance(event, events.Saved)]
    assert_one_curve(curve("alone", **settings), curve("moved", **settings, **spread(after)))
    (resumed,) = [event for event in history_of(tmp_path / "moved") if isinstance(event, events.Resumed)]
    assert resumed.from_step >= saved[-1]


@pytest.mark.slow
def test_an_evaluation_does_not_follow_the_layout(curve: Train, tmp_path: Path) -> None:
    settings = {"train__evaluate_every": "3 steps", "train__evaluate_sequences": 7}
    curve("alone", **settings, **MOE)
    curve("spread", **settings, **MOE, layout__tensor=2, layout__pipeline=2)
    alone, elsewhere = (
        [event for event in history_of(tmp_path / name) if isinstance(event, events.Evaluated)] for name in ("alone", "spread")
    )
    assert [event.tokens for event in alone] == [event.tokens for event in elsewhere]
    for one, other in zip(alone, elsewhere, strict=True):
        assert other.loss == pytest.approx(one.loss, rel=1e-9)
        assert other.accuracy == one.accuracy


def test_a_killed_rank_is_named_though_its_neighbours_fail_too(curve: Train, tmp_path: Path) -> None:
    """Its whole replica comes again; being the only one, it begins where the last checkpoint stands."""
    curve("killed", [SignalAt(2, replica=0, rank=1)], layout__tensor=2)
    lost = [event for event in history_of(tmp_path / "killed") if isinstance(event, events.Lost)]
    assert [(event.replica, event.rank, event.why) for event in lost] == [(0, 1, "its process was killed by SIGKILL")]
