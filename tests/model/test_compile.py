"""torch.compile, block by block: the same numbers, one program for all blocks and steps."""

import pytest
import torch

from plait import spec
from plait.model.build import build
from plait.model.decoder import compile_blocks
from plait.model.loss import cross_entropy
from plait.model.noise import Noise


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_blocks_give_the_same_and_never_compile_again(family, backend):
    from torch._dynamo.testing import CompileCounterWithBackend  # takes seconds to import

    torch._dynamo.reset()
    model = spec.Model(family=family, layers=3, width=32, heads=4, kv_heads=2, dropout=0.2)
    eager, compiled = (build(model, 50, 24, seed=0, dtype=torch.float64) for _ in range(2))
    counter = CompileCounterWithBackend(backend)
    for block in compiled.blocks:
        block.compile(backend=counter)
    tokens = torch.randint(0, 50, (4, 24), generator=torch.Generator().manual_seed(0))
    for step in range(1, 5):
        noise = Noise(0, step, torch.arange(4) + 4 * step)
        results = [cross_entropy(module(tokens, None, noise), tokens) for module in (eager, compiled)]
        for result in results:
            result.backward()
        torch.testing.assert_close(results[1], results[0], rtol=1e-10, atol=0)
    assert counter.frame_count == 1
    for one, other in zip(eager.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-8, atol=1e-10)


def test_compile_blocks_compiles_each_block_or_else_the_whole():
    decoder = build(spec.Model(layers=2, width=16, heads=2), 20, 8, 0)
    compile_blocks(decoder)
    assert all(block._compiled_call_impl is not None for block in decoder.blocks)
    assert decoder._compiled_call_impl is None
    other = torch.nn.Linear(2, 2)
    compile_blocks(other)
    assert other._compiled_call_impl is not None
