"""The decoder in both families: what it may see, and what must not change what it computes."""

import math

import pytest
import torch
from torch.nn import functional

from plait import spec
from plait.model.build import build
from plait.model.loss import cross_entropy
from plait.model.noise import Noise

VOCABULARY, LENGTH = 50, 24


def settings(family, **changes):
    return spec.Model(**{"family": family, "layers": 2, "width": 32, "heads": 4, "kv_heads": 2 if family == "llama" else None, **changes})


def built(family, dtype=torch.float64, **changes):
    return build(settings(family, **changes), VOCABULARY, LENGTH, seed=0, dtype=dtype)


def tokens(rows=3, length=LENGTH):
    return torch.randint(0, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(rows))


def gradients(model, *args):
    model.zero_grad()
    cross_entropy(model(*args), args[0]).backward()
    return {path: parameter.grad.clone() for path, parameter in model.named_parameters()}


both = pytest.mark.parametrize("family", ["gpt2", "llama"])


@both
def test_first_loss_is_that_of_guessing(family):
    x = tokens(8)
    loss = cross_entropy(built(family)(x), x.roll(5)).item() / x.numel()
    assert loss == pytest.approx(math.log(VOCABULARY), abs=0.35)


@both
def test_sees_the_past_alone(family):
    model, x = built(family), tokens()
    changed = x.clone()
    changed[:, 10] = (changed[:, 10] + 1) % VOCABULARY
    before, after = model(x), model(changed)
    torch.testing.assert_close(before[:, :10], after[:, :10], rtol=0, atol=1e-14)
    assert (before[:, 10:] != after[:, 10:]).any(-1).all()


@both
def test_documents_do_not_see_each_other(family):
    model, x = built(family), tokens()
    documents = (torch.arange(LENGTH) >= 9).long().expand(3, -1)
    changed = x.clone()
    changed[:, :9] = (changed[:, :9] + 1) % VOCABULARY
    torch.testing.assert_close(model(x, documents)[:, 9:], model(changed, documents)[:, 9:], rtol=0, atol=1e-14)
    assert (model(x)[:, 9:] != model(x, documents)[:, 9:]).any()


def test_rotary_positions_are_relative():
    model, x = built("llama"), tokens(2, 10)
    padded = torch.cat([torch.zeros(2, 7, dtype=torch.int64), x], 1)
    apart = torch.tensor([0] * 7 + [1] * 10).expand(2, -1)
    torch.testing.assert_close(model(padded, apart)[:, 7:], model(x), rtol=1e-10, atol=1e-12)


@both
@pytest.mark.parametrize("rate", [0.0, 0.2])
def test_micro_batches_sum_to_the_batch(family, rate):
    model, x, samples = built(family, dropout=rate), tokens(4), torch.tensor([9, 4, 7, 1])
    whole = gradients(model, x, None, Noise(1, 5, samples))
    parts = [gradients(model, x[rows], None, Noise(1, 5, samples[rows])) for rows in (slice(0, 1), slice(1, 4))]
    for path, gradient in whole.items():
        torch.testing.assert_close(parts[0][path] + parts[1][path], gradient, rtol=1e-9, atol=1e-11)


@both
@pytest.mark.parametrize(
    "changes", [{"recompute": "full"}, {"recompute": "selective"}, {"recompute": "full", "recompute_layers": [1]}], ids=str
)
def test_recomputing_changes_nothing(family, changes):
    x, noise = tokens(), Noise(0, 1, torch.arange(3))
    kept, recomputed = (gradients(built(family, dropout=0.2, **how), x, None, noise) for how in ({}, changes))
    for path, gradient in kept.items():
        torch.testing.assert_close(recomputed[path], gradient, rtol=1e-12, atol=1e-14)


def test_the_more_is_recomputed_the_less_is_kept():
    held = {}
    for name, changes in {
        "none": {},
        "one layer": {"recompute": "full", "recompute_layers": [0]},
        "selective": {"recompute": "selective"},
        "full": {"recompute": "full"},
    }.items():
        seen = {}
        model = built("gpt2", dropout=0.2, **changes)
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x, seen=seen: seen.setdefault(x.untyped_storage().data_ptr(), x) is None or x, lambda x: x
        ):
            model(tokens(), None, Noise(0, 1, torch.arange(3)))
        held[name] = sum(x.untyped_storage().nbytes() for x in seen.values())
    assert held["full"] < held["one layer"] < held["none"]
    assert held["full"] <= held["selective"] < held["none"]


@both
def test_evaluation_draws_no_dropout(family):
    assert torch.equal(built(family, dropout=0.5)(tokens()), built(family)(tokens()))


