"""Local SGD and DiLoCo as the papers have them, in one process and a straight line: Douillard et al. 2023, algorithm 1."""

from __future__ import annotations

import copy

import torch

from plait import spec
from plait.data.batches import Batches
from plait.data.prepare import prepare
from plait.ledger.shares import deal
from plait.model.build import build
from plait.model.loss import cross_entropy
from plait.model.noise import Noise
from plait.replica.optim import decays
from plait.replica.schedule import rate


def local_steps(run: spec.Run) -> list[float]:
    """The mean loss of each step: of every replica's share at that replica's own parameters."""
    torch.set_num_threads(1)
    prepared = prepare(run.data)
    batches = Batches(prepared.split("train", run.data.sequence), run.train, prepared.fingerprint)
    shared = build(run.model, prepared.vocabulary, run.data.sequence, run.train.seed, dtype=torch.float64)
    replicas = [copy.deepcopy(shared) for _ in range(run.layout.replicas)]
    inner = [_adamw(run, replica) for replica in replicas]
    momentum = [torch.zeros_like(parameter) for parameter in shared.parameters()]
    every = batches.steps_of(run.sync.every) if run.sync.every else 1
    losses, weights = [], [0.0] * len(replicas)
    for step in range(1, batches.steps + 1):
        shares = deal(batches.size(step), run.balance.stated or [1.0] * len(replicas))
        total = 0.0
        for number, (replica, optimizer, share) in enumerate(zip(replicas, inner, shares, strict=True)):
            loss = _loss(run, replica, batches, step, share[0])
            weights[number] += batches.targets(step, share)
            optimizer.zero_grad()
            (loss / batches.targets(step, share)).backward()
            torch.nn.utils.clip_grad_norm_(replica.parameters(), run.train.clip or 1e9)
            for group in optimizer.param_groups:
                group["lr"] = rate(run.train.schedule, run.train.optimizer.lr, step, batches.steps, 3, 1)
            optimizer.step()
            total += float(loss.detach())
        losses.append(total / batches.targets(step))
        if step % every == 0 or step == batches.steps:
            _outer_step(run, shared, replicas, [weight / sum(weights) for weight in weights], momentum)
            weights = [0.0] * len(replicas)
    return losses


def _adamw(run: spec.Run, model: torch.nn.Module) -> torch.optim.AdamW:
    settings = run.train.optimizer
    groups = [
        {
            "params": [p for path, p in model.named_parameters() if decays(path, p) == decayed],
            "weight_decay": settings.weight_decay * decayed,
        }
        for decayed in (True, False)
    ]
    return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps)


def _loss(run: spec.Run, model: torch.nn.Module, batches: Batches, step: int, span: list[int]) -> torch.Tensor:
    batch = batches.read(step, *span)
    noise = Noise(run.train.seed, step, torch.from_numpy(batch.samples_B))
    logits_BLV = model(torch.from_numpy(batch.tokens_BL), None, noise)
    return cross_entropy(logits_BLV, torch.from_numpy(batch.targets_BL))


@torch.no_grad()
def _outer_step(
    run: spec.Run, shared: torch.nn.Module, replicas: list[torch.nn.Module], weights: list[float], momentum: list[torch.Tensor]
) -> None:
    """theta <- theta - lr (delta + mu v), v <- mu v + delta: Nesterov's; plain averaging for local SGD."""
    diloco = run.sync.strategy == "diloco"
    lr = (run.sync.outer_lr or 0.7) if diloco else 1.0
    mu = (run.sync.outer_momentum or 0.9) if diloco else 0.0
    theirs = zip(*(replica.parameters() for replica in replicas), strict=True)
    for theta, each, velocity in zip(shared.parameters(), theirs, momentum, strict=True):
        delta = sum(weight * (theta - parameter) for weight, parameter in zip(weights, each, strict=True))
        velocity.mul_(mu).add_(delta)
        theta -= lr * (delta + mu * velocity)
        for parameter in each:
            parameter.copy_(theta)
