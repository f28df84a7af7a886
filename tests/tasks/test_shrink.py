"""A trained model made smaller: what is written is a run like any other, and trains on, is used, measured and exported."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from plait import cli, events
from plait.cluster.nursery import Nursery
from plait.errors import CheckpointError, UserError
from plait.tasks import evaluate, generate
from plait.tasks.huggingface.exporting import export_model
from plait.tasks.pretrain import train
from plait.tasks.shrink import Wish, shrink
from plait.tasks.trained import load
from plait.tasks.weighing import weigh
from tests.runs import differences, slow, steps_of, tiny

LOSS, GRAD_NORM = 1e-9, 1e-7
SPLITS = {"data__splits": {"validation": 0.1, "test": 0.0}}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "gpt2": {"model__family": "gpt2", "model__kv_heads": None},
    "moe": {"model__family": "moe", "model__experts": 4, "model__shared_experts": 1, "model__hidden": 64},
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory, corpus: Path, prepared: Path, nursery: Nursery) -> Callable[[str], Path]:
    """The folder of a short run of a family, made when it is first asked for."""
    made: dict[str, Path] = {}

    def base(family: str) -> Path:
        if family not in made:
            made[family] = tmp_path_factory.mktemp("bases") / family
            settings = {"train__duration": "8 steps", "train__optimizer__lr": 1e-2, **FAMILIES[family]}
            train(tiny(corpus, prepared, **settings), made[family], nursery=nursery, quiet=True)
        return made[family]

    return base


@pytest.fixture
def go_on(tmp_path: Path, corpus: Path, prepared: Path, nursery: Nursery) -> Callable[..., list[events.Step]]:
    """Trains on from a folder and returns the curve."""

    def run(name: str, folder: Path, **changes: Any) -> list[events.Step]:
        settings = {"train__duration": "3 steps", "model": {"dropout": 0.1}, "data__tokenizer": None, "finetune__from": str(folder)}
        train(tiny(corpus, prepared, **{**settings, **changes}), tmp_path / name, nursery=nursery, quiet=True)
        return steps_of(tmp_path / name)

    return run


@pytest.mark.parametrize(
    ("family", "sizes", "layout"),
    [
        slow("llama", {"heads": 2, "hidden": 48, "layers": 1}, {"shard": 2}),
        slow("gpt2", {"heads": 2, "hidden": 48}, {"tensor": 2, "replicas": 2}),
        slow("moe", {"heads": 2, "expert_hidden": 24}, {"pipeline": 2, "shard": 2}),
    ],
    ids=str,
)
def test_a_smaller_model_trains_on_under_every_layout(
    bases: Callable[[str], Path], go_on: Callable, tmp_path: Path, family: str, sizes: dict[str, int], layout: dict[str, int]
) -> None:
    shrink(bases(family), tmp_path / "small", Wish(sizes, sequences=8), "cpu")
    alone = go_on("alone", tmp_path / "small")
    spread = go_on("spread", tmp_path / "small", **{f"layout__{axis}": size for axis, size in layout.items()})
    loss, grad_norm = differences(alone, spread)
    assert loss <= LOSS
    assert grad_norm <= GRAD_NORM
    model = load(tmp_path / "small", "cpu").run.model
    assert {name: getattr(model, name) for name in sizes} == sizes
    assert alone[0].loss < steps_of(bases(family))[0].loss


def test_what_matters_stays(bases: Callable[[str], Path], tmp_path: Path) -> None:
    """Of half the neurons and heads: chosen by what the loss tells, the loss is lower than when the others are."""
    folder = bases("llama")
    shrink(folder, tmp_path / "taylor", Wish({"hidden": 48, "heads": 2}, "taylor", 16), "cpu")
    shrink(folder, tmp_path / "magnitude", Wish({"hidden": 48, "heads": 2}, "magnitude"), "cpu")
    before, taylor, magnitude = weigh([folder, tmp_path / "taylor", tmp_path / "magnitude"], "train", 16, "cpu")
    assert taylor.parameters == magnitude.parameters < before.parameters
    assert taylor.bytes == 8 * taylor.parameters
    assert before.loss < taylor.loss < steps_of(folder)[0].loss
    assert all(each.reads and each.writes for each in (before, taylor))


@pytest.mark.parametrize("mode", ["weights", slow("dynamic")])
@pytest.mark.parametrize("family", ["llama", slow("moe")])
def test_int8_is_used_like_floats_and_not_trained(
    bases: Callable[[str], Path], go_on: Callable, tmp_path: Path, corpus: Path, prepared: Path, nursery: Nursery, family: str, mode: str
) -> None:
    folder, out = bases(family), tmp_path / "small"
    shrink(folder, out, Wish({}, rounded=mode), "cpu")
    before, after = weigh([folder, out], "train", 8, "cpu")
    assert after.bytes < before.bytes / 6  # of fp64
    assert after.parameters == before.parameters
    assert after.loss == pytest.approx(before.loss, rel=0.01)
    assert evaluate.evaluate(out, "train", limit=8, device="cpu").loss == pytest.approx(after.loss)
    trained = load(out, "cpu")
    (written,) = generate.generate(trained.module, trained.tokenizer, ["the cat"], generate.Sampling(tokens=5, temperature=0))
    assert written.tokens
    with pytest.raises(CheckpointError, match="holds weights in int8, which are not trained further"):
        go_on("on", out)
    with pytest.raises(CheckpointError, match="holds weights in int8, which are not exported"):
        export_model(out, tmp_path / "theirs")
    with pytest.raises(CheckpointError, match=r"holds another run.*\n.*int8"):
        train(trained.run, out, nursery=nursery, quiet=True)


def test_zeros_are_those_that_were_asked_for(bases: Callable[[str], Path], tmp_path: Path) -> None:
    shrink(bases("llama"), tmp_path / "sparse", Wish({}, sparsity=0.75), "cpu")
    shrink(bases("llama"), tmp_path / "fours", Wish({}, pattern="2:4"), "cpu")
    sparse, fours = (dict(load(tmp_path / name, "cpu").module.named_parameters()) for name in ("sparse", "fours"))
    for path in ("blocks.0.mlp.down.weight", "blocks.1.attention.qkv.weight"):
        assert int((sparse[path] == 0).sum()) == int(0.75 * sparse[path].numel())
        assert torch.all((fours[path].view(-1, 4) == 0).sum(1) == 2)
    assert sparse["embed.weight"].count_nonzero() == sparse["embed.weight"].numel()


@pytest.mark.slow
def test_a_smaller_model_is_exported_where_its_family_can_say_it(bases: Callable[[str], Path], tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    shrink(bases("llama"), tmp_path / "small", Wish({"heads": 2, "hidden": 48}, "magnitude"), "cpu")
    export_model(tmp_path / "small", tmp_path / "theirs")
    trained, theirs = load(tmp_path / "small", "cpu"), transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "theirs")
    tokens = torch.randint(0, 288, (2, 12))
    with torch.no_grad():
        torch.testing.assert_close(theirs(tokens).logits.double(), trained.module(tokens), rtol=1e-4, atol=1e-4)
    shrink(bases("gpt2"), tmp_path / "fewer", Wish({"heads": 2}, "magnitude"), "cpu")
    with pytest.raises(CheckpointError, match=r"model\.head_size = 8: no family"):
        export_model(tmp_path / "fewer", tmp_path / "never")
    shrink(bases("gpt2"), tmp_path / "narrow", Wish({"hidden": 48}, "magnitude"), "cpu")
    assert export_model(tmp_path / "narrow", tmp_path / "gpt2").kind == "gpt2"


def test_one_command_does_it_and_shows_both(
    bases: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["plait", "shrink", str(bases("llama")), "--out", str(tmp_path / "out"), "--hidden", "48", "--int8", "weights"]
    words += ["--sequences", "8", "--split", "train", "--limit", "4", "--device", "cpu", "--json"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert not exit_.value.code
    before, after = map(json.loads, capsys.readouterr().out.splitlines())
    assert after["bytes"] < before["bytes"] / 6
    assert after["parameters"] < before["parameters"]
    assert after["folder"] == str(tmp_path / "out")


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"sizes": {"heads": 3}}, r"--heads 3: 2 query heads share a key head, and go together; use 2 or 4"),
    ({"sizes": {"layers": 3}}, r"--layers 3: the model has layers = 2; choose from 1 to 2"),
    ({"sizes": {"expert_hidden": 3}}, r'--expert-hidden: model.family = "llama" has no expert_hidden'),
    ({"sizes": {"hidden": 0}}, r"--hidden 0: the model has hidden = 128; choose from 1 to 128"),
    ({"importance": "age"}, r"--importance age: is none of taylor, magnitude"),
    ({"pattern": "1:2"}, r"--pattern 1:2: is none of free, 2:4"),
    ({"rounded": "int4"}, r"--int8 int4: is none of weights, dynamic"),
    ({"pattern": "2:4", "sparsity": 0.5}, r"--pattern 2:4 makes half of each matrix zero; leave --sparsity out"),
]


@pytest.mark.parametrize(("wish", "message"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_cannot_be_is_refused(bases: Callable[[str], Path], tmp_path: Path, wish: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        shrink(bases("llama"), tmp_path / "out", Wish(**{"sizes": {}, **wish}), "cpu")
    assert not (tmp_path / "out").exists()
