"""A contender: tensor parallelism written out by hand in the manner of Megatron-LM, with sequence parallelism. Nothing of plait computes.

Llama's block at equal sizes: RMSNorm, rotary positions, SwiGLU, an embedding and a head of their own, cut by entries of the vocabulary.
"""

from __future__ import annotations

import json
import os
import sys

import torch
import torch.distributed as dist
from contest import Ticker
from torch import Tensor, nn
from torch.nn import functional

from plait import spec
from plait.replica import device as devices

HELD = 16


class Copy(torch.autograd.Function):
    """Gather the sequence; its gradient is scattered and summed."""

    @staticmethod
    def forward(ctx, x_BSD):
        return gathered(x_BSD)

    @staticmethod
    def backward(ctx, gradient):
        return scattered(gradient)


class Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_BLD):
        return scattered(x_BLD)

    @staticmethod
    def backward(ctx, gradient):
        return gathered(gradient)


def gathered(x_BSD: Tensor) -> Tensor:
    parts = [torch.empty_like(x_BSD) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, x_BSD.contiguous())
    return torch.cat(parts, 1)


def scattered(x_BLD: Tensor) -> Tensor:
    parts = [part.contiguous() for part in x_BLD.chunk(dist.get_world_size(), 1)]
    own = torch.empty_like(parts[0])
    dist.reduce_scatter(own, parts)
    return own


class CrossEntropy(torch.autograd.Function):
    """Of logits cut by vocabulary (Megatron-LM, cross_entropy.py)."""

    @staticmethod
    def forward(ctx, logits_NV, targets_N, first):
        highest_N = logits_NV.max(-1).values
        dist.all_reduce(highest_N, dist.ReduceOp.MAX)
        logits_NV = logits_NV - highest_N[:, None]
        outside_N = (targets_N < first) | (targets_N >= first + logits_NV.shape[1])
        index_N = (targets_N - first).masked_fill(outside_N, 0)
        rows_N = torch.arange(len(index_N))
        predicted_N = logits_NV[rows_N, index_N].masked_fill(outside_N, 0.0)
        dist.all_reduce(predicted_N)
        exp_NV = logits_NV.exp_()
        sum_N = exp_NV.sum(-1)
        dist.all_reduce(sum_N)
        p_NV = exp_NV.div_(sum_N[:, None])
        p_NV[rows_N, index_N] -= (~outside_N).to(p_NV.dtype)
        ctx.save_for_backward(p_NV)
        return (sum_N.log() - predicted_N).sum()

    @staticmethod
    def backward(ctx, scale):
        return ctx.saved_tensors[0] * scale, None, None


class Block(nn.Module):
    def __init__(self, model: spec.Model, ranks: int) -> None:
        super().__init__()
        width, hidden = model.width, model.hidden_width // ranks
        self.heads, self.head = model.heads // ranks, model.width // model.heads
        self.norm1, self.norm2 = nn.RMSNorm(width, 1e-5), nn.RMSNorm(width, 1e-5)
        self.qkv = nn.Linear(width, 3 * width // ranks, bias=False)
        self.out = nn.Linear(width // ranks, width, bias=False)
        self.gate_up = nn.Linear(width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x_BSD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        qkv = self.qkv(Copy.apply(self.norm1(x_BSD)))
        q, k, v = (part.unflatten(-1, (self.heads, self.head)).transpose(1, 2) for part in qkv.chunk(3, -1))
        mixed = functional.scaled_dot_product_attention(turned(q, cos, sin), turned(k, cos, sin), v, is_causal=True)
        x_BSD = x_BSD + Sum.apply(self.out(mixed.transpose(1, 2).flatten(2)))
        gate, up = self.gate_up(Copy.apply(self.norm2(x_BSD))).chunk(2, -1)
        return x_BSD + Sum.apply(self.down(functional.silu(gate) * up))


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin


def main(run_file: str, batch: int, vocabulary: int, rank: int, ranks: int, store: str, ticks: str) -> None:
    run = spec.load(run_file)
    torch.set_num_threads(1)
    devices.keep_freed_memory()
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
    torch.manual_seed(0)
    model, L = run.model, run.data.sequence
    embed = nn.Parameter(torch.randn(vocabulary // ranks, model.width) * 0.02)
    head = nn.Parameter(torch.randn(vocabulary // ranks, model.width) * 0.02)
    blocks, norm = nn.ModuleList(Block(model, ranks) for _ in range(model.layers)), nn.RMSNorm(model.width, 1e-5)
    angles = torch.outer(torch.arange(L), 1e4 ** (-torch.arange(0, blocks[0].head, 2) / blocks[0].head))
    cos, sin = (torch.cat([turn, turn], -1) for turn in (angles.cos(), angles.sin()))
    partial = [parameter for path, parameter in [*blocks.named_parameters(), *norm.named_parameters()] if parameter.ndim == 1]
    cut = [embed, head, *(parameter for parameter in blocks.parameters() if parameter.ndim == 2)]
    optimizer = torch.optim.AdamW([*cut, *partial], lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    tick, first = Ticker(ticks), rank * (vocabulary // ranks)
    held = torch.randint(0, vocabulary, (HELD, batch, L + 1))
    while True:
        for tokens in held:
            inputs, targets = tokens[:, :-1], tokens[:, 1:].flatten()
            outside = (inputs < first) | (inputs >= first + len(embed))
            x = functional.embedding((inputs - first).masked_fill(outside, 0), embed).masked_fill(outside[..., None], 0.0)
            x = Sum.apply(x)
            for block in blocks:
                x = block(x, cos, sin)
            logits = functional.linear(Copy.apply(norm(x)), head).flatten(0, 1)
            (CrossEntropy.apply(logits, targets, first) / targets.numel()).backward()
            for parameter in partial:
                dist.all_reduce(parameter.grad)
            squares = torch.stack([parameter.grad.square().sum() for parameter in cut]).sum()
            dist.all_reduce(squares)
            grad_norm = (squares + torch.stack([parameter.grad.square().sum() for parameter in partial]).sum()).sqrt()
            scale = (1.0 / (grad_norm + 1e-6)).clamp(max=1.0)
            for parameter in (*cut, *partial):
                parameter.grad.mul_(scale)
            optimizer.step()
            optimizer.zero_grad()
            tick(inputs.numel() if rank == 0 else 0)


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
