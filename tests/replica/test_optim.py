"""Optimizers: their updates, what decays, and a state that exists before the first step and travels flat."""

import pytest
import torch
from torch import nn

from plait import spec
from plait.errors import RunFileError
from plait.replica.muon import Muon, orthogonalise
from plait.replica.optim import build_optimizer, create_state, decays, optimizer_state, reset_state, restore_state, set_rate

BUILT_IN = ("adamw", "adam", "sgd", "muon")


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.up = nn.Linear(4, 6)
        self.down = nn.Linear(6, 4)


class Tiny(nn.Module):
    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.positions = nn.Embedding(3, 4)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(4, 5, bias=False)
        self.to(dtype)


class Halving(torch.optim.Optimizer):
    """A user's own: its state is made in its first step, and one part of it is a plain number."""

    def __init__(self, groups, lr, factor=0.5):
        super().__init__(groups, {"lr": lr})
        self.factor = factor

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                state["calls"] = state.get("calls", 0) + 1
                state.setdefault("sum", torch.zeros_like(parameter)).add_(parameter.grad)
                parameter.mul_(self.factor)


def plain_function(groups, lr):
    return "no optimizer"


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def build(name, model, **settings):
    return build_optimizer(spec.Optimizer(name=name, **settings), model.named_parameters(), "cpu")


def train(model, optimizer, steps, seed=1):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter.dtype)
        optimizer.step()


def values(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("name", "reference"), [("adamw", torch.optim.AdamW), ("adam", torch.optim.Adam), ("sgd", torch.optim.SGD)])
def test_created_state_gives_the_steps_that_torch_alone_would_give(name, reference, dtype):
    ours, theirs = Tiny(dtype), Tiny(dtype)
    theirs.load_state_dict(ours.state_dict())
    settings = {"lr": 0.01, "weight_decay": 0.0}
    extra = {"momentum": 0.9} if name == "sgd" else {"betas": (0.9, 0.95)}
    train(ours, build(name, ours, **settings), 4)
    train(theirs, reference(theirs.parameters(), foreach=False, **settings, **extra), 4)
    torch.testing.assert_close(values(ours), values(theirs), rtol=1e-5 if dtype == torch.float32 else 1e-13, atol=1e-8)


@pytest.mark.parametrize("name", BUILT_IN)
def test_building_creates_state_and_changes_no_parameter(name):
    model = Tiny()
    before = values(model)
    state = optimizer_state(build(name, model), model.named_parameters())
    assert torch.equal(values(model), before)
    assert {key.rpartition(".")[0] for key in state} == {path for path, _ in model.named_parameters()}
    assert all(not tensor.any() for tensor in state.values())


@pytest.mark.parametrize("name", BUILT_IN)
def test_the_state_does_not_grow_new_names_by_stepping(name):
    model = Tiny()
    optimizer = build(name, model)
    before = optimizer_state(optimizer, model.named_parameters())
    train(model, optimizer, 1)
    after = optimizer_state(optimizer, model.named_parameters())
    assert before.keys() == after.keys()
    assert all(before[key] is after[key] for key in before)


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_restored_optimizer_goes_on_bit_by_bit(name):
    model = Tiny()
    optimizer = build(name, model)
    train(model, optimizer, 3)
    again = Tiny()
    again.load_state_dict(model.state_dict())
    fresh = build(name, again)
    restore_state(fresh, again.named_parameters(), optimizer_state(optimizer, model.named_parameters()))
    train(model, optimizer, 3, seed=2)
    train(again, fresh, 3, seed=2)
    assert torch.equal(values(model), values(again))


@pytest.mark.parametrize("name", BUILT_IN)
def test_weight_decay_spares_norms_biases_and_positions(name):
    model = Tiny()
    optimizer = build(name, model, weight_decay=0.25)
    spared = {path for group in optimizer.param_groups if not group["weight_decay"] for path in group["param_names"]}
    assert spared == {path for path, parameter in model.named_parameters() if parameter.ndim < 2} | {"positions.weight"}
    assert all(group["weight_decay"] in (0.0, 0.25) for group in optimizer.param_groups)


def test_gpt2s_name_for_positions_is_known():
    assert not decays("transformer.wpe.weight", torch.zeros(3, 4))
    assert decays("transformer.wte.weight", torch.zeros(3, 4))


@pytest.mark.parametrize("name", BUILT_IN)
def test_the_rate_reaches_every_group(name):
    model = Tiny()
    optimizer = build(name, model)
    set_rate(optimizer, 0.0)
    before = values(model)
    train(model, optimizer, 1)
    assert torch.equal(values(model), before)


@pytest.mark.parametrize("shape", [(8, 8), (4, 16), (16, 4)])
def test_orthogonalise_brings_all_singular_values_near_one(shape):
    found = torch.linalg.svdvals(orthogonalise(torch.randn(shape, dtype=torch.float64)))
    assert found.min() > 0.5
    assert found.max() < 1.3


