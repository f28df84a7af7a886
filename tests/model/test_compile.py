"""torch.compile, block by block: the same numbers, one program for all blocks of a kind and all steps."""

import pytest
import torch

from plait import spec
from plait.model.attention import CHUNK
from plait.model.build import build
from plait.model.decoder import compile_blocks
from plait.model.loss import cross_entropy
from plait.model.noise import Dropout, Noise

LENGTH = 2 * CHUNK + 8
"""More than attention computes at once."""
SHAPES = {"gpt2": {"kv_heads": 2}, "llama": {"kv_heads": 2}, "bert": {}, "t5": {"layers": 1}}
SIDES = {"t5": 2}
"""Whose blocks differ."""


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt2", "llama", "bert", "t5"])
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_blocks_give_the_same_and_never_compile_again(family, backend):
    from torch._dynamo.testing import CompileCounterWithBackend  # takes seconds to import

    torch._dynamo.reset()
    model = spec.Model(family=family, **{"layers": 3, "width": 32, "heads": 4, "dropout": 0.2, **SHAPES[family]})
    eager, compiled = (build(model, 50, LENGTH, seed=0, dtype=torch.float64) for _ in range(2))
    counter = CompileCounterWithBackend(backend)
    for block in compiled.blocks:
        block.compile(backend=counter)
    tokens = torch.randint(0, 50, (4, LENGTH), generator=torch.Generator().manual_seed(0))
    told = {"source": CHUNK + 4} if family == "t5" else {}
    counts = []
    for step in range(1, 4):
        noise = Noise(0, step, torch.arange(4) + 4 * step)
        results = [cross_entropy(module(tokens, None, noise, **told), tokens[:, told.get("source", 0) :]) for module in (eager, compiled)]
        for result in results:
            result.backward()
        torch.testing.assert_close(results[1], results[0], rtol=1e-10, atol=0)
        counts.append(counter.frame_count)
    assert counts == [SIDES.get(family, 1)] * 3
    for one, other in zip(eager.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-8, atol=1e-10)


@pytest.mark.slow
def test_a_compiled_mask_is_the_eager_one_wherever_it_begins():
    """Rows from 64 on alone: their products overflow, which C++ takes for impossible where it knows the rows."""
    dropout, noise = Dropout(0.3, "a"), Noise(0, 1, torch.arange(2))

    def masks():
        rows = torch.arange(4)[:, None] * 128 + torch.arange(128)
        columns = torch.arange(96, dtype=torch.int32)
        return [dropout.keep(noise, rows[:, first : first + 64].flatten(), columns) for first in (0, 64)]

    torch._dynamo.reset()
    for one, other in zip(masks(), torch.compile(masks)(), strict=True):
        assert torch.equal(one, other)


def test_compile_blocks_compiles_each_block_or_else_the_whole():
    decoder = build(spec.Model(layers=2, width=16, heads=2), 20, 8, 0)
    compile_blocks(decoder)
    assert all(block._compiled_call_impl is not None for block in decoder.blocks)
    assert decoder._compiled_call_impl is None
    other = torch.nn.Linear(2, 2)
    compile_blocks(other)
    assert other._compiled_call_impl is not None
