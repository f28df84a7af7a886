"""Pruning and eight-bit optimizer state while training: the curve of one process under every layout, and what is zero stays zero."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from plait import events
from plait.errors import UserError
from plait.replica.pruning import sparsity
from plait.spec import Prune
from plait.tasks.trained import load
from plait.testing.failures import CutOff, CutOffAt
from plait.train import manifest
from tests.curves import GRAD_NORM, LOSS, Curves, assert_one_curve, spread
from tests.runs import differences, slow
from tests.tasks.kinds import GPT2, MOE

FREE: dict[str, Any] = {"prune": {"sparsity": 0.8, "begin": "1 steps", "end": "5 steps", "every": "2 steps"}}
FOURS: dict[str, Any] = {"prune": {"pattern": "2:4", "begin": "2 steps"}}
INT8: dict[str, Any] = {"train__optimizer__state": "int8", "train__optimizer__block": 16}


@pytest.fixture
def curve(curves: Callable[..., Curves], corpus: Path) -> Curves:
    return curves(corpus, train__duration="6 steps", model__dropout=0.1)


def zeros(folder: Path) -> dict[str, float]:
    module = load(folder, "cpu").module
    return {path: float((value == 0).double().mean()) for path, value in module.named_parameters() if value.ndim > 1}


LAYOUTS = [
    slow(FREE | INT8, {"tensor": 2, "shard": 2}),
    slow(FREE, {"replicas": 2}),
    slow(FREE, {"tensor": 2}),
    slow(FREE | INT8, {"shard": 2}),
    slow(FREE | MOE, {"shard": 3, "zero": 2}),
    slow(FREE | GPT2, {"pipeline": 2}),
    slow(FREE | MOE, {"expert": 2, "shard": 2, "zero": 1}),
    slow(FOURS | INT8, {"tensor": 2, "replicas": 2}),
    slow(FOURS | GPT2, {"pipeline": 2, "shard": 2}),
    slow(INT8, {"replicas": 2}),
    slow(INT8, {"tensor": 2}),
    slow(INT8 | MOE, {"pipeline": 2, "shard": 2, "zero": 1}),
    slow(INT8 | MOE, {"shard": 2, "zero": 2, "expert": 2}),
]


@pytest.mark.parametrize(("what", "layout"), LAYOUTS, ids=str)
def test_layouts_draw_the_curve_of_one_process(curve: Curves, tmp_path: Path, what: dict[str, Any], layout: dict[str, Any]) -> None:
    """Killed at its first checkpoint, in that layout, and gone on with in another."""
    settings = {**what, "checkpoint__every": "3 steps"}
    alone = curve("alone", **settings)
    with pytest.raises(CutOff):
        curve("moved", CutOffAt(3, kind=events.Saved), **settings, **spread(layout))
    assert_one_curve(alone, curve("moved", **settings, layout__shard=2 if "shard" not in layout else 1))
    if "prune" in what:
        share, there = 0.5 if what["prune"].get("pattern") else 0.8, zeros(tmp_path / "moved")
        for path, zero in there.items():
            pruned = path.startswith("blocks.") and "router" not in path
            assert zero == pytest.approx(share if pruned else 0.0, abs=2e-3), path


@pytest.mark.slow
def test_a_threshold_of_each_part_is_seen(curve: Curves) -> None:
    """The check above can fail: here each rank prunes the smallest of what it holds."""
    wrong = {**FREE, "train__loss": "tests.wrong:prunes_each_part"}
    loss, grad_norm = differences(curve("alone", **wrong), curve("spread", **wrong, layout__shard=2))
    assert loss > LOSS
    assert grad_norm > GRAD_NORM


@pytest.mark.slow
def test_what_is_zero_in_a_base_stays_zero(curve: Curves, tmp_path: Path) -> None:
    curve("pruned", **FREE)
    on = {"model": {}, "data__tokenizer": None, "finetune": {"from": str(tmp_path / "pruned")}, "train__duration": "3 steps"}
    curve("kept", **on, prune={"sparsity": 0.0})
    curve("let go", **on)
    before, kept, gone = (load(tmp_path / name, "cpu").module.state_dict() for name in ("pruned", "kept", "let go"))
    path = "blocks.1.mlp.down.weight"
    assert torch.equal(before[path] == 0, kept[path] == 0)
    assert not torch.equal(before[path], kept[path])
    assert float((gone[path] == 0).double().mean()) < 0.5


def test_masks_and_bytes_are_in_checkpoints(curve: Curves, tmp_path: Path) -> None:
    curve("both", **FREE, **INT8)
    tensors = manifest.read(manifest.candidates(tmp_path / "both" / "checkpoints")[0]).tensors
    of = {name.rpartition(".")[2]: tensors[name] for name in tensors if name.startswith("optimizer.blocks.0.mlp.down.weight.")}
    assert {name: entry.dtype for name, entry in of.items()} == {
        "step": "float32",
        "exp_avg": "uint8",
        "exp_avg_scale": "float64",
        "exp_avg_sq": "uint8",
        "exp_avg_sq_scale": "float64",
        "pruned": "uint8",
    }
    assert of["exp_avg_scale"].shape == [32, 8]


def test_the_schedule_is_cubic_and_ends_where_it_says() -> None:
    settings = Prune(sparsity=0.8)
    shares = {step: share for step in range(1, 30) if (share := sparsity(settings, step, 4, 18, 5)) is not None}
    assert list(shares) == [4, 9, 14, 18]
    assert shares[4] == 0
    assert shares[9] == pytest.approx(0.8 * (1 - (9 / 14) ** 3))
    assert shares[18] == 0.8
    assert sparsity(settings, 1, 0, 0, 5) == 0.8
    assert [step for step in range(9) if sparsity(Prune(pattern="2:4"), step, 3, 3, 5)] == [3]


REFUSED = [
    ({"prune": {}}, "prune: sparsity is missing"),
    ({"prune": {"pattern": "2:4", "sparsity": 0.5}}, 'prune: sparsity belongs to pattern = "free"'),
    ({"prune": {"sparsity": 0.5, "matrices": ["blok.*"]}}, r'prune.matrices: "blok.\*" fits no matrix; there are embed.weight'),
    ({"prune": {"sparsity": 0.5, "spared": ["*"]}}, "prune.spared: leaves no matrix to prune"),
    ({"prune": {"sparsity": 0.5, "end": "11 steps"}}, "prune: begins after step 0 and ends after step 11 of 6"),
    ({"prune": {"sparsity": 0.5}, "sync": {"strategy": "local_sgd", "every": "2 steps"}}, "prune chooses weights that all replicas"),
    ({"train__optimizer__state": "int8", "sync": {"strategy": "server"}}, 'train.optimizer.state = "int8" is for sync.strategy'),
    ({**INT8, "train__optimizer__block": 32, "layout__tensor": 2}, "train.optimizer.block = 32: the layout cuts the rows of .*block = 16"),
    ({**FOURS, "model__hidden": 36, "layout__tensor": 2}, "cuts blocks.0.mlp.down.weight at column 18, amid four"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED, ids=lambda value: str(value)[:50])
def test_what_cannot_be_is_refused(curve: Curves, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        curve("refused", **changes)
