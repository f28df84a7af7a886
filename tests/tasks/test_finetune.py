"""Fine-tuning: the base's values, what is trained and what stays, and the curve of one process under every layout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from plait import events
from plait.cluster.nursery import Nursery
from plait.errors import CheckpointError, RunFileError, UserError
from plait.tasks.merge import merge
from plait.tasks.pretrain import train
from plait.tasks.trained import load
from plait.testing.failures import CutOff, CutOffAt
from plait.train import manifest
from tests.curves import Curves, assert_one_curve, spread
from tests.runs import history_of, steps_of, tiny
from tests.tasks.kinds import GPT2, MOE

LORA: dict[str, Any] = {"rank": 3, "alpha": 6.0, "dropout": 0.2, "targets": ["blocks.*"]}
PARTLY: dict[str, Any] = {"frozen": ["embed.*", "blocks.0.*"], "layer_decay": 0.5, "rates": {"head.*": 2.0}}
FAMILIES: dict[str, dict[str, Any]] = {"llama": {}, "gpt2": GPT2, "moe": MOE}

Curve = Callable[..., list[events.Step]]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory, corpus: Path, prepared: Path, nursery: Nursery) -> Callable[[str], Path]:
    """The folder of a short run of a family, made when it is first asked for."""
    made: dict[str, Path] = {}

    def base(family: str) -> Path:
        if family not in made:
            made[family] = tmp_path_factory.mktemp("bases") / family
            train(tiny(corpus, prepared, train__duration="3 steps", **FAMILIES[family]), made[family], nursery=nursery, quiet=True)
        return made[family]

    return base


@pytest.fixture
def curve(curves: Callable[..., Curves], corpus: Path, bases: Callable[[str], Path]) -> Curve:
    """Trains on from a base and returns the curve. [model] and the tokenizer are left out: they are the base's."""
    trained = curves(corpus, train__duration="4 steps", model={"dropout": 0.1}, data__tokenizer=None)

    def run(name: str, family: str = "llama", finetune: dict[str, Any] | None = None, *strikes: Any, **changes: Any) -> list[events.Step]:
        return trained(name, *strikes, finetune={"from": str(bases(family)), **(finetune or {})}, **changes)

    return run


def test_training_goes_on_from_the_base(curve: Curve, bases: Callable[[str], Path]) -> None:
    """In fp32, though the base was trained in fp64."""
    assert curve("on", train__precision="fp32", train__duration="1 steps")[0].loss < steps_of(bases("llama"))[0].loss


LAYOUTS = [
    *[
        pytest.param(*each, marks=pytest.mark.slow)
        for each in (
            ("gpt2", {"pipeline": 2, "shard": 2}),
            ("gpt2", {"tensor": 2, "shard": 2}),
            ("llama", {"shard": 2, "zero": 2}),
            ("moe", {"shard": 2, "zero": 1}),
            ("moe", {"expert": 2}),
            ("llama", {"context": 2, "tensor": 2}),
        )
    ],
]


@pytest.mark.parametrize(("family", "layout"), LAYOUTS, ids=str)
def test_adapters_draw_the_curve_of_one_process(curve: Curve, family: str, layout: dict[str, Any]) -> None:
    alone = curve("alone", family, {"lora": LORA})
    assert_one_curve(alone, curve("spread", family, {"lora": LORA}, **spread(layout)))


@pytest.mark.slow
@pytest.mark.parametrize(("family", "layout"), [("llama", {"tensor": 2}), ("llama", {"shard": 2}), ("moe", {"pipeline": 2})], ids=str)
def test_frozen_parts_and_rates_draw_the_curve_of_one_process(curve: Curve, family: str, layout: dict[str, Any]) -> None:
    """Of the pipeline the first stage is frozen but for its norms, since a rank must have something to train."""
    partly = PARTLY | ({"frozen": ["embed.*", "blocks.0.attention.*"]} if "pipeline" in layout else {})
    alone = curve("alone", family, partly)
    assert_one_curve(alone, curve("spread", family, partly, **spread(layout)))


