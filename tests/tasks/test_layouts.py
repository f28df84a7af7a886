"""Promise 1 under every layout: the curve of one process, whatever its model is spread over."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plait import events
from plait.testing.failures import CutOff, CutOffAt, SignalAt
from tests.curves import Curves, assert_one_curve, spread
from tests.runs import T5_PAIRS, bf16_floor, differences, slow
from tests.tasks.kinds import GPT2, MASKED, MOE, QWEN, SPANS

FAMILIES: dict[str, dict[str, Any]] = {
    "translate": T5_PAIRS,
    "t5": SPANS,
    "llama": {},
    "gpt2": {**GPT2, "data__document_mask": True},
    "moe": {**MOE, "model__auxiliary": 0.01},
    "qwen": QWEN,
    "bert": MASKED,
}


@pytest.fixture
def of(curves: Callable[..., Curves], corpus: Path, pairs: Path) -> Callable[[str], Curves]:
    """Trains a family."""

    def make(family: str) -> Curves:
        text = pairs if family == "translate" else corpus
        return curves(text, **{"train__duration": "4 steps", "model__dropout": 0.1, **FAMILIES[family]})

    return make


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


@pytest.mark.parametrize(("family", "layout"), LAYOUTS, ids=str)
def test_layouts_draw_the_curve_of_one_process(of: Callable[[str], Curves], family: str, layout: dict[str, Any]) -> None:
    curve = of(family)
    assert_one_curve(curve("alone"), curve("spread", **spread(layout)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "layout",
    [{"schedule": "zero_bubble", "zero": 2}, {"schedule": "interleaved", "zero": 3}, {"schedule": "gpipe", "zero": 1}],
    ids=str,
)
def test_stages_keep_rows(curve: Curves, layout: dict[str, Any]) -> None:
    alone = curve("alone", model__layers=4)
    assert_one_curve(alone, curve("spread", model__layers=4, **spread({"pipeline": 2, "shard": 2, **layout})))


@pytest.mark.parametrize("layout", [{"tensor": 2}, slow({"shard": 3}), slow({"shard": 2, "tensor": 2})], ids=str)
def test_muon_orthogonalises_whole_matrices(curve: Curves, layout: dict[str, Any]) -> None:
    alone = curve("alone", train__optimizer={"name": "muon", "lr": 1e-2})
    assert_one_curve(alone, curve("spread", train__optimizer={"name": "muon", "lr": 1e-2}, **spread(layout)))


@pytest.mark.parametrize("layout", [{"tensor": 2}, slow({"shard": 2}), slow({"context": 2})], ids=str)
def test_short_curves_agree_in_fp32(curve: Curves, layout: dict[str, Any]) -> None:
    """Over the first 8 steps: later any reordering of sums makes such curves drift apart."""
    settings = {"train__precision": "fp32", "train__duration": "8 steps"}
    loss, _ = differences(curve("alone", **settings), curve("spread", **settings, **spread(layout)))
    assert loss <= 1e-5


BF16 = {"train__precision": "bf16", "train__duration": "8 steps"}


@pytest.mark.slow
def test_short_curves_agree_in_bf16_where_the_same_sums_are_rounded(curve: Curves) -> None:
    """A micro-batch of two sequences on two ranks: each rank rounds what a micro-batch of one rounds."""
    alone, spread_ = curve("alone", **BF16, train__micro_batch=1), curve("spread", **BF16, layout__shard=2)
    first, _ = differences(alone[:2], spread_[:2])
    assert first <= 1e-7


@pytest.mark.slow
def test_short_curves_agree_in_bf16_as_far_as_one_process_agrees_with_itself(curve: Curves) -> None:
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
    of: Callable[[str], Curves], family: str, before: dict[str, Any], after: dict[str, Any]
) -> None:
    """The run goes on until it is cut off, so that a later save may have been made by then."""
    curve, settings = of(family), {"train__duration": "8 steps", "checkpoint__every": "2 steps"}
    with pytest.raises(CutOff):
        curve("moved", CutOffAt(2, kind=events.Saved), **settings, **spread(before))
    saved = [event.step for event in curve.of("moved", events.Saved)]
    assert_one_curve(curve("alone", **settings), curve("moved", **settings, **spread(after)))
    (resumed,) = curve.of("moved", events.Resumed)
    assert resumed.from_step >= saved[-1]


@pytest.mark.slow
def test_an_evaluation_does_not_follow_the_layout(of: Callable[[str], Curves]) -> None:
    curve, settings = of("moe"), {"train__evaluate_every": "3 steps", "train__evaluate_sequences": 7}
    curve("alone", **settings)
    curve("spread", **settings, layout__tensor=2, layout__pipeline=2)
    alone, elsewhere = (curve.of(name, events.Evaluated) for name in ("alone", "spread"))
    assert [event.tokens for event in alone] == [event.tokens for event in elsewhere]
    for one, other in zip(alone, elsewhere, strict=True):
        assert other.loss == pytest.approx(one.loss, rel=1e-9)
        assert other.accuracy == one.accuracy


def test_a_killed_rank_is_named_though_its_neighbours_fail_too(curve: Curves) -> None:
    """Its whole replica comes again; being the only one, it begins where the last checkpoint stands."""
    curve("killed", SignalAt(2, replica=0, rank=1), layout__tensor=2)
    lost = curve.of("killed", events.Lost)
    assert [(event.replica, event.rank, event.why) for event in lost] == [(0, 1, "its process was killed by SIGKILL")]
