"""Models go to Hugging Face and come back unchanged: on random ones that transformers builds, and on what plait trained."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from plait import spec
from plait.cluster.nursery import Nursery
from plait.errors import CheckpointError, UserError
from plait.model.build import build
from plait.model.seq2seq import Seq2Seq
from plait.tasks.beam import Beams, search
from plait.tasks.generate import generate
from plait.tasks.huggingface.exporting import export_model
from plait.tasks.huggingface.importing import import_model
from plait.tasks.pretrain import train
from plait.tasks.trained import load
from plait.tasks.translate import load_translator
from plait.train.folder import read_run
from plait.train.huggingface.folder import describe
from plait.train.huggingface.tensors import Tensors
from tests.runs import T5_PAIRS, slow, tiny, write_pairs
from tests.tasks.foreign import CONTEXT, MODELS, VOCABULARY

transformers = pytest.importorskip("transformers", reason="needs the extra [bench]")
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

DECODERS = [name for name, (family, _) in MODELS.items() if family not in ("Bert", "T5")]
SOURCE = 14
"""Of a T5's row the first so many tokens."""


def tokens(rows: int = 2, length: int = 24) -> torch.Tensor:
    return torch.randint(0, 272, (rows, length), generator=torch.Generator().manual_seed(1))


def theirs(folder: Path) -> nn.Module:
    kinds = {"bert": "MaskedLM", "t5": "Seq2SeqLM"}
    kind = kinds.get(json.loads((folder / "config.json").read_text())["model_type"], "CausalLM")
    return getattr(transformers, f"AutoModelFor{kind}").from_pretrained(folder, attn_implementation="eager").eval()


@torch.no_grad()
def logits_of(model: nn.Module) -> torch.Tensor:
    if getattr(model.config if hasattr(model, "config") else model.model, "model_type", "") == "t5":
        return model(input_ids=tokens()[:, :SOURCE], decoder_input_ids=tokens()[:, SOURCE:]).logits
    found = model(tokens(), source=SOURCE) if isinstance(model, Seq2Seq) else model(tokens())
    return found if isinstance(found, torch.Tensor) else found.logits


@torch.inference_mode()
def greedy(module: Any, prompt: list[int], count: int) -> list[int]:
    """plait's own, through its cache."""
    cache, written, ahead = module.new_cache(1, CONTEXT), [], prompt
    for _ in range(count):
        written.append(int(module(torch.tensor([ahead]), cache=cache)[0, -1].argmax()))
        ahead = written[-1:]
    return written


@pytest.mark.parametrize("name", MODELS)
def test_a_model_comes_and_goes_unchanged(name: str, saved: Callable[..., Path], tmp_path: Path) -> None:
    source = saved(name)
    import_model(source, tmp_path / "ours")
    trained, original = load(tmp_path / "ours", "cpu"), theirs(source)
    torch.testing.assert_close(logits_of(trained.module), logits_of(original), rtol=0, atol=1e-4)
    export_model(tmp_path / "ours", tmp_path / "back")
    again = import_model(tmp_path / "back", tmp_path / "again")
    told = {"bert": ["write"], "t5": ["plait generate", "plait translate", "write"]}
    uses = told.get(again.run.model.family, ["plait generate", "write"])
    for part, use in zip(again.next.removeprefix("next: ").split(", or "), uses, strict=True):
        assert part.startswith(use)
    assert read_run(tmp_path / "again").model == read_run(tmp_path / "ours").model
    back = theirs(tmp_path / "back")
    assert torch.equal(logits_of(back), logits_of(original))
    if name in DECODERS:
        check_writing(trained.module, original, back)
    elif name.startswith("t5"):
        check_searching(trained.module, original, back)


