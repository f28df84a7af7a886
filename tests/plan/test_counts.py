"""Counts from settings equal those of the built model, and cost no import of torch."""

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plait import spec
from plait.model.build import build
from plait.plan.counts import active_parameters, flops_per_token, matmul_parameters, parameters


@st.composite
def models(draw):
    heads = draw(st.sampled_from([1, 2, 4, 6]))
    return spec.Model(
        family=draw(st.sampled_from(["gpt2", "llama", "bert"])),
        layers=draw(st.integers(1, 3)),
        heads=heads,
        width=heads * draw(st.sampled_from([2, 4, 10])),
        kv_heads=draw(st.sampled_from([None, *(divisor for divisor in (1, 2, 3) if heads % divisor == 0)])),
        hidden=draw(st.none() | st.integers(1, 40)),
        tied=draw(st.sampled_from([None, True, False])),
        head_size=draw(st.sampled_from([None, 2, 6])),
        qkv_bias=draw(st.sampled_from([None, True, False])),
        qk_norm=draw(st.booleans()),
    )


@st.composite
def mixtures(draw):
    layers, experts = draw(st.integers(1, 3)), draw(st.integers(1, 5))
    return spec.Model(
        family="moe",
        layers=layers,
        heads=2,
        width=2 * draw(st.sampled_from([2, 4, 10])),
        hidden=draw(st.none() | st.integers(1, 40)),
        experts=experts,
        experts_per_token=draw(st.integers(1, experts)),
        shared_experts=draw(st.integers(0, 2)),
        expert_hidden=draw(st.none() | st.integers(1, 9)),
        dense_layers=draw(st.integers(0, layers - 1)),
        balance=draw(st.sampled_from(["bias", "auxiliary", "none"])),
    )


@pytest.mark.parametrize(
    "changes", [{}, {"gated": True, "decoder_layers": 3}, {"tied": False, "head_size": 5}, {"buckets": 8, "hidden": 7}], ids=str
)
def test_counts_of_an_encoder_decoder_are_those_of_the_built_one(changes):
    model = spec.Model(**{"family": "t5", "layers": 2, "width": 12, "heads": 3, **changes})
    built = build(model, 30, 16, 0)
    assert parameters(model, 30, 16) == sum(parameter.numel() for parameter in built.parameters())
    in_blocks = sum(parameter.numel() for parameter in built.blocks.parameters() if parameter.ndim == 2)
    assert matmul_parameters(model, 30) == in_blocks + 30 * model.width


@settings(max_examples=60, deadline=None)
@given(models(), st.integers(2, 30), st.integers(1, 9))
def test_counts_are_those_of_the_built_model(model, vocabulary, sequence):
    built = build(model, vocabulary, sequence, 0)
    assert parameters(model, vocabulary, sequence) == sum(parameter.numel() for parameter in built.parameters())
    in_blocks = sum(parameter.numel() for parameter in built.blocks.parameters() if parameter.ndim == 2)
    transform = built.transform.weight.numel() if model.family == "bert" else 0
    assert matmul_parameters(model, vocabulary) == in_blocks + transform + vocabulary * model.width


@settings(max_examples=60, deadline=None)
@given(mixtures(), st.integers(2, 30), st.integers(1, 9))
def test_a_token_meets_its_own_experts_alone(model, vocabulary, sequence):
    built = build(model, vocabulary, sequence, 0)
    values = {path: parameter.numel() for path, parameter in built.named_parameters()}
    assert parameters(model, vocabulary, sequence) == sum(values.values())
    idle = 1 - model.mixture.per_token / model.mixture.experts
    elsewhere = round(sum(idle * count for path, count in values.items() if ".experts." in path))
    assert active_parameters(model, vocabulary, sequence) == sum(values.values()) - elsewhere
    in_blocks = sum(parameter.numel() for parameter in built.blocks.parameters() if parameter.ndim > 1)
    assert matmul_parameters(model, vocabulary) == in_blocks - elsewhere + vocabulary * model.width


def test_mixtral_8x7b_has_its_known_sizes():
    model = spec.Model(family="moe", layers=32, width=4096, heads=32, kv_heads=8, experts=8, expert_hidden=14336)
    assert parameters(model, 32000, 32768) == 46_702_792_704
    assert active_parameters(model, 32000, 32768) == 12_879_925_248


def test_gpt2_small_has_its_known_size():
    model = spec.Model(family="gpt2", layers=12, width=768, heads=12)
    assert parameters(model, 50257, 1024) == 124_439_808
    assert flops_per_token(model, 50257, 1024) == 6 * (124_439_808 - 1024 * 768 - 12 * 13 * 768 - 2 * 768) + 12 * 12 * 768 * 1024


def test_llama_2_7b_has_its_known_size():
    model = spec.Model(family="llama", layers=32, width=4096, heads=32, hidden=11008)
    assert parameters(model, 32000, 4096) == 6_738_415_616


def test_ones_own_model_is_counted_when_built():
    model = spec.Model(family="mine:Model", layers=2, width=8, heads=2)
    with pytest.raises(ValueError, match=r"mine:Model.*only when it is built"):
        parameters(model, 10, 4)
    with pytest.raises(ValueError, match="only when it is built"):
        flops_per_token(model, 10, 4)
    assert flops_per_token(model, 10, 4, built=100) == 600 + 12 * 2 * 8 * 4


def test_planning_does_not_import_torch():
    code = "import sys, plait.plan.counts, plait.plan.hardware; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
