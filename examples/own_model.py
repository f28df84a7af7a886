"""A model, a loss, an optimizer and a listener of one's own, all in one file. From the folder above:

    plait train examples/austen.toml --out runs/own \\
        model.family=examples.own_model:Convolutions model.settings.reach=16 \\
        train.loss=examples.own_model:smoothed \\
        train.optimizer.name=examples.own_model:Lion train.optimizer.lr=3e-4 \\
        'watch.listeners=["examples.own_model:Best"]'
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from plait import events, spec
from plait.model.noise import Dropout, Noise


class Convolutions(nn.Module):
    """A language model that looks back `reach` tokens a block, by causal convolutions.

    It is built as Class(model, vocabulary, sequence, **model.settings) on every rank, from the run's seed, and called as
    module(tokens_BL, documents_BL, noise). `blocks` are compiled one by one; `sharding` says how parameters may be cut.
    """

    sharding = {"embed.weight": "vocabulary", "*": "replicated"}  # noqa: RUF012

    def __init__(self, model: spec.Model, vocabulary: int, sequence: int, reach: int = 8) -> None:
        super().__init__()
        self.context = sequence  # generation stops there; leave it out where there is no limit
        self.embed = nn.Embedding(vocabulary, model.width)
        nn.init.normal_(self.embed.weight, std=0.02)
        self.blocks = nn.ModuleList(Block(model.width, reach, model.dropout, f"blocks.{layer}") for layer in range(model.layers))
        self.norm = nn.LayerNorm(model.width)

    def forward(self, tokens_BL: Tensor, documents_BL: Tensor | None = None, noise: Noise | None = None) -> Tensor:
        x_BLD = self.embed(tokens_BL)
        for block in self.blocks:
            x_BLD = block(x_BLD, noise)
        return functional.linear(self.norm(x_BLD), self.embed.weight)


class Block(nn.Module):
    def __init__(self, width: int, reach: int, dropout: float, path: str) -> None:
        super().__init__()
        self.reach = reach
        self.norm = nn.LayerNorm(width)
        self.look_back = nn.Conv1d(width, width, reach, groups=width)
        self.mix = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        # Not nn.Dropout: this one's mask follows no cut of the batch, so that any number of replicas draws the same curve.
        self.dropout = Dropout(dropout, path)

    def forward(self, x_BLD: Tensor, noise: Noise | None) -> Tensor:
        past_BDL = functional.pad(self.norm(x_BLD).transpose(1, 2), (self.reach - 1, 0))
        return x_BLD + self.dropout(self.mix(self.look_back(past_BDL).transpose(1, 2)), noise)


def smoothed(logits_BLV: Tensor, targets_BL: Tensor) -> Tensor:
    """Cross-entropy with a tenth of each target spread over the vocabulary: a SUM over the targets that are not -100."""
    logits_NV = logits_BLV.flatten(0, 1)
    logits_NV = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))  # sums of bf16 would be rough
    return functional.cross_entropy(logits_NV, targets_BL.flatten(), reduction="sum", label_smoothing=0.1)


class Lion(torch.optim.Optimizer):
    """The sign of momentum (Chen et al. 2023). Built as Class(groups, lr=..., **train.optimizer.settings)."""

    def __init__(self, groups: Iterable[Any], lr: float, betas: Sequence[float] = (0.9, 0.99)) -> None:
        super().__init__(groups, {"lr": lr, "betas": tuple(betas), "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            fast, slow = group["betas"]
            for parameter in group["params"]:
                momentum = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
                direction = momentum.lerp(parameter.grad, 1 - fast).sign_()
                parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(direction, alpha=-group["lr"])
                momentum.lerp_(parameter.grad, 1 - slow)


class Best:
    """Says when validation has never been better. Built with the run's folder; `on` is told of each event, `close` comes last."""

    def __init__(self, folder: Path, run: spec.Run) -> None:
        self.loss = float("inf")

    def on(self, event: events.Event) -> None:
        if isinstance(event, events.Evaluated) and event.loss < self.loss:
            self.loss = event.loss
            print(f"step {event.step}: the best yet, {event.loss:.4f}")

    def close(self) -> None:
        print(f"best validation loss {self.loss:.4f}")
