"""examples/own_model.py: what the page on models tells users to write does train."""

from pathlib import Path

import pytest
import torch

from plait import spec
from plait.events import Evaluated
from plait.model.build import build
from plait.model.loss import load_loss
from plait.model.noise import Noise
from plait.model.own import load_object

ROOT = Path(__file__).parents[2]
EXAMPLE = "examples.own_model"


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture
def model():
    settings = spec.Model(family=f"{EXAMPLE}:Convolutions", layers=2, width=16, heads=2, dropout=0.1, settings={"reach": 3})
    return build(settings, 30, 12, seed=0, dtype=torch.float64)


def test_it_sees_the_past_alone(model):
    tokens = torch.randint(0, 30, (2, 12), generator=torch.Generator().manual_seed(0))
    changed = tokens.clone()
    changed[:, 7] = (changed[:, 7] + 1) % 30
    torch.testing.assert_close(model(tokens)[:, :7], model(changed)[:, :7], rtol=0, atol=1e-14)


def test_it_learns_with_its_loss_and_optimizer(model):
    loss, optimizer = load_loss(f"{EXAMPLE}:smoothed"), load_object(f"{EXAMPLE}:Lion", "train.optimizer.name")
    tokens = torch.arange(12).repeat(4, 1)
    targets = tokens + 1
    steps = optimizer([{"params": list(model.parameters()), "weight_decay": 0.1}], lr=3e-3)
    told = []
    for step in range(1, 31):
        steps.zero_grad()
        told.append(loss(model(tokens, None, Noise(0, step, torch.arange(4))), targets) / targets.numel())
        told[-1].backward()
        steps.step()
    assert told[-1] < 0.7 * told[0]


def test_its_listener_says_what_is_best(capsys):
    listener = load_object(f"{EXAMPLE}:Best", "watch.listeners")(Path("runs/x"), None)
    for step, loss in enumerate((3.0, 2.0, 2.5), 1):
        listener.on(Evaluated(0.0, step, "validation", loss, 1.0, 0.0, 1))
    listener.close()
    assert capsys.readouterr().out.splitlines() == [
        "step 1: the best yet, 3.0000",
        "step 2: the best yet, 2.0000",
        "best validation loss 2.0000",
    ]