def test_orthogonalise_keeps_directions_and_zeros():
    left, _, right = torch.linalg.svd(torch.randn(6, 4, dtype=torch.float64), full_matrices=False)
    matrix = left @ torch.diag(torch.tensor([3.0, 2.0, 1.0, 0.5], dtype=torch.float64)) @ right
    inside = left.mT @ orthogonalise(matrix) @ right.mT
    assert (inside - torch.diag(inside.diagonal())).abs().max() < 1e-12
    assert not orthogonalise(torch.zeros(3, 4)).any()


def test_muon_takes_the_matrices_of_the_blocks_and_adamw_the_rest():
    model = Tiny()
    optimizer = build("muon", model)
    assert isinstance(optimizer, Muon)
    names = {path: set(optimizer.state[parameter]) for path, parameter in model.named_parameters()}
    by_muon = {path for path, found in names.items() if found == {"momentum_buffer"}}
    assert by_muon == {f"blocks.{number}.{layer}.weight" for number in (0, 1) for layer in ("up", "down")}


def test_the_other_half_of_muon_steps_as_adamw_does():
    ours, theirs = Tiny(), Tiny()
    theirs.load_state_dict(ours.state_dict())
    train(ours, build("muon", ours), 3)
    train(theirs, build("adamw", theirs), 3)
    torch.testing.assert_close(ours.embedding.weight, theirs.embedding.weight)
    assert not torch.allclose(ours.blocks[0].up.weight, theirs.blocks[0].up.weight)


def test_muon_moves_a_matrix_about_as_far_as_adamw_does():
    model = Tiny()
    before = model.blocks[0].up.weight.detach().clone()
    train(model, build("muon", model, lr=1e-3, weight_decay=0.0), 1)
    moved = (model.blocks[0].up.weight - before).square().mean().sqrt().item()
    assert 0.1e-3 < moved < 0.4e-3


def test_muon_does_not_amplify_the_rounding_of_a_fp64_gradient():
    one, other = Tiny(torch.float64), Tiny(torch.float64)
    other.load_state_dict(one.state_dict())
    for model, noise in ((one, 0.0), (other, 1e-15)):
        optimizer = build("muon", model)
        generator = torch.Generator().manual_seed(1)
        for _ in range(5):
            for parameter in model.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * (1 + noise)
            optimizer.step()
    torch.testing.assert_close(values(one), values(other), rtol=1e-11, atol=1e-13)


def test_muon_without_blocks_says_so():
    with pytest.raises(RunFileError, match="blocks"):
        build("muon", nn.Linear(3, 3))


def test_nesterov_without_momentum_is_refused():
    with pytest.raises(ValueError, match="momentum above 0"):
        spec.Optimizer(name="sgd", momentum=0.0, nesterov=True)


def test_plain_sgd_has_no_state():
    model = Tiny()
    optimizer = build("sgd", model, momentum=0.0)
    train(model, optimizer, 1)
    create_state(optimizer)
    assert optimizer_state(optimizer, model.named_parameters()) == {}


def test_your_own_optimizer_gets_its_settings_and_the_paths():
    model = Tiny()
    optimizer = build(f"{__name__}:Halving", model, settings={"factor": 0.25})
    assert isinstance(optimizer, Halving)
    assert optimizer.factor == 0.25
    assert "embedding.weight" in optimizer.param_groups[0]["param_names"]


def test_state_of_your_own_is_created_without_touching_parameters_and_restored():
    model = Tiny()
    optimizer = build(f"{__name__}:Halving", model)
    train(model, optimizer, 3)
    saved = optimizer_state(optimizer, model.named_parameters())
    again = Tiny()
    fresh = build(f"{__name__}:Halving", again)
    before = values(again)
    create_state(fresh)
    assert torch.equal(values(again), before)
    assert all(parameter.grad is None for parameter in again.parameters())
    restore_state(fresh, again.named_parameters(), saved)
    restored = optimizer_state(fresh, again.named_parameters())
    assert restored["head.weight.calls"] == 3
    assert torch.equal(restored["head.weight.sum"], saved["head.weight.sum"])


def test_your_own_optimizer_with_wrong_settings_is_named():
    with pytest.raises(RunFileError, match=r"train\.optimizer.*speed"):
        build(f"{__name__}:Halving", Tiny(), settings={"speed": 2})


def test_what_makes_no_optimizer_is_refused():
    with pytest.raises(RunFileError, match=r"not a torch\.optim\.Optimizer"):
        build(f"{__name__}:plain_function", Tiny())


@pytest.mark.parametrize("name", [*BUILT_IN, f"{__name__}:Halving"])
def test_a_reset_optimizer_is_as_a_fresh_one(name):
    model, fresh = Tiny(), Tiny()
    fresh.load_state_dict(model.state_dict())
    start = {path: value.clone() for path, value in model.state_dict().items()}
    optimizer = build(name, model)
    train(model, optimizer, 3)
    reset_state(optimizer)
    model.load_state_dict(start)
    train(model, optimizer, 2)
    train(fresh, build(name, fresh), 2)
    assert torch.equal(values(model), values(fresh))
