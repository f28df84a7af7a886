"""A contender: a rank of a plain FSDP2 loop over plait's module and loss, as torch's tutorial writes it."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import torch
import torch.distributed
from contest import Ticker
from torch.distributed import FileStore
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import plait
from plait import spec
from plait.data.batches import Batches
from plait.model.build import build
from plait.model.loss import cross_entropy
from plait.replica import device as devices

HELD = 64
"""Batches held in memory, over and over."""


def main(run_file: str, batch: int, rank: int, ranks: int, store: str, ticks: str) -> None:
    run = spec.load(run_file)
    torch.set_num_threads(1)
    devices.keep_freed_memory()
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.distributed.init_process_group("gloo", store=FileStore(store, ranks), rank=rank, world_size=ranks)
    mesh = init_device_mesh("cpu", (ranks,))
    prepared = plait.prepare(run)
    batches = Batches(prepared.split("train", run.data.sequence), run.train, prepared.fingerprint)
    mine = batch // ranks
    held = [batches.read(step, rank * mine, (rank + 1) * mine) for step in range(1, HELD + 1)]
    pairs = [(torch.from_numpy(one.tokens_BL), torch.from_numpy(one.targets_BL)) for one in held]
    model: Any = build(run.model, prepared.vocabulary, run.data.sequence, run.train.seed)
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    tick = Ticker(ticks)
    while True:
        for tokens_BL, targets_BL in pairs:
            loss = cross_entropy(model(tokens_BL), targets_BL) / targets_BL.numel()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            tick(tokens_BL.numel())


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
