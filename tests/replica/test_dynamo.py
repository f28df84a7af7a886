"""A worker's optimizer does not import the compiler."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.runs import slow

CODE = """
import sys, torch
from plait import spec
from plait.replica.dynamo import leave_out_of_optimizers
from plait.replica.optim import build_optimizer, set_rate
leave_out_of_optimizers()
weight = torch.nn.Parameter(torch.ones(4, 4))
optimizer = build_optimizer(spec.Optimizer(name=sys.argv[1]), [("blocks.0.weight", weight)], torch.device("cpu"))
weight.grad = torch.ones_like(weight)
optimizer.step()
assert weight.requires_grad and not torch.equal(weight, torch.ones(4, 4))
sys.exit("torch._dynamo" in sys.modules)
"""


@pytest.mark.parametrize("name", ["adamw", slow("adam"), slow("sgd"), "muon"])
def test_a_step_does_not_import_the_compiler(name: str) -> None:
    assert subprocess.run([sys.executable, "-c", CODE, name], check=False).returncode == 0
