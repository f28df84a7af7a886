"""What a rank's replica is built from, and brought back to."""

from __future__ import annotations

import torch

from plait.replica.replica import Replica
from tests.replica.test_tensor import VOCABULARY, micro_batch, run_of


def test_starting_afresh_brings_back_parameters_buffers_and_optimizer_state() -> None:
    run = run_of(family="moe", experts=4, balance="bias", bias_rate=0.5)
    replica = Replica(run, VOCABULARY, torch.device("cpu"))
    before = {name: value.clone() for name, value in replica.state().items()}
    replica.begin(100, 1)
    replica.accumulate(micro_batch())
    replica.finish()
    replica.apply(1.0, 0.1, replica.load())
    changed = {name for name, value in replica.state().items() if not torch.equal(value, before[name])}
    assert "model.blocks.0.mlp.router.bias" in changed
    assert "model.embed.weight" in changed
    replica.start_afresh()
    assert all(torch.equal(value, before[name]) for name, value in replica.state().items())
