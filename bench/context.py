"""What cutting samples by positions saves and sends, counted on each rank: the table of docs/context.md.

python bench/context.py

Nothing is timed. Kept: what autograd holds between forward and backward of one sequence. Sent: what a rank hands to others in
forward and backward of one layer.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from torch import Tensor
from torch.distributed import ProcessGroup

from plait import spec
from plait.model.build import build
from plait.model.cut import Cut
from plait.model.loss import cross_entropy
from plait.replica.context import exchange, insert, positions
from plait.replica.mesh import make_mesh
from plait.testing.processes import run_distributed

LENGTH, VOCABULARY = 8192, 2048
MODEL = spec.Model(family="llama", layers=4, width=256, heads=8, kv_heads=4)
LAYOUTS = ((1, "ring"), (2, "ring"), (4, "ring"), (2, "ulysses"), (4, "ulysses"))


def main() -> None:
    print("| context | by | kept, MiB | of one process | sent a layer, forward, MiB | backward, MiB |\n|---|---|---|---|---|---|")
    alone = 0.0
    for ranks, by in LAYOUTS:
        with tempfile.TemporaryDirectory() as folder:
            results = run_distributed("context:on_rank", ranks, timeout=300, store=str(Path(folder, "store")), by=by)
        kept, forward, backward = (max(column) / 2**20 for column in zip(*results, strict=True))
        alone = alone or kept
        print(f"| {ranks} | {by if ranks > 1 else ''} | {kept:.0f} | {kept / alone:.2f} | {forward:.2f} | {backward:.2f} |")


def on_rank(rank: int, size: int, group: ProcessGroup, store: str, by: Any) -> list[float]:
    """Bytes kept, and bytes sent a layer in forward and in backward."""
    layout = spec.Layout.model_construct(context=size)
    mesh = make_mesh(layout, rank, torch.distributed.FileStore(store, size), torch.device("cpu"), loopback=True)
    model = build(MODEL, VOCABULARY, LENGTH, seed=0)
    tokens, cut, here = torch.arange(LENGTH)[None] % VOCABULARY, None, torch.arange(LENGTH)
    if (ours := mesh.group("context")) is not None:
        insert(model, exchange(by, ours))
        here = positions(LENGTH, rank, size, by)
        cut = Cut(LENGTH, here, here)
    sent = _count_what_is_sent(size)
    kept: dict[int, int] = {}
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = cross_entropy(model(tokens[:, here], cut=cut), tokens[:, here])
    forward = sum(sent)
    loss.backward()
    return [sum(kept.values()), forward / MODEL.layers, (sum(sent) - forward) / MODEL.layers]


def _count_what_is_sent(size: int) -> list[int]:
    sent: list[int] = []
    batch, all_to_all = torch.distributed.batch_isend_irecv, torch.distributed.all_to_all_single

    def counted_batch(operations: list[Any]) -> Any:
        sent.extend(operation.tensor.nbytes for operation in operations if operation.op is torch.distributed.isend)
        return batch(operations)

    def counted_all_to_all(received: Tensor, pieces: Tensor, **named: Any) -> Any:
        sent.append(pieces.nbytes // size * (size - 1))
        return all_to_all(received, pieces, **named)

    torch.distributed.batch_isend_irecv, torch.distributed.all_to_all_single = counted_batch, counted_all_to_all
    return sent


if __name__ == "__main__":
    main()