def test_what_is_frozen_stays_and_is_not_in_the_norm(curve: Curve, tmp_path: Path, bases: Callable[[str], Path]) -> None:
    partly, whole = curve("partly", finetune=PARTLY), curve("whole")
    assert partly[0].loss == whole[0].loss
    assert partly[0].grad_norm < whole[0].grad_norm
    before, after = (dict(load(folder).module.named_parameters()) for folder in (bases("llama"), tmp_path / "partly"))
    same = {path for path in before if before[path].equal(after[path])}
    assert same == {path for path in before if path.startswith(("embed.", "blocks.0."))}
    optimizer = [
        name for name in manifest.read(manifest.candidates(tmp_path / "partly" / "checkpoints")[0]).tensors if "optimizer." in name
    ]
    assert not any(".embed." in name or "blocks.0" in name for name in optimizer)


def test_layers_learn_at_rates_of_their_own(curve: Curve, tmp_path: Path, bases: Callable[[str], Path]) -> None:
    """One step of Adam moves a parameter by its rate, whatever the gradient."""
    curve("decayed", finetune={"layer_decay": 0.5}, train__duration="1 steps", train__optimizer={"lr": 1e-3, "weight_decay": 0.0})
    before, after = (dict(load(folder).module.named_parameters()) for folder in (bases("llama"), tmp_path / "decayed"))
    paths = ["head.weight", "blocks.1.mlp.down.weight", "blocks.0.mlp.down.weight"]
    moved = [float((after[path] - before[path]).detach().abs().max()) for path in paths]
    assert moved[0] / moved[1] == pytest.approx(2, rel=1e-3)
    assert moved[1] / moved[2] == pytest.approx(2, rel=1e-3)


@pytest.mark.slow
def test_a_checkpoint_of_adapters_is_small_and_goes_on_in_another_layout(curve: Curve, tmp_path: Path) -> None:
    settings = {"train__duration": "8 steps", "checkpoint__every": "2 steps"}
    adapters = {"lora": LORA, "trained": ["head.*"]}
    with pytest.raises(CutOff):
        curve("moved", "llama", adapters, CutOffAt(2, kind=events.Saved), layout__tensor=2, **settings)
    (saved,) = manifest.saved(tmp_path / "moved" / "checkpoints")[:1]
    held = [name for name in manifest.read(saved).tensors if name.startswith("model.")]
    assert held
    assert all(".lora." in name or name == "model.head.weight" for name in held)
    assert_one_curve(curve("alone", "llama", adapters, **settings), curve("moved", "llama", adapters, layout__shard=2, **settings))
    assert [event for event in history_of(tmp_path / "moved") if isinstance(event, events.Resumed)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "first", "then"),
    [
        ("llama", {"replicas": 2, "tensor": 2}, {"pipeline": 2}),
        ("gpt2", {"pipeline": 2}, {"replicas": 2, "tensor": 2}),
        ("moe", {"replicas": 2, "expert": 2}, {"shard": 2, "zero": 3}),
    ],
    ids=str,
)
def test_forty_steps_of_adapters_whatever_they_are_spread_over(
    curve: Curve, tmp_path: Path, family: str, first: dict[str, Any], then: dict[str, Any]
) -> None:
    """Cut off half-way, and gone on with in another layout."""
    settings, adapters = {"train__duration": "40 steps", "checkpoint__every": "10 steps"}, {"lora": LORA, "trained": ["norm.*"]}
    with pytest.raises(CutOff):
        curve("moved", family, adapters, CutOffAt(2, kind=events.Saved), **settings, **spread(first))
    moved = curve("moved", family, adapters, **settings, **spread(then))
    assert [event for event in history_of(tmp_path / "moved") if isinstance(event, events.Resumed)]
    assert len(moved) == 40
    assert_one_curve(curve("alone", family, adapters, **settings), moved)


def sent(steps: list[events.Step]) -> int:
    return sum(sum(step.sent.values()) for step in steps)


