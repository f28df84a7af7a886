"""Adapters: two narrow matrices beside a linear layer, which alone are trained (LoRA: Hu et al. 2021).

    x ─┬─────────── W (frozen) ────────────(+)─► y          y = W x + alpha / rank  B A dropout(x)
       └─ dropout ─ A [rank, in] ─ B [out, rank] ─┘

B is zero at first, so that training begins with the base's very outputs. A and B are linear layers of their own, children of the one that
they stand beside, and the sharding table cuts them as it cuts that one: where W is cut by rows (column), B is, and A is whole; where W is
cut by columns (row), A is, and B is whole. So whoever spreads the model over ranks need not know of adapters.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Any, cast

import torch
from torch import Tensor, nn

from plait import spec
from plait.errors import RunFileError
from plait.model.blocks import Linear
from plait.model.init import Constant, Normal, draw
from plait.model.noise import Dropout, Noise
from plait.model.sharding import placement


class Adapter(nn.Module):
    """What is added to a linear layer's output. noise: of what is computed; given before each pass, dropout is drawn from it."""

    def __init__(self, layer: nn.Linear, settings: spec.Lora, path: str, spread: bool) -> None:
        super().__init__()
        self.scale = settings.alpha / settings.rank
        self.dropout = Dropout(settings.dropout, f"{path}.lora.dropout")
        self.dropout.spread = spread
        self.a = Linear(layer.in_features, settings.rank, bias=False)
        self.b = Linear(settings.rank, layer.out_features, bias=False)
        self.noise: Noise | None = None

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.b(self.a(self.dropout(x, self.noise)))) * self.scale


def prepare(model: nn.Module, finetune: spec.Finetune | None, seed: int) -> nn.Module:
    """Put in the adapters, and freeze what is not trained, in place. Raises RunFileError: targets that fit no linear layer."""
    if finetune is None:
        return model
    if finetune.lora is not None:
        _adapt(model, finetune.lora, seed)
    for path, parameter in model.named_parameters():
        parameter.requires_grad_(finetune.trains(path))
    return model


def adapters(model: nn.Module) -> Iterator[tuple[str, nn.Linear, Adapter]]:
    """(path, layer, its adapter)."""
    for path, layer in model.named_modules():
        adapter = getattr(layer, "lora", None)
        if isinstance(layer, nn.Linear) and isinstance(adapter, Adapter):
            yield path, layer, adapter


@torch.no_grad()
def merge(model: nn.Module) -> None:
    """Add what adapters add to the very weights, and take the adapters out; in place, and of whole matrices."""
    for _, layer, adapter in list(adapters(model)):
        wide = torch.promote_types(layer.weight.dtype, torch.float32)
        layer.weight += ((adapter.b.weight.to(wide) @ adapter.a.weight.to(wide)) * adapter.scale).to(layer.weight.dtype)
        del layer.lora
        layer._forward_hooks.clear()


def _adapt(model: nn.Module, settings: spec.Lora, seed: int) -> None:
    targets = _targets(model, settings.targets)
    table: dict[str, str] = {}
    kinds: Any = getattr(model, "sharding", None)
    for path, layer in targets.items():
        words = "replicated" if not kinds else _words(kinds, f"{path}.weight")
        row = words == "row"
        layer.lora = Adapter(layer, settings, path, spread=row)
        layer.register_forward_hook(_add)
        table |= {f"{path}.lora.a.weight": "row" if row else "replicated", f"{path}.lora.b.weight": "replicated" if row else words}
    if kinds:
        cast(Any, model).sharding = table | dict(kinds)
    _give_values(model, targets, seed)
    if settings.dropout:
        _bring_noise(model)


def _targets(model: nn.Module, patterns: list[str]) -> dict[str, nn.Linear]:
    """Linear layers by path."""
    layers = {path: module for path, module in model.named_modules() if isinstance(module, nn.Linear)}
    for pattern in patterns:
        if not any(fnmatchcase(path, pattern) for path in layers):
            raise RunFileError(f'finetune.lora.targets: "{pattern}" fits no linear layer; there are {spec.some_paths(layers)}')
    chosen = {path: layer for path, layer in layers.items() if any(fnmatchcase(path, pattern) for pattern in patterns)}
    shown = [parameter for _, parameter in model.named_parameters(remove_duplicate=False)]
    for path, layer in chosen.items():
        if sum(parameter is layer.weight for parameter in shown) > 1:
            raise RunFileError(
                f'finetune.lora.targets: "{path}" shares its weight with another layer; name it under finetune.trained instead'
            )
    return chosen


def _words(table: Any, path: str) -> str:
    """How the sharding table cuts a parameter, as it is written there."""
    placement(table, path)
    return next(str(words) for pattern, words in table.items() if fnmatchcase(path, pattern))


def _give_values(model: nn.Module, targets: dict[str, nn.Linear], seed: int) -> None:
    """As a linear layer's usual beginning for A, and zero for B: by the model's table, or at once where it has none."""
    initial: Any = getattr(model, "initial", None)
    stds = {f"{path}.lora.a.weight": (3 * layer.in_features) ** -0.5 for path, layer in targets.items()}
    if initial is not None:
        cast(Any, model).initial = {path: Normal(std) for path, std in stds.items()} | {"*.lora.b.weight": Constant(0.0)} | dict(initial)
        return
    with torch.no_grad():
        for path, layer in targets.items():
            adapter, name = cast(Adapter, layer.lora), f"{path}.lora.a.weight"
            shape = adapter.a.weight.shape
            adapter.a.weight.copy_(draw(seed, name, shape, 0, shape[0]) * stds[name])
            adapter.b.weight.zero_()


def _add(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return output + cast(Tensor, cast(Adapter, layer.lora)(inputs[0]))


def _bring_noise(model: nn.Module) -> None:
    """A linear layer is called with x alone: its block, which is called with what is around it, also when backward computes it again,
    hands the noise on."""
    blocks = [module for path, module in model.named_modules() if re.fullmatch(r"(?:.*\.)?blocks\.\d+", path)]
    inside = {adapter for block in blocks for _, _, adapter in adapters(block)}
    outside = [path for path, _, adapter in adapters(model) if adapter not in inside]
    if outside:
        raise RunFileError(f"finetune.lora.dropout: reaches adapters inside `blocks` alone, and {outside[0]} is not; use dropout = 0")
    for block in blocks:
        block.register_forward_pre_hook(_hand_on)


def _hand_on(block: nn.Module, inputs: tuple[Any, ...]) -> None:
    noise = next((given.noise for given in inputs if hasattr(given, "noise")), None)
    for _, _, adapter in adapters(block):
        adapter.noise = noise
