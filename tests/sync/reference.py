"""Local SGD and DiLoCo as the papers have them, in one process and a straight line: Douillard et al. 2023, algorithm 1.

Forward passes are those of one process, which are proved elsewhere.
"""

from __future__ import annotations

import copy

import torch

from plait import spec
from plait.data.batches import Batches
from plait.data.prepare import prepare
from plait.ledger.shares import deal
from plait.replica.assemble import assemble
from plait.replica.compute import Compute
from plait.replica.optim import decays
from plait.replica.schedule import rate


def local_steps(run: spec.Run) -> list[float]:
    """The mean loss of each step: of every replica's share at that replica's own parameters."""
    torch.set_num_threads(1)
    prepared = prepare(run.data)
    batches = Batches(prepared.split("train", run.data.sequence), run.train, prepared.fingerprint)
    run = run.model_copy(update={"data": run.data.model_copy(update={"objective": prepared.objective()})})
    computes = [_compute(run, run.model.rows(prepared.vocabulary)) for _ in range(run.layout.replicas)]
    replicas = [compute.module for compute in computes]
    shared = copy.deepcopy(replicas[0])
    inner = [_adamw(run, replica) for replica in replicas]
    momentum = [torch.zeros_like(parameter) for parameter in shared.parameters()]
    every = batches.steps_of(run.sync.every) if run.sync.every else 1
    losses, weights = [], [0.0] * len(replicas)
    for step in range(1, batches.steps + 1):
        shares = deal(batches.size(step), run.balance.stated or [1.0] * len(replicas))
        total = 0.0
        for number, (compute, optimizer, share) in enumerate(zip(computes, inner, shares, strict=True)):
            loss = compute.loss(batches.read(step, *share[0]))
            weights[number] += batches.targets(step, share)
            optimizer.zero_grad()
            (loss / batches.targets(step, share)).backward()
            torch.nn.utils.clip_grad_norm_(compute.module.parameters(), run.train.clip or 1e9)
            for group in optimizer.param_groups:
                group["lr"] = rate(run.train.schedule, run.train.optimizer.lr, step, batches.steps, 3, 1)
            optimizer.step()
            total += float(loss.detach())
        losses.append(total / batches.targets(step))
        if step % every == 0 or step == batches.steps:
            _outer_step(run, shared, replicas, [weight / sum(weights) for weight in weights], momentum)
            weights = [0.0] * len(replicas)
    return losses


def _compute(run: spec.Run, vocabulary: int) -> Compute:
    device = torch.device("cpu")
    return Compute(run, assemble(run.model_copy(update={"layout": spec.Layout()}), vocabulary, device), device)


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