@pytest.mark.slow
@pytest.mark.parametrize("sync", [{"strategy": "diloco", "every": "2 steps"}, {"strategy": "server"}], ids=str)
def test_only_what_is_trained_travels(curve: Curve, tmp_path: Path, sync: dict[str, Any]) -> None:
    few = curve("few", finetune={"lora": LORA}, sync=sync, layout__replicas=2)
    all_ = curve("all", sync=sync, layout__replicas=2)
    assert few[-1].loss != few[0].loss
    assert sent(few) < sent(all_) / 2


def test_merged_adapters_are_the_same_model(curve: Curve, tmp_path: Path) -> None:
    curve("adapted", finetune={"lora": LORA})
    tokens = torch.randint(0, 288, (2, 16), generator=torch.Generator().manual_seed(0))
    merge(tmp_path / "adapted", tmp_path / "merged")
    adapted, merged = load(tmp_path / "adapted"), load(tmp_path / "merged")
    assert merged.run.finetune is None
    assert not any(".lora." in path for path, _ in merged.module.named_parameters())
    with torch.no_grad():
        torch.testing.assert_close(merged.module(tokens), adapted.module(tokens), rtol=1e-10, atol=1e-12)
    assert curve("further", finetune={"from": str(tmp_path / "merged")}, train__duration="1 steps")
    with pytest.raises(UserError, match="has no adapters"):
        merge(tmp_path / "merged", tmp_path / "again")
    with pytest.raises(RunFileError, match="holds adapters alone; merge them first"):
        curve("of adapters", finetune={"from": str(tmp_path / "adapted")})


REFUSED = [
    ({"finetune__frozen": ["blok.*"]}, RunFileError, r'finetune.frozen: "blok.\*" fits no parameter; there are blocks.\*'),
    ({"finetune__lora": {"targets": ["norm"]}}, RunFileError, r'finetune.lora.targets: "norm" fits no linear layer; there are blocks'),
    ({"finetune__lora": {"dropout": 0.1, "targets": ["*"]}}, UserError, "finetune.lora.dropout: reaches adapters inside `blocks` alone"),
    ({"finetune__frozen": ["*"]}, RunFileError, "finetune.frozen: leaves nothing to train"),
    ({"model__layers": 3}, RunFileError, r"model.layers = 3: the model in .*llama has layers = 2; leave it out"),
    ({"data__tokenizer": {"train": 300}}, RunFileError, "data.tokenizer: is not the one that the model in .* was trained with"),
    ({"finetune__from": "nowhere"}, CheckpointError, 'finetune.from = "nowhere": there is no such folder'),
    ({"layout__tensor": 3}, RunFileError, "layout.tensor = 3 does not divide model.heads = 4"),
]


@pytest.mark.parametrize(("changes", "error", "message"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_cannot_be_is_refused(
    corpus: Path,
    prepared: Path,
    nursery: Nursery,
    bases: Callable[[str], Path],
    tmp_path: Path,
    changes: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    settings = {"finetune__from": str(bases("llama")), "model": {}, "data__tokenizer": None, **changes}
    with pytest.raises(error, match=message):
        train(tiny(corpus, prepared, **settings), tmp_path / "refused", nursery=nursery, quiet=True)


def test_another_base_is_another_run(
    curve: Curve, tmp_path: Path, bases: Callable[[str], Path], corpus: Path, prepared: Path, nursery: Nursery
) -> None:
    curve("run")
    other = tmp_path / "other"
    train(tiny(corpus, prepared, train__duration="3 steps", train__seed=8), other, nursery=nursery, quiet=True)
    settings = {"finetune__from": str(other), "model": {"dropout": 0.1}, "data__tokenizer": None, "train__duration": "4 steps"}
    with pytest.raises(CheckpointError, match="no longer has the checkpoint that this run began with"):
        train(tiny(corpus, prepared, **settings), tmp_path / "run", nursery=nursery, quiet=True)