@both
def test_more_positions_than_the_context_are_refused(family):
    with pytest.raises(ValueError, match="25 positions are more than the model's context of 24"):
        built(family)(tokens(1, LENGTH + 1))


@both
def test_autocast_computes_matmuls_in_bf16_and_norms_in_fp32(family):
    model, x = built(family, torch.float32), tokens()
    seen = {}
    for path, module in model.named_modules():
        if path == "rotary":
            continue
        module.register_forward_hook(lambda _m, _i, output, path=path: seen.__setitem__(path, output.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = cross_entropy(model(x), x)
    loss.backward()
    assert seen["blocks.0.norm1"] == seen["blocks.1.norm2"] == seen["blocks.1"] == torch.float32
    assert seen["blocks.0.attention"] == seen["blocks.0.mlp"] == seen[""] == torch.bfloat16
    assert loss.item() == pytest.approx(cross_entropy(model(x), x).item(), rel=3e-3)
    assert {parameter.grad.dtype for parameter in model.parameters()} == {torch.float32}


@both
def test_the_head_is_the_embedding_when_tied(family):
    tied, untied = (dict(built(family, tied=tied).named_parameters()) for tied in (True, False))
    assert set(untied) - set(tied) == {"head.weight"}
    assert untied["head.weight"].shape == tied["embed.weight"].shape


def turned(x, theta=10_000.0):
    """Rotary positions as Hugging Face writes them: x cos + rotate_half(x) sin. x: [B, heads, L, E]."""
    length, width = x.shape[-2:]
    angles = torch.arange(length).double()[:, None] * theta ** (-torch.arange(0, width, 2).double() / width)
    angles = torch.cat([angles, angles], -1)
    first, second = x.chunk(2, -1)
    return x * angles.cos() + torch.cat([-second, first], -1) * angles.sin()


def test_a_llama_block_is_the_textbooks():
    """Separate matrices, plain formulas: what the stacked weights must mean for another program's checkpoint."""
    model = built("llama")
    block, x = model.blocks[0], torch.randn(2, LENGTH, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    q, k, v = block.attention.qkv.weight.split([32, 16, 16])
    gate, up = block.mlp.gate_up.weight.chunk(2)
    h = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    q, k, v = ((h @ w.T).unflatten(-1, (-1, 8)).transpose(1, 2) for w in (q, k, v))
    k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
    mixed = functional.scaled_dot_product_attention(turned(q), turned(k), v, is_causal=True)
    y = x + mixed.transpose(1, 2).flatten(2) @ block.attention.out.weight.T
    h = y / (y.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    y = y + (functional.silu(h @ gate.T) * (h @ up.T)) @ block.mlp.down.weight.T
    ours = block(x, model.around(LENGTH, None, None))
    torch.testing.assert_close(ours, y, rtol=1e-10, atol=1e-12)


def test_a_gpt2_block_is_the_textbooks():
    block, x = built("gpt2").blocks[0], torch.randn(2, LENGTH, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for parameter in block.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2))
    h = functional.layer_norm(x, (32,), block.norm1.weight, block.norm1.bias)
    q, k, v = (h @ block.attention.qkv.weight.T + block.attention.qkv.bias).split(32, -1)
    q, k, v = (part.unflatten(-1, (4, 8)).transpose(1, 2) for part in (q, k, v))
    mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
    y = x + mixed @ block.attention.out.weight.T + block.attention.out.bias
    h = functional.layer_norm(y, (32,), block.norm2.weight, block.norm2.bias) @ block.mlp.up.weight.T + block.mlp.up.bias
    h = 0.5 * h * (1 + torch.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
    y = y + h @ block.mlp.down.weight.T + block.mlp.down.bias
    torch.testing.assert_close(block(x), y, rtol=1e-10, atol=1e-12)


@both
def test_gradients_are_those_of_finite_differences(family):
    model, x, noise = built(family, dropout=0.2), tokens(2), Noise(0, 1, torch.arange(2))
    grads = gradients(model, x, None, noise)
    generator = torch.Generator().manual_seed(0)
    for path, parameter in model.named_parameters():
        direction, step = torch.randn(parameter.shape, generator=generator, dtype=torch.float64), 1e-5
        with torch.no_grad():
            parameter += step * direction
            above = cross_entropy(model(x, None, noise), x)
            parameter -= 2 * step * direction
            below = cross_entropy(model(x, None, noise), x)
            parameter += step * direction
        slope = ((above - below) / (2 * step)).item()
        assert (grads[path] * direction).sum().item() == pytest.approx(slope, rel=1e-5, abs=1e-5), path
