"""A contender: a plain PyTorch loop over plait's module and loss. No loader, no ledger, no journal, no clock."""

from __future__ import annotations

import json
import sys

import torch
from contest import Ticker

import plait
from plait import spec
from plait.data.batches import Batches
from plait.model.build import build
from plait.model.loss import cross_entropy
from plait.replica import device as devices

HELD = 64
"""Batches held in memory, over and over."""


def main(run_file: str, batch: int, threads: int, ticks: str) -> None:
    run = spec.load(run_file)
    torch.set_num_threads(threads)
    prepared = plait.prepare(run)
    batches = Batches(prepared.split("train", run.data.sequence), run.train, prepared.fingerprint)
    held = [batches.read(step, 0, batch) for step in range(1, HELD + 1)]
    pairs = [(torch.from_numpy(one.tokens_BL), torch.from_numpy(one.targets_BL)) for one in held]
    model = build(run.model, prepared.vocabulary, run.data.sequence, run.train.seed)
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    tick = Ticker(ticks)
    while True:
        for tokens_BL, targets_BL in pairs:
            with devices.autocast(torch.device("cpu"), run.train.precision):
                loss = cross_entropy(model(tokens_BL), targets_BL) / targets_BL.numel()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            tick(tokens_BL.numel())


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
