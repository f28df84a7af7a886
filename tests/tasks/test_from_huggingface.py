"""Training goes on from a folder of Hugging Face's, read as it lies, by each rank its part."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plait import events
from plait.cluster.nursery import Nursery
from plait.errors import CheckpointError, RunFileError, UserError
from plait.tasks.huggingface.exporting import export_model
from plait.tasks.huggingface.importing import import_model
from plait.tasks.merge import merge
from plait.tasks.pretrain import train
from plait.tasks.trained import load
from tests.curves import Curves, assert_one_curve, spread
from tests.runs import slow, tiny
from tests.tasks import foreign
from tests.tasks.foreign import Saved

pytest.importorskip("transformers", reason="needs the extra [bench]")

LORA: dict[str, Any] = {"rank": 3, "dropout": 0.2}
TEMPLATE = "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}[assistant]"
SPECIALS = {"bos_token": "<|endoftext|>", "eos_token": {"__type": "AddedToken", "content": "<|endoftext|>"}, "chat_template": TEMPLATE}
KINDS = {"bert": "masked", "t5": "span"}

Curve = Callable[..., list[events.Step]]


@pytest.fixture
def curve(curves: Callable[..., Curves], corpus: Path) -> Curve:
    """Trains on from a base and returns the curve. [model] and the tokenizer are left out: they are the base's."""
    trained = curves(corpus, train__duration="3 steps", model={"dropout": 0.1}, data__tokenizer=None)

    def run(name: str, base: Path, lora: dict[str, Any] | None = None, **changes: Any) -> list[events.Step]:
        return trained(name, finetune={"from": str(base)} | ({} if lora is None else {"lora": lora}), **changes)

    return run


CASES = [
    slow("gpt2", {"tensor": 2}, None),
    slow("llama", {"tensor": 2, "shard": 2}, LORA),
    slow("llama tied", {"pipeline": 2, "tensor": 2}, None),
    slow("mistral", {"context": 2, "tensor": 2}, None),
    slow("qwen2", {"shard": 2, "zero": 3, "tensor": 2}, LORA),
    slow("qwen3", {"replicas": 2, "tensor": 2}, None),
    slow("mixtral", {"expert": 2, "tensor": 2}, LORA),
    slow("qwen3_moe", {"tensor": 2, "shard": 2}, None),
    slow("gpt2", {"pipeline": 2, "shard": 2}, LORA),
    slow("bert", {"tensor": 2}, None),
    slow("t5", {"tensor": 2}, None),
    slow("t5 gated", {"pipeline": 2, "tensor": 2}, LORA),
]


@pytest.mark.parametrize(("name", "layout", "lora"), CASES, ids=str)
def test_a_folder_draws_the_curve_of_its_import(
    curve: Curve, tmp_path: Path, name: str, layout: dict[str, int], lora: dict[str, Any] | None
) -> None:
    """Imported, in one process; and as it lies, each rank reading its part. More rows than tokens, more positions than are used."""
    source = foreign.save(tmp_path / "theirs", name, foreign.speaking_tokenizer_json(), vocab_size=400)
    kind = KINDS.get(name.split()[0], "causal")
    settings: dict[str, Any] = {"data__objective": {"kind": kind}} if kind != "causal" else {}
    import_model(source, tmp_path / "imported")
    alone = curve("alone", tmp_path / "imported", lora, **settings)
    assert_one_curve(alone, curve("spread", source, lora, **settings, **spread(layout)))
    assert alone[-1].loss != alone[0].loss


def test_what_belongs_to_the_tokenizer_goes_along(curve: Curve, saved: Saved, tmp_path: Path) -> None:
    """Into the run, through its adapters' merging, and back to a folder of theirs."""
    import transformers

    source = saved("llama")
    (source / "tokenizer_config.json").write_text(json.dumps(SPECIALS))
    (source / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 7], "temperature": 0.5}))
    curve("run", source, LORA, train__duration="1 steps", data__sequence=None)
    trained = load(tmp_path / "run")
    assert trained.ends == (0, 7)
    assert trained.run.data.sequence == foreign.CONTEXT
    said = [{"role": "user", "content": "a cat"}, {"role": "assistant", "content": "sat"}]
    text = trained.template.render(said)
    merge(tmp_path / "run", tmp_path / "merged")
    export_model(tmp_path / "merged", tmp_path / "back")
    back = transformers.AutoTokenizer.from_pretrained(tmp_path / "back")
    assert (
        back.apply_chat_template(said, tokenize=False)
        == text
        == "<|endoftext|>[user]a cat<|endoftext|>[assistant]sat<|endoftext|>[assistant]"
    )
    assert back.eos_token == "<|endoftext|>"
    assert json.loads((tmp_path / "back/generation_config.json").read_text())["temperature"] == 0.5


