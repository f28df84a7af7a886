"""A smaller model computes what the large one does without the parts that were cut out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from plait import spec
from plait.model import narrow
from plait.model.build import build
from plait.model.moe import mixtures
from plait.tasks.shrink import resized

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"kv_heads": 2},
    "qwen": {"family": "llama", "kv_heads": 2, "head_size": 12, "qk_norm": True, "qkv_bias": True},
    "gpt2": {},
    "bert": {},
    "t5": {"decoder_layers": 2},
    "t5 gated": {"family": "t5", "gated": True},
    "moe": {"kv_heads": 2, "experts": 3, "shared_experts": 2, "expert_hidden": 16, "dense_layers": 1, "hidden": 24},
}
SIZES: dict[str, dict[str, int]] = {
    "llama": {"heads": 2, "hidden": 40, "layers": 2},
    "qwen": {"heads": 2},
    "gpt2": {"heads": 3, "hidden": 50, "layers": 1},
    "bert": {"heads": 1, "hidden": 7},
    "t5": {"heads": 3, "hidden": 9, "layers": 2, "decoder_layers": 1},
    "t5 gated": {"hidden": 5},
    "moe": {"heads": 2, "hidden": 10, "expert_hidden": 5, "layers": 2},
}
TOKENS = torch.randint(0, 50, (2, 12), generator=torch.Generator().manual_seed(3))


def made(name: str) -> tuple[spec.Model, nn.Module]:
    """With values far from their first ones, biases and norms too."""
    settings = spec.Model(**{"family": name.split()[0], "layers": 3, "width": 32, "heads": 4} | FAMILIES[name])
    module = build(settings, 50, 16, 1, dtype=torch.float64)
    chance = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=chance, dtype=torch.float64) * 0.1)
    return settings, module


def chosen(settings: spec.Model, smaller: spec.Model) -> narrow.Kept:
    """By chance; of a mixture the plain layer, too."""
    chance = torch.Generator().manual_seed(7)
    units = [torch.rand(group.units, generator=chance) for group in narrow.groups(settings)]
    return narrow.choose(settings, smaller, narrow.Scores(units, [1.0, 0.2, 0.5, 0.4, 0.8, 0.1][: settings.all_layers]))


def logits(module: nn.Module, settings: spec.Model) -> Tensor:
    with torch.no_grad():
        return module(TOKENS, **({"source": 5} if settings.family == "t5" else {}))


@torch.no_grad()
def silence(module: nn.Module, settings: spec.Model, kept: narrow.Kept) -> None:
    """Zero what the other units and layers write."""
    values = dict(module.named_parameters())
    for group, units in zip(narrow.groups(settings), kept.units, strict=True):
        gone = [unit for unit in range(group.units) if unit not in units.tolist()]
        for member in group.members:
            for slices in member.writes:
                matrix = values[slices.path] if slices.place is None else values[slices.path][slices.place]
                for section in slices.sections:
                    matrix.index_fill_(slices.dim, section[gone].flatten(), 0.0)
    for path, value in values.items():
        parts = path.split(".")
        if parts[0] == "blocks" and int(parts[1]) not in kept.layers and ({"out", "down"} & set(parts)):
            value.zero_()


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_left_computes_what_it_computed(name: str) -> None:
    settings, module = made(name)
    smaller = resized(settings, SIZES[name])
    kept = chosen(settings, smaller)
    small = build(smaller, 50, 16, 2, dtype=torch.float64)
    tied = {path for path, _ in small.named_parameters(remove_duplicate=False)} - dict(small.named_parameters()).keys()
    missing = small.load_state_dict(narrow.cut_out(settings, dict(module.named_parameters()), kept), strict=False)
    assert not missing.unexpected_keys
    assert set(missing.missing_keys) <= tied | {"blocks.0.mlp.router.bias", "blocks.1.mlp.router.bias"}
    whole = logits(module, settings)
    silence(module, settings, kept)
    silenced = logits(module, settings)
    assert not torch.allclose(whole, silenced, rtol=1e-3)
    torch.testing.assert_close(logits(small, smaller), silenced, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["llama", "gpt2", "moe"])
def test_taylor_is_the_slope_along_what_a_unit_writes(name: str) -> None:
    """Seen by making a unit's writing a little louder."""
    settings, module = made(name)
    values = dict(module.named_parameters())
    for mixture in mixtures(module):
        mixture.router.begin(0.0)

    def loss() -> Tensor:
        out = module(TOKENS).log_softmax(-1)
        return -out.gather(-1, TOKENS.roll(-1, 1)[..., None]).mean()

    loss().backward()
    taylor = narrow.Taylor(settings)
    taylor.add(values, {path: value.grad for path, value in values.items()})
    scores = taylor.scores()
    groups = narrow.groups(settings)
    for index in (0, len(groups) // 2, len(groups) - 1):
        slices, unit = groups[index].members[0].writes[0], groups[index].units - 1
        matrix = values[slices.path] if slices.place is None else values[slices.path][slices.place]
        columns = torch.cat([section[unit] for section in slices.sections])
        with torch.no_grad():
            before = matrix[:, columns].clone()
            matrix[:, columns] = before * (1 + 1e-6)
            louder = loss()
            matrix[:, columns] = before * (1 - 1e-6)
            slope = float((louder - loss()) / 2e-6)
            matrix[:, columns] = before
        assert float(scores.units[index][unit]) == pytest.approx(slope**2, rel=1e-4, abs=1e-14)


def test_the_largest_by_magnitude_stay() -> None:
    settings, module = made("llama")
    values = {path: value.detach().clone() for path, value in module.named_parameters()}
    values["blocks.1.mlp.down.weight"][:, 5] *= 30
    values["blocks.0.mlp.gate_up.weight"][3] = 0.0
    values["blocks.0.mlp.gate_up.weight"][3 + settings.hidden_width] = 0.0
    scores = narrow.by_magnitude(settings, values)
    of_mlp = [units for group, units in zip(narrow.groups(settings), scores.units, strict=True) if group.setting == "hidden"]
    assert int(of_mlp[1].argmax()) == 5
    assert int(of_mlp[0].argmin()) == 3
