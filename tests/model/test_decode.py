"""One position at a time, in straight lines: the logits of a whole forward pass."""

import pytest
import torch

from plait import spec
from plait.model import lora
from plait.model.build import build, skeleton
from plait.model.decode import Step, prefill
from plait.model.init import initialise

LENGTHS = [9, 4, 1]
FAMILIES = [
    {"family": "gpt2"},
    {"family": "llama", "kv_heads": 2},
    {"family": "llama", "tied": True, "qk_norm": True, "qkv_bias": True, "head_size": 12},
    {"family": "moe", "experts": 4},
]


def decoded(model, tokens, lengths):
    """Logits behind each row's last position, prompts of these lengths first and then token by token."""
    longest, total = max(lengths), tokens.shape[1]
    padding = [longest - length for length in lengths]
    cache = model.new_cache(len(tokens), longest + total, padding)
    prompts = torch.stack(
        [torch.cat([tokens.new_zeros(pad), row[:length]]) for pad, row, length in zip(padding, tokens, lengths, strict=True)]
    )
    step, told = Step(model), [prefill(model, prompts, cache)]
    assert step.straight == (model.model.family != "moe" and not list(lora.adapters(model)))
    for place in range(total - longest):
        told.append(step(torch.stack([row[length + place] for row, length in zip(tokens, lengths, strict=True)]), cache))
    return torch.stack(told, 1)


@pytest.mark.parametrize("settings", FAMILIES, ids=str)
def test_logits_are_those_of_a_whole_pass(settings):
    model = build(spec.Model(layers=2, width=32, heads=4, **settings), 64, 24, seed=1, dtype=torch.float64).eval()
    for parameter in model.parameters():
        parameter.data.mul_(4)
    tokens = torch.randint(0, 64, (3, 16), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        whole, parts = model(tokens), decoded(model, tokens, LENGTHS)
    for row, length in enumerate(LENGTHS):
        expected = whole[row, length - 1 : length - 1 + parts.shape[1]]
        torch.testing.assert_close(parts[row], expected, rtol=1e-10, atol=1e-12)


def test_adapters_are_not_passed_over():
    settings = spec.Model(layers=2, width=32, heads=4)
    finetune = spec.Finetune.model_validate({"from": "a run", "lora": {"rank": 2}})
    model = lora.prepare(skeleton(settings, 64, 24, 0), finetune, 0).double().eval()
    initialise(model, model.initial, 0)
    for _, _, adapter in lora.adapters(model):
        torch.nn.init.normal_(adapter.b.weight, generator=torch.Generator().manual_seed(1))
    tokens = torch.randint(0, 64, (1, 12), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(decoded(model, tokens, [5])[0], model(tokens)[0, 4:], rtol=1e-10, atol=1e-12)


def test_a_full_cache_is_refused():
    model = build(spec.Model(layers=1, width=16, heads=2), 64, 8, seed=0)
    cache = model.new_cache(1, 2)
    with torch.inference_mode():
        prefill(model, torch.zeros(1, 2, dtype=torch.int64), cache)
        with pytest.raises(ValueError, match="3 positions do not fit a cache of 2"):
            Step(model)(torch.zeros(1, dtype=torch.int64), cache)