@pytest.mark.parametrize(
    ("name", "targets"), [slow("gpt2", ["blocks.*"]), ("qwen2", ["blocks.*"]), slow("t5", ["blocks.1.*", "*.cross.q"])]
)
def test_adapters_are_exported_for_peft_and_merged(curve: Curve, tmp_path: Path, name: str, targets: list[str]) -> None:
    """Of each the logits are those of plait's own module."""
    import torch
    import transformers

    peft = pytest.importorskip("peft", reason="needs the extra [test]")
    source = foreign.save(tmp_path / "theirs", name, foreign.speaking_tokenizer_json(), vocab_size=400)
    kind = {} if name != "t5" else {"data__objective": {"kind": "span"}}
    lora = {"rank": 3, "alpha": 40.0, "targets": targets}
    curve("run", source, lora, **kind, data__sequence=None, train__optimizer={"lr": 0.05}, train__precision="fp32")
    given = export_model(tmp_path / "run", tmp_path / "adapter", adapter=True)
    assert {"adapter_config.json", "adapter_model.safetensors"} <= set(given.files)
    export_model(tmp_path / "run", tmp_path / "merged")
    head = transformers.AutoModelForSeq2SeqLM if name == "t5" else transformers.AutoModelForCausalLM
    base, merged = (head.from_pretrained(tmp_path / folder).eval() for folder in ("theirs", "merged"))
    tokens = torch.arange(40).view(2, 20)
    ours, [first, last] = load(tmp_path / "run", "cpu").module, tokens.split([8, 12], 1)
    told = {"input_ids": first, "decoder_input_ids": last} if name == "t5" else {"input_ids": tokens}
    with torch.no_grad():
        wanted = ours(tokens, source=8) if name == "t5" else ours(tokens)
        before = base(**told).logits
        adapted = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
        assert (before - wanted).abs().max() > 0.1
        for model in (adapted, merged):
            torch.testing.assert_close(model(**told).logits, wanted, rtol=0, atol=1e-4)


def test_what_adapters_cannot_hold_is_not_left_out(curve: Curve, saved: Saved, tmp_path: Path) -> None:
    source = saved("llama")
    curve("whole", source, train__duration="1 steps")
    with pytest.raises(UserError, match=r"--adapter: .*whole has no adapters"):
        export_model(tmp_path / "whole", tmp_path / "back", adapter=True)
    curve("beside", source, LORA, train__duration="1 steps", finetune__trained=["norm.weight"])
    with pytest.raises(CheckpointError, match=r"--adapter: norm.weight was trained beside the adapters"):
        export_model(tmp_path / "beside", tmp_path / "back", adapter=True)
    assert not (tmp_path / "back").exists()
    assert export_model(tmp_path / "beside", tmp_path / "back").kind == "llama"


def test_another_model_in_the_folder_is_another_run(curve: Curve, saved: Saved, tmp_path: Path) -> None:
    source = saved("llama")
    curve("run", source, LORA, train__duration="1 steps")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    with pytest.raises(CheckpointError, match="is no longer the model that this run began with"):
        curve("run", source, LORA, train__duration="2 steps")
    with pytest.raises(CheckpointError, match="is another model than this run began with"):
        load(tmp_path / "run")


@pytest.mark.parametrize(
    ("change", "settings", "error", "told"),
    [
        ({"sliding_window": 16, "model_type": "mistral"}, {"data__sequence": None}, CheckpointError, "data.sequence = 16 takes the model"),
        ({}, {"data__sequence": 64}, CheckpointError, "data.sequence = 64 is more than max_position_embeddings = 48"),
        ({}, {"model__layers": 3}, RunFileError, r"model.layers = 3: the model in .* has layers = 2"),
        ({}, {"data__tokenizer": {"train": 300}}, RunFileError, "data.tokenizer: is not the one"),
        ({"num_hidden_layers": 3}, {}, CheckpointError, "missing: model.layers.2"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(
    curve: Curve, saved: Saved, tmp_path: Path, change: dict[str, Any], settings: dict[str, Any], error: type[Exception], told: str
) -> None:
    source = tmp_path / "changed"
    shutil.copytree(saved("llama"), source)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(error, match=told):
        curve("refused", source, **settings)


def test_learned_positions_may_be_fewer_and_never_more(curve: Curve, saved: Saved, tmp_path: Path) -> None:
    """Of a folder and of a run alike."""
    source = saved("gpt2")
    import_model(source, tmp_path / "imported")
    curve("few", tmp_path / "imported", train__duration="1 steps", train__optimizer={"lr": 1e-30})
    few, all_ = (load(tmp_path / name).module.positions.weight for name in ("few", "imported"))
    assert few.shape == (16, 32)
    assert few.float().equal(all_[:16])
    for base in (source, tmp_path / "imported"):
        with pytest.raises(RunFileError, match=r"data.sequence = 64: the model in .* has learned 48 positions; write as many or less"):
            curve("many", base, data__sequence=64)


def test_a_model_has_rows_for_all_tokens(corpus: Path, prepared: Path, nursery: Nursery, tmp_path: Path) -> None:
    train(tiny(corpus, prepared, model__vocabulary=320, train__duration="1 steps"), tmp_path / "run", nursery=nursery, quiet=True)
    assert load(tmp_path / "run").module.embed.weight.shape == (320, 32)
    with pytest.raises(RunFileError, match=r"model.vocabulary = 280: the tokenizer has 288 tokens; write 288 or more"):
        train(tiny(corpus, prepared, model__vocabulary=280), tmp_path / "less", nursery=nursery, quiet=True)