def check_searching(module: Any, original: Any, back: Any) -> None:
    """Beams that find the same texts, with whatever length penalty."""
    for source in tokens(3, 9):
        for settings in (Beams(beams=1, tokens=12), Beams(beams=4, tokens=12), Beams(beams=3, alpha=0.0, tokens=9), Beams(3, 2.0, 15)):
            [greedy_] = search(module, [source.tolist()], begin=0, end=-1, settings=Beams(1, 1.0, 4))
            end = greedy_.tokens[-1]  # so that texts end, and beams compete
            [found] = search(module, [source.tolist()], begin=0, end=end, settings=settings)
            for theirs_ in (original, back):
                wanted = theirs_.generate(
                    source[None],
                    num_beams=settings.beams,
                    length_penalty=settings.alpha,
                    max_new_tokens=settings.tokens,
                    do_sample=False,
                    early_stopping=False,
                    decoder_start_token_id=0,
                    eos_token_id=end,
                    pad_token_id=0,
                )[0, 1:].tolist()
                assert found.tokens == [*wanted[: len(found.tokens)]], settings
                assert set(wanted[len(found.tokens) :]) <= {0}


def check_writing(module: nn.Module, original: Any, back: Any) -> None:
    """All three write the same tokens."""
    prompt = tokens(1, 6)
    wanted = original.generate(prompt, max_new_tokens=12, do_sample=False, eos_token_id=-1, pad_token_id=0)[0, 6:].tolist()
    assert greedy(module, prompt[0].tolist(), 12) == wanted
    assert back.generate(prompt, max_new_tokens=12, do_sample=False, eos_token_id=-1, pad_token_id=0)[0, 6:].tolist() == wanted


def test_tokenizer_and_special_tokens_go_along(saved: Callable[..., Path], tmp_path: Path) -> None:
    source = saved("llama")
    (source / "generation_config.json").write_text('{"temperature": 0.6, "do_sample": true}')
    (source / "chat_template.jinja").write_text("{{ messages }}")
    import_model(source, tmp_path / "ours")
    export_model(tmp_path / "ours", tmp_path / "back", dtype="bfloat16", shard_bytes=40_000)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "back")
    text = "the cat sat on the mat"
    assert tokenizer(text)["input_ids"] == load(tmp_path / "ours", "cpu").tokenizer.encode([text])[0].tolist()
    assert tokenizer.eos_token == "<|endoftext|>"
    assert json.loads((tmp_path / "back/generation_config.json").read_text())["temperature"] == 0.6
    assert (tmp_path / "back/chat_template.jinja").read_text() == "{{ messages }}"
    assert json.loads((tmp_path / "back/config.json").read_text())["eos_token_id"] == 0


def test_tensors_in_several_files_and_in_half_precision_are_read_and_written(saved: Callable[..., Path], tmp_path: Path) -> None:
    whole = theirs(saved("qwen3_moe")).to(torch.bfloat16)
    whole.save_pretrained(tmp_path / "many", max_shard_size="50KB")
    shutil.copy(saved("qwen3_moe") / "tokenizer.json", tmp_path / "many")
    import_model(tmp_path / "many", tmp_path / "ours")
    given = export_model(tmp_path / "ours", tmp_path / "back", dtype="bfloat16", shard_bytes=40_000)
    assert len([file for file in given.files if file.endswith(".safetensors")]) > 2
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back", dtype=torch.bfloat16).state_dict()
    assert all(torch.equal(value, back[name]) for name, value in whole.state_dict().items())


