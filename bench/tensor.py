"""What the tensor axis costs and saves: `plait train` on two ranks against a hand-written Megatron-style loop; and peak memory of the
loss, cut by vocabulary and positions, against logits that are gathered."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contest import PlaitTraining, contest, ratios, script
from place import SMALL, TINY, Effort, Figure, Place
from torch import Tensor, nn
from torch.distributed import FileStore, ProcessGroup
from torch.nn import functional

from plait import spec
from plait.data.batches import MicroBatch
from plait.model.decoder import Decoder
from plait.replica.mesh import leave_mesh, make_mesh
from plait.replica.replica import Replica
from plait.testing.processes import run_distributed

STEP, MEMORY = 1.05, 0.6
BATCH, VOCABULARY = 16, 2048
MANY = 32_768
WIDE = {"family": "llama", "layers": 2, "width": 256, "heads": 4}


def measure(place: Place) -> list[Figure]:
    return [_step(place), _memory(place)]


def _step(place: Place) -> Figure:
    run_file = place.run_file(SMALL, train={"batch": BATCH, "micro_batch": BATCH}, layout={"tensor": 2}, cluster={"threads": 1})
    vocabulary = 300 if place.effort.tiny else VOCABULARY
    config = {"run_file": str(run_file), "batch": BATCH, "vocabulary": vocabulary, "ranks": 2, "store": str(place.new("store"))}
    bare = script(place, "megatron", *({**config, "rank": rank} for rank in range(2)))
    with PlaitTraining(run_file, place.new("out")) as plait, bare:
        rates = contest([plait, bare], place.effort.rounds, 2.5 * place.effort.seconds)
    what = "tensor = 2: plait's step / a hand-written one's, 10M parameters"
    return Figure.of(what, STEP, [1 / ratio for ratio in ratios(rates)], at_least=False, detail=f"{max(rates[0]):,.0f} tokens/s")


def _memory(place: Place) -> Figure:
    model = {**WIDE, **(TINY if place.effort.tiny else {})}
    vocabulary = 1024 if place.effort.tiny else MANY
    spread, gathered = (
        run_distributed("tensor:peak", 2, store=str(place.new("mesh")), model=model, vocabulary=vocabulary, gather=gather, timeout=300.0)
        for gather in (False, True)
    )
    what = f"tensor = 2, vocabulary {vocabulary:,}: peak memory of a step / with gathered logits"
    values = [one / other for one, other in zip(spread, gathered, strict=True)]
    detail = f"{spread[0] / 2**20:.0f} against {gathered[0] / 2**20:.0f} MiB"
    return Figure.of(what, MEMORY, values, at_least=False, detail=detail)


def peak(rank: int, size: int, group: ProcessGroup, store: str, model: dict[str, Any], vocabulary: int, gather: bool) -> int:
    """Bytes that forward and backward of one micro-batch add at most to the resident memory."""
    own = {"family": "tensor:Whole", "settings": {"model": model}} if gather else model
    train = {"duration": "1 step", "batch": 8, "micro_batch": 8, "loss": "tensor:plain" if gather else "cross_entropy"}
    layout = {"tensor": size}
    run = spec.parse({"model": own, "data": {"corpus": ["-"], "sequence": 128}, "train": train, "layout": layout})
    mesh = make_mesh(run.layout, rank, FileStore(store, size), torch.device("cpu"), loopback=True)
    replica = Replica(run, vocabulary, torch.device("cpu"), mesh)
    tokens = np.random.default_rng(0).integers(0, vocabulary, (8, 128))
    replica.begin(1, 1)
    before = _resident("VmRSS")
    _reset_mark()
    replica.accumulate(MicroBatch(tokens, tokens, np.arange(8), None, 1))
    most = _resident("VmHWM") - before
    leave_mesh(mesh)
    return most


class Whole(nn.Module):
    """The same decoder as a model of one's own that cannot compute a part of the positions: no sequence parallelism."""

    def __init__(self, _: spec.Model, vocabulary: int, sequence: int, model: dict[str, Any]) -> None:
        super().__init__()
        self.decoder = Decoder(spec.Model(**model), vocabulary, sequence)
        self.sharding = {f"decoder.{pattern}" if pattern[0] != "*" else pattern: kind for pattern, kind in self.decoder.sharding.items()}
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens_BL: Tensor, documents_BL: Tensor | None = None, noise: Any = None) -> Tensor:
        return self.decoder(tokens_BL, documents_BL, noise)


def plain(logits_BLV: Tensor, targets_BL: Tensor) -> Tensor:
    """A loss of one's own is given whole logits."""
    return functional.cross_entropy(logits_BLV.flatten(0, 1), targets_BL.flatten(), reduction="sum")


def _resident(line: str) -> int:
    """Bytes of a line of this process's status: VmRSS is resident now, VmHWM was at most since the mark was reset."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{line}:")[1].split()[0]) * 1024


def _reset_mark() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        print(_memory(Place(Path(folder), Path(folder), Effort(1, 0.0))))


if __name__ == "__main__":
    main()
