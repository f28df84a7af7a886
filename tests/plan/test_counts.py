"""Counts from settings equal those of the built model."""

from __future__ import annotations

import pytest

from plait import spec
from plait.model.build import build
from plait.plan import counts, hardware


@pytest.mark.parametrize(
    "settings",
    [
        {"family": "gpt2"},
        {"family": "gpt2", "tied": False, "hidden": 100},
        {"family": "llama"},
        {"family": "llama", "tied": True, "kv_heads": 2},
        {"family": "llama", "kv_heads": 1, "hidden": 72},
    ],
)
def test_parameters_are_those_of_the_built_model(settings: dict) -> None:
    model = spec.Model(layers=3, width=48, heads=4, **settings)
    built = build(model, 300, 16, seed=0)
    assert counts.parameters(model, 300, 16) == sum(parameter.numel() for parameter in built.parameters())


def test_flops_of_gpt2_small_are_the_published_convention() -> None:
    """6 N + 12 L D S with N = 124M less positions: 124,439,808 - 1024 * 768, and biases and norms left out."""
    model = spec.Model(family="gpt2", layers=12, width=768, heads=12)
    expected = 6 * (124_439_808 - 1024 * 768) + 12 * 12 * 768 * 1024
    assert counts.flops_per_token(model, 50257, 1024) == pytest.approx(expected, rel=2e-3)


def test_a_peak_is_known_or_null() -> None:
    assert hardware.peak_flops("NVIDIA H100 80GB HBM3", "bf16") == 989e12
    assert hardware.peak_flops("NVIDIA L4", "fp32") == 30.3e12
    assert hardware.peak_flops("cpu", "bf16") is None
    assert hardware.peak_flops("NVIDIA V100", "bf16") is None