@pytest.mark.parametrize("layout", [slow({"tensor": 2, "shard": 2}), slow({"pipeline": 2, "expert": 2})], ids=str)
def test_a_checkpoint_in_parts_is_exported_as_the_whole(
    corpus: Path, prepared: Path, nursery: Nursery, tmp_path: Path, layout: dict[str, int]
) -> None:
    moe = {"model__family": "moe", "model__scores": "softmax", "model__balance": "none", "model__qk_norm": True}
    changes = {"train__duration": "1 steps", "train__precision": "fp32", **{f"layout__{axis}": size for axis, size in layout.items()}}
    run = tiny(corpus, prepared, **(moe if "expert" in layout else {"model__qkv_bias": True}), **changes)
    train(run, tmp_path / "run", nursery=nursery, quiet=True)
    export_model(tmp_path / "run", tmp_path / "exported")
    ours, model = load(tmp_path / "run", "cpu").module, theirs(tmp_path / "exported")
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens(2, 16)), model(tokens(2, 16)).logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, r"rope_scaling = 'yarn' is a feature that plait lacks"),
        ({"sliding_window": 16, "model_type": "mistral"}, r"sliding_window = 16 .* --context 16"),
        ({"hidden_act": "gelu"}, r"hidden_act = 'gelu' is a feature"),
        ({"attention_bias": True}, r"attention_bias = True"),
        ({"logit_soft_cap": 30.0}, r"logit_soft_cap = 30.0: plait does not know"),
        ({"model_type": "mamba"}, r"model_type = 'mamba' is not among those .* gpt2, llama"),
        ({"quantization_config": {"bits": 4}}, r"quantised"),
        ({"num_hidden_layers": 3}, r"missing: model.layers.2.input_layernorm.weight, .* and 1 more"),
        ({"num_hidden_layers": 1}, r"there, but in no model: model.layers.1.input_layernorm.weight"),
        ({"intermediate_size": 48}, r"mlp.down_proj.weight: \[32, 56\] there, \[32, 48\] by config.json"),
        ({"vocab_size": 200}, r"has 272 tokens, and the model's vocab_size = 200"),
    ],
    ids=str,
)
def test_what_plait_lacks_is_named_and_refused(saved: Callable[..., Path], tmp_path: Path, change: dict[str, Any], told: str) -> None:
    source = saved("llama")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(CheckpointError, match=f"(?s){told}"):
        import_model(source, tmp_path / "ours")
    assert not (tmp_path / "ours/run.toml").exists()


def test_a_shorter_context_is_taken_where_positions_are_angles(saved: Callable[..., Path], tmp_path: Path) -> None:
    import_model(saved("mistral", sliding_window=16), tmp_path / "ours", context=16)
    assert read_run(tmp_path / "ours").data.sequence == 16
    with pytest.raises(CheckpointError, match="--context 64 is more than max_position_embeddings = 48"):
        import_model(saved("llama"), tmp_path / "long", context=64)


def test_folders_that_hold_no_model_or_another_are_refused(saved: Callable[..., Path], tmp_path: Path) -> None:
    source = saved("gpt2")
    import_model(source, tmp_path / "ours")
    with pytest.raises(CheckpointError, match="holds a model already"):
        import_model(source, tmp_path / "ours")
    with pytest.raises(CheckpointError, match="holds something already"):
        export_model(tmp_path / "ours", source)
    with pytest.raises(UserError, match="--dtype int4"):
        export_model(tmp_path / "ours", tmp_path / "back", dtype="int4")
    (source / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no tokenizer.json and no tokenizer.model"):
        import_model(source, tmp_path / "other")
    (source / "model.safetensors").rename(source / "pytorch_model.bin")
    (tmp_path / "ours/tokenizer.json").rename(source / "tokenizer.json")
    with pytest.raises(CheckpointError, match="is a pickle, which can run code"):
        import_model(source, tmp_path / "other")


def test_a_damaged_checkpoint_is_not_exported(saved: Callable[..., Path], tmp_path: Path) -> None:
    import_model(saved("gpt2"), tmp_path / "ours")
    [piece] = (tmp_path / "ours/checkpoints/step-00000000").glob("*.safetensors")
    values = bytearray(piece.read_bytes())
    values[-5] ^= 1
    piece.write_bytes(values)
    with pytest.raises(CheckpointError, match="is corrupt"):
        export_model(tmp_path / "ours", tmp_path / "back")
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"family": "gpt2", "heads": 4, "kv_heads": 2}, "model.kv_heads = 2"),
        ({"family": "moe"}, 'model.scores = "sigmoid"'),
        ({"family": "moe", "scores": "softmax"}, 'model.balance = "bias"'),
        ({"family": "llama", "qk_norm": True, "qkv_bias": True}, "model.qk_norm with model.qkv_bias"),
        ({"family": "tests.wrong:Forgetful"}, "a model of your own"),
    ],
    ids=str,
)
def test_models_that_no_family_there_computes_are_named(settings: dict[str, Any], told: str) -> None:
    from plait.model.huggingface import Shape, dialect_of

    with pytest.raises(CheckpointError, match=told):
        dialect_of(Shape(spec.Model(**{"width": 32, "heads": 4, "layers": 2, **settings}), 50, 16))


