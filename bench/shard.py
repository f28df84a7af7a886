"""What the shard axis costs and saves: `plait train` on two ranks against a bare FSDP2 loop, and what a rank of four keeps.

python bench/shard.py prints the tables of docs/shard.md: what a rank keeps at each stage, and how long rows travel through gloo.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from contest import PlaitTraining, contest, ratios, script
from place import SMALL, TINY, Figure, Place
from torch.distributed import FileStore, ProcessGroup

from plait import spec
from plait.replica import device as devices
from plait.replica import transport
from plait.replica.mesh import ALONE, leave_mesh, make_mesh
from plait.replica.replica import Replica
from plait.replica.transport import Pool
from plait.testing.processes import run_distributed

STEP, KEPT = 1.03, 1.15
BATCH, RANKS, VOCABULARY = 32, 4, 2048
TURNS = 21


def measure(place: Place) -> list[Figure]:
    return [_step(place), _quarter(place)]


def _step(place: Place) -> Figure:
    run_file = place.run_file(SMALL, train={"batch": BATCH, "micro_batch": BATCH}, layout={"shard": 2}, cluster={"threads": 1})
    config = {"run_file": str(run_file), "batch": BATCH, "ranks": 2, "store": str(place.new("store"))}
    bare = script(place, "bare_fsdp", *({**config, "rank": rank} for rank in range(2)))
    with PlaitTraining(run_file, place.new("out")) as plait, bare:
        rates = contest([plait, bare], place.effort.rounds, 2.5 * place.effort.seconds)
    what = "shard = 2: plait's step / bare FSDP2's, 10M parameters"
    return Figure.of(what, STEP, [1 / ratio for ratio in ratios(rates)], at_least=False, detail=f"{max(rates[0]):,.0f} tokens/s")


def _quarter(place: Place) -> Figure:
    """The most that a rank keeps, over the RANKS-th part of what one process does."""
    model = {**SMALL, **(TINY if place.effort.tiny else {})}
    [alone], ranks = _kept(model, 1, 3, place.new("mesh")), _kept(model, RANKS, 3, place.new("mesh"))
    what = f"shard = {RANKS}: what a rank keeps / a quarter of one process, 10M parameters"
    return Figure.of(
        what, KEPT, [RANKS * sum(rank) / sum(alone) for rank in ranks], at_least=False, detail=f"{sum(ranks[0]) / 2**20:.1f} MiB"
    )


def _kept(model: dict[str, Any], ranks: int, zero: int, store: Path) -> list[list[int]]:
    return run_distributed("shard:kept", ranks, store=str(store), model=model, zero=zero)


def kept(rank: int, size: int, group: ProcessGroup, store: str, model: dict[str, Any], zero: int) -> list[int]:
    """Bytes that a rank keeps between steps: parameters, gradients, optimizer state. Each storage counts once, and whole."""
    train = {"duration": "1 step", "batch": BATCH}
    run = spec.parse({"model": model, "data": {"corpus": ["-"]}, "train": train, "layout": {"shard": size, "zero": zero}})
    cpu = torch.device("cpu")
    mesh = make_mesh(run.layout, rank, FileStore(store, size), cpu, loopback=True) if size > 1 else ALONE
    replica = Replica(run, VOCABULARY, cpu, mesh)
    state = [value for values in replica.optimizer.state.values() for value in values.values()]
    module = list(replica.compute.module.parameters())
    found = [
        _bytes([*replica.parameters.values(), *module]),
        _bytes([*replica.gradients.buckets, *(parameter.grad for parameter in module)]),
        _bytes(state),
    ]
    leave_mesh(mesh)
    return found


def _bytes(tensors: list[Any]) -> int:
    plain = [getattr(tensor, "_local_tensor", tensor) for tensor in tensors if tensor is not None]
    return sum({storage.data_ptr(): storage.nbytes() for tensor in plain if (storage := tensor.untyped_storage())}.values())


def travelled(rank: int, size: int, group: ProcessGroup, store: str, mebibytes: int) -> list[float]:
    """Milliseconds, medians: gather by torch and by plait, reduce-scatter by torch and by plait, of so much in all."""
    devices.keep_freed_memory()
    torch.distributed.init_process_group("gloo", store=FileStore(store, size), rank=rank, world_size=size)
    world, pool = torch.distributed.group.WORLD, Pool()
    assert world is not None
    rows_RN, own_N = torch.ones(size, mebibytes * 2**18 // size), torch.ones(mebibytes * 2**18 // size)
    ways: list[Callable[[], object]] = [
        lambda: transport.all_gather(rows_RN.view(-1), own_N, group=world),
        lambda: transport.gather_rows(rows_RN, world),
        lambda: transport.reduce_scatter(own_N, rows_RN.view(-1), group=world),
        lambda: transport.sum_rows(rows_RN, own_N, world, pool),
    ]
    times: list[list[float]] = [[] for _ in ways]
    for _ in range(TURNS):
        for way, taken in zip(ways, times, strict=True):
            torch.distributed.barrier()
            began = time.perf_counter()
            way()
            taken.append(1000 * (time.perf_counter() - began))
    torch.distributed.destroy_process_group()
    return [statistics.median(taken) for taken in times]


def main() -> None:
    _show_kept()
    _show_travelled()


def _show_travelled() -> None:
    print("| ranks | MiB | gather, torch, ms | plait | reduce-scatter, torch | plait |\n|---|---|---|---|---|---|")
    for ranks in (2, RANKS):
        for mebibytes in (1, 16, 64):
            with tempfile.TemporaryDirectory() as folder:
                found = run_distributed("shard:travelled", ranks, store=str(Path(folder, "store")), mebibytes=mebibytes)
            print(f"| {ranks} | {mebibytes} | " + " | ".join(f"{max(times):.1f}" for times in zip(*found, strict=True)) + " |")


def _show_kept() -> None:
    print("| shard | zero | parameters | gradients | optimizer | together | of one process |\n|---|---|---|---|---|---|---|")
    alone = 0
    for ranks, zero in ((1, 3), *((ranks, zero) for ranks in (2, RANKS) for zero in (1, 2, 3))):
        with tempfile.TemporaryDirectory() as folder:
            most = max(_kept(SMALL, ranks, zero, Path(folder, "store")), key=sum)
        alone = alone or sum(most)
        sizes = " | ".join(f"{size / 2**20:.1f}" for size in (*most, sum(most)))
        print(f"| {ranks} | {zero if ranks > 1 else ''} | {sizes} | {sum(most) / alone:.3f} |")


if __name__ == "__main__":
    main()
