"""Models from settings, and a user's own class in their place."""

import sys

import pytest
import torch

from plait import spec
from plait.errors import RunFileError
from plait.model.build import build

OWN = """
import torch
from torch import nn

class Good(nn.Module):
    sharding = {"*": "replicated"}

    def __init__(self, model, vocabulary, sequence, depth=1):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, model.width)
        self.blocks = nn.ModuleList(nn.Linear(model.width, model.width) for _ in range(depth))

    def forward(self, tokens_BL, documents_BL=None, noise=None):
        x = self.embed(tokens_BL)
        for block in self.blocks:
            x = x + block(x)
        return x @ self.embed.weight.T

class NarrowForward(Good):
    def forward(self, tokens):
        return tokens

class Partial(Good):
    sharding = {"embed.*": "vocabulary"}

class Broken(Good):
    def __init__(self, model, vocabulary, sequence):
        raise KeyError("colour")

class Alien:
    pass
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own_model_under_test.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield lambda name, **settings: spec.Model(family=f"own_model_under_test:{name}", width=8, heads=2, settings=settings)
    sys.modules.pop("own_model_under_test", None)


def test_equal_settings_and_seed_give_equal_models():
    model = spec.Model(layers=1, width=16, heads=2)
    first, again, other = (build(model, 20, 8, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[path], again[path]) for path in first)
    assert not torch.equal(first["embed.weight"], other["embed.weight"])


def test_ones_own_model_is_built_from_the_seed_and_the_callers_generator_is_left_alone(own):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again = (build(own("Good", depth=2), 20, 8, 3, dtype=torch.float64) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert len(first.blocks) == 2
    assert all(
        torch.equal(one, two) and one.dtype == torch.float64 for one, two in zip(first.parameters(), again.parameters(), strict=True)
    )
    assert first(torch.zeros(1, 4, dtype=torch.int64)).shape == (1, 4, 20)


@pytest.mark.parametrize(
    ("name", "settings", "why"),
    [
        ("Missing", {}, r"has no Missing; it has: .*Good"),
        ("Alien", {}, r"no subclass of torch\.nn\.Module"),
        ("Good", {"colour": 1}, r"signature.*colour"),
        ("NarrowForward", {}, r"signature.*too many positional"),
        ("Broken", {}, r"building it fails: KeyError: 'colour'"),
        ("Partial", {}, r"no pattern for the parameter blocks\.0\.weight"),
    ],
)
def test_a_class_that_does_not_fit_is_refused_with_the_reason(own, name, settings, why):
    with pytest.raises(RunFileError, match=r"^model\.family = .*" + why):
        build(own(name, **settings), 20, 8, 0)