@pytest.mark.parametrize("name", MODELS)
def test_every_weight_of_a_built_model_is_mapped_once(name: str, saved: Callable[..., Path], tmp_path: Path) -> None:
    from plait.model.huggingface import Shape, dialect_of

    source = saved(name)
    import_model(source, tmp_path / "ours")
    run = read_run(tmp_path / "ours")
    shape = Shape(run.model, VOCABULARY, CONTEXT, run.data.objective)
    check_boxes(source, load(tmp_path / "ours", "cpu").module.state_dict())
    built = {path: tuple(value.shape) for path, value in build(run.model, VOCABULARY, CONTEXT, 0).named_parameters()}
    weights = list(dialect_of(shape).weights(shape))
    assert {weight.path: weight.shape for weight in weights} == built
    names = [source.name for weight in weights for source in weight.sources]
    assert len(names) == len(set(names))


def check_boxes(source: Path, values: dict[str, torch.Tensor]) -> None:
    """Any box of any tensor is read from wherever it stands in theirs."""
    chance = random.Random(0)
    described = describe(source)
    with Tensors(source, described.dialect, described.shape) as tensors:
        for path in tensors.weights:
            for _ in range(4):
                ends = [sorted(chance.sample(range(size + 1), 2)) for size in values[path].shape]
                box = tensors.box(path, [low for low, _ in ends], [high for _, high in ends])
                assert np.array_equal(box, values[path][tuple(slice(*each) for each in ends)].numpy()), (path, ends)


def test_names_of_old_berts_are_read_and_its_other_heads_left_behind(saved: Callable[..., Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    source = saved("bert")
    tensors = load_file(source / "model.safetensors")
    renamed = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensors[name] for name in tensors
    }
    renamed["bert.pooler.dense.weight"] = torch.zeros(32, 32)
    save_file(renamed, source / "model.safetensors")
    import_model(source, tmp_path / "ours")
    assert torch.equal(load(tmp_path / "ours", "cpu").module.norm.weight, tensors["cls.predictions.transform.LayerNorm.weight"])
    with pytest.raises(UserError, match=r'family = "bert" tells tokens that are hidden, and writes no text'):
        generate(load(tmp_path / "ours", "cpu").module, load(tmp_path / "ours", "cpu").tokenizer, ["a"])


def test_a_translator_goes_and_comes_back_and_says_the_same(prepared: Path, nursery: Nursery, tmp_path: Path) -> None:
    run = tiny(write_pairs(tmp_path), prepared, **T5_PAIRS, train__duration="2 steps", train__precision="fp32")
    train(run, tmp_path / "run", nursery=nursery, quiet=True)
    export_model(tmp_path / "run", tmp_path / "exported")
    import_model(tmp_path / "exported", tmp_path / "back", context=32)
    there = theirs(tmp_path / "exported")
    ours, back = (load_translator(tmp_path / name, beams=3, tokens=12) for name in ("run", "back"))
    line = "the cat sat"
    ids = [*ours.trained.tokenizer.encode([line])[0].tolist(), ours.trained.tokenizer.end_of_text]
    written = there.generate(torch.tensor([ids]), num_beams=3, max_new_tokens=12, length_penalty=1.0, do_sample=False)[0, 1:].tolist()
    assert isinstance(ours.trained.module, Seq2Seq)
    end = ours.trained.tokenizer.end_of_text
    (found,) = search(ours.trained.module, [ids], end, end, Beams(3, 1.0, 12))
    assert found.tokens == written[: len(found.tokens)]
    assert ours.translate([line]) == back.translate([line])
