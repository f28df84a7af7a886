"""Weights in int8: near the floats that they were rounded from, what is tied stays tied, and no position minds another."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from plait import spec
from plait.model import int8
from plait.model.build import build
from plait.model.decode import Step, prefill

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"kv_heads": 2},
    "gpt2": {},
    "bert": {},
    "t5": {},
    "moe": {"experts": 3, "shared_experts": 1},
}
TOKENS = torch.randint(0, 50, (3, 12), generator=torch.Generator().manual_seed(3))


def made(family: str) -> nn.Module:
    return build(spec.Model(**{"family": family, "layers": 2, "width": 64, "heads": 4} | FAMILIES[family]), 50, 16, 1).eval()


@torch.no_grad()
def logits(module: nn.Module, tokens: Tensor = TOKENS) -> Tensor:
    return module(tokens, **({"source": 5} if module.model.family == "t5" else {}))


def distance(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("mode", int8.MODES)
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_near_those_of_floats(family: str, mode: int8.Mode) -> None:
    module = made(family)
    whole = logits(module)
    int8.round_weights(module, mode)
    assert 1e-6 < distance(logits(module), whole) < (0.02 if mode == "weights" else 0.05)
    floats = [path for path, value in module.state_dict().items() if value.is_floating_point() and value.ndim > 1]
    assert all(any(name in path for name in ("scale", "router", "positions", "segments", "distances")) for path in floats)


def test_each_value_is_rounded_to_the_nearest() -> None:
    weight = torch.randn(6, 10)
    weight[2] = 0.0
    q, scale = int8.round_rows(weight)
    assert q.dtype == torch.int8
    assert torch.all((q * scale[:, None] - weight).abs() <= scale[:, None] / 2 * (1 + 1e-5))
    assert not q[2].any()


def test_what_is_tied_is_kept_once() -> None:
    module = made("gpt2")
    int8.round_weights(module, "weights")
    assert module.head.weight is module.embed.weight
    assert [path for path in module.state_dict() if path.startswith(("embed", "head"))] == ["embed.weight", "embed.scale"]


@pytest.mark.parametrize("mode", int8.MODES)
def test_a_position_minds_no_other(mode: int8.Mode) -> None:
    """Inputs of one are a thousand times those of another, whose scale stays its own."""
    layer = int8.Int8Linear(nn.Linear(32, 8), mode, None)
    x = torch.randn(4, 3, 32)
    x[1] *= 1000
    torch.testing.assert_close(layer(x)[0], layer(x[:1])[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(layer(x[:, 0])[0], layer(x[:1, 0])[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("mode", int8.MODES)
@pytest.mark.parametrize("family", ["llama", "gpt2", "moe"])
def test_generation_computes_what_a_whole_pass_does(family: str, mode: int8.Mode) -> None:
    module = made(family)
    int8.round_weights(module, mode)
    with torch.inference_mode():
        cache = module.new_cache(3, 12)
        prefill(module, TOKENS[:, :6], cache)
        step = Step(module)
        for place in range(6, 12):
            last = step(TOKENS[:, place], cache)
    whole = logits(module)[:, -1]
    assert distance(last, whole) < 0.02  # positions one by one are rounded to bf16 on the way


def test_products_elsewhere_are_those_of_whole_numbers() -> None:
    p, q = (torch.randint(-127, 128, (rows, 24), dtype=torch.int8) for rows in (5, 7))
    assert torch.equal(int8._products(p, q).long(), p.long() @ q.long().T)


def test_a_copy_is_as_good(tmp_path: Any) -> None:
    """What was packed for one engine is no part of a model."""
    module = made("llama")
    int8.round_weights(module, "dynamic")
    state = copy.deepcopy(module.state_dict())
    other = made("llama")
    int8.round_weights(other, "dynamic")
    other.load_state_dict(state)
    torch.testing.assert_close(logits(other), logits(module))
