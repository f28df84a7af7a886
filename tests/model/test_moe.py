"""Mixtures of experts: what a token is computed by, and that no cut of samples, positions or micro-batches changes anything."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from plait import spec
from plait.model.blocks import SwiGLU
from plait.model.build import build
from plait.model.decoder import compile_blocks
from plait.model.init import initial_rows
from plait.model.loss import cross_entropy
from plait.model.moe import Mixture, grouped_matmul, mixtures
from plait.model.noise import Noise
from plait.model.sharding import check, placement

WIDTH, HIDDEN, EXPERTS = 12, 8, 5
EQUAL = {"rtol": 0, "atol": 1e-10}


def mixture(per_token=2, balance="none", auxiliary=0.0, shared=0, experts=EXPERTS, dtype=torch.float64):
    told = spec.Mixture(experts, per_token, shared, HIDDEN, "sigmoid", balance, auxiliary, 0.25)
    module = Mixture(WIDTH, told, 0, SwiGLU(WIDTH, shared * HIDDEN) if shared else None).to(dtype)
    chance = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=chance) * 0.5)
        if module.router.bias is not None:
            module.router.bias.copy_(torch.randn(experts, generator=chance) * 0.3)
    return module


def inputs(samples=3, length=7, seed=0):
    chance = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(samples, length, WIDTH, generator=chance, dtype=torch.float64) for _ in range(2))


def token_by_token(module, x_BLD):
    """The definition, one token and one expert at a time."""
    router, experts = module.router, module.experts
    rows = []
    for x in x_BLD.flatten(0, 1):
        scores = torch.sigmoid(router.weight @ x)
        biased = scores if router.bias is None else scores + router.bias
        chosen = sorted(range(router.experts), key=lambda expert: -biased[expert].item())[: router.per_token]
        y = torch.zeros_like(x)
        for expert in chosen:
            gate, up = (experts.gate_up[expert] @ x).chunk(2)
            weight = scores[expert] / (sum(scores[other] for other in chosen) if router.per_token > 1 else 1)
            y = y + weight * (experts.down[expert] @ (functional.silu(gate) * up))
        rows.append(y if module.shared is None else y + module.shared(x))
    return torch.stack(rows).view_as(x_BLD)


def explicit_auxiliary(module, x_BLD, alpha):
    """alpha sum_i f_i P_i of each sequence (DeepSeek-V3, eq. 17 to 20), times its length, as a sum over tokens."""
    router, total = module.router, 0.0
    for x_LD in x_BLD:
        scores_Ln = torch.sigmoid(x_LD @ router.weight.T)
        chosen_LK = (scores_Ln.detach() + (0 if router.bias is None else router.bias)).topk(router.per_token).indices
        f_n = router.experts / (router.per_token * len(x_LD)) * chosen_LK.flatten().bincount(minlength=router.experts).double()
        p_n = (scores_Ln / scores_Ln.sum(-1, keepdim=True)).mean(0)
        total = total + len(x_LD) * alpha * (f_n * p_n).sum()
    return total


def noise(samples, counted_B):
    return None if counted_B is None else Noise(0, 1, torch.arange(samples), counted_B=counted_B)


def gradients(module, x_BLD, *parts, counted_B=None):
    """Gradients of sum(y * g) over parts [(samples, g)], of the parameters and of x, and the load."""
    module.zero_grad()
    module.router.begin(module.router.auxiliary_scale)
    x_BLD = x_BLD.clone().requires_grad_()
    for rows, gradient in parts:
        (module(x_BLD[rows], noise(len(x_BLD[rows]), counted_B)) * gradient).sum().backward()
    found = {path: parameter.grad.clone() for path, parameter in module.named_parameters()}
    return found | {"x": x_BLD.grad, "load": module.router.load.clone()}


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], **EQUAL, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("per_token", [1, 2, EXPERTS])
@pytest.mark.parametrize(("balance", "shared"), [("none", 0), ("bias", 2)])
def test_each_token_is_computed_by_its_experts(per_token, balance, shared):
    module, (x, g) = mixture(per_token, balance, shared=shared), inputs()
    found = gradients(module, x, (slice(None), g))
    torch.testing.assert_close(module(x), token_by_token(module, x), **EQUAL)
    module.zero_grad()
    x = x.clone().requires_grad_()
    (token_by_token(module, x) * g).sum().backward()
    found.pop("load")
    assert_same(found, {path: parameter.grad for path, parameter in module.named_parameters()} | {"x": x.grad})


@pytest.mark.parametrize("balance", ["auxiliary", "bias"])
def test_the_auxiliary_gradient_is_that_of_the_loss_written_out(balance):
    module, (x, g) = mixture(2, balance, auxiliary=0.3), inputs()
    module.router.auxiliary_scale = 0.7
    found = gradients(module, x, (slice(None), g))
    module.zero_grad()
    x = x.clone().requires_grad_()
    ((token_by_token(module, x) * g).sum() + 0.7 * explicit_auxiliary(module, x, 0.3)).backward()
    found.pop("load")
    assert_same(found, {path: parameter.grad for path, parameter in module.named_parameters()} | {"x": x.grad})


def test_no_cut_of_samples_changes_anything():
    module, (x, g) = mixture(2, "bias", auxiliary=0.3, shared=1), inputs(6)
    whole = gradients(module, x, (slice(None), g))
    cut = gradients(module, x, *((rows, g[rows]) for rows in (slice(0, 1), slice(1, 5), slice(5, 5), slice(5, 6))))
    assert_same(whole, cut)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    assert_same(whole, gradients(module, x, (order, g[order])))
    assert whole["load"].sum() == 6 * 7 * 2


def test_a_loss_of_the_micro_batch_would_be_seen(monkeypatch):
    """The check above is able to fail: here choices are counted over the micro-batch's samples together."""
    module, (x, g) = mixture(2, "auxiliary", auxiliary=0.3), inputs(6)
    counts = type(module.router)._counts
    monkeypatch.setattr(type(module.router), "_counts", lambda *given: counts(*given).sum(0, keepdim=True).expand(len(given[1]), -1))
    whole = gradients(module, x, (slice(None), g))
    cut = gradients(module, x, (slice(0, 2), g[:2]), (slice(2, 6), g[2:]))
    assert (whole["router.weight"] - cut["router.weight"]).abs().max() > 1e-4


def test_no_cut_of_positions_changes_anything_once_counts_are_summed():
    module, (x, g) = mixture(2, "auxiliary", auxiliary=0.3), inputs()
    whole = gradients(module, x, (slice(None), g))
    halves = [(slice(None), slice(0, 4)), (slice(None), slice(4, 7))]
    counted = [module.router._counts(module.router(x[half], None)[0], None) for half in halves]
    module.router.reduce_counts = lambda counts_Bn: sum(counted)
    assert_same(whole, gradients(module, x, *((half, g[half]) for half in halves)))


def test_samples_that_do_not_count_leave_no_trace():
    module, (x, g) = mixture(2, "bias", auxiliary=0.3), inputs(4)
    g[2] = 0.0
    real = torch.tensor([True, True, False, True])
    told = gradients(module, x, (slice(None), g), counted_B=real)
    assert_same({**told, "x": told["x"][real]}, gradients(module, x[real], (slice(None), g[real])))
    assert told["x"][2].abs().max() == 0


def test_the_bias_follows_the_load_and_chooses_without_weighing():
    module, (x, _) = mixture(2, "bias"), inputs()
    bias = module.router.bias.clone()
    module.router.follow([4, 0, 2, 3, 1])
    torch.testing.assert_close(module.router.bias - bias, torch.tensor([-0.25, 0.25, 0, -0.25, 0.25]).double(), **EQUAL)
    with torch.no_grad():
        module.router.bias[3] = 100.0
        chosen, weights = module.router(x, None)
        scores = torch.sigmoid(x @ module.router.weight.T)
    assert (chosen == 3).any(-1).all()
    torch.testing.assert_close(weights, (scores / scores.gather(-1, chosen).sum(-1, keepdim=True)).gather(-1, chosen))


def test_following_the_load_evens_it_out():
    module, (x, g) = mixture(2, "bias"), inputs(20, 10)
    module.router.bias.copy_(torch.tensor([0.3, 0.0, 0.0, -0.3, 0.0]))
    module.router.bias_rate = 0.01
    unevenness = []
    for _ in range(60):
        load = gradients(module, x, (slice(None), g))["load"]
        unevenness.append((load.max() / load.double().mean()).item())
        module.router.follow(load.tolist())
    assert unevenness[0] > 1.5
    assert unevenness[-1] < 1.05


def test_a_mixture_without_bias_has_none_and_follows_nothing():
    module = mixture(2, "auxiliary", auxiliary=0.1)
    module.router.follow([1] * EXPERTS)
    assert module.router.bias is None
    assert set(module.state_dict()) == {"router.weight", "experts.gate_up", "experts.down"}


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=6), st.sampled_from([torch.float64, torch.bfloat16]))
def test_grouped_matmuls_take_each_expert_its_rows_however_few(counts, dtype):
    chance = torch.Generator().manual_seed(sum(counts))
    x = torch.randn(sum(counts), 16, generator=chance).to(dtype).requires_grad_()
    weight = torch.randn(len(counts), 24, 16, generator=chance).to(dtype).requires_grad_()
    one = grouped_matmul(x, weight, torch.tensor(counts))
    other = torch.cat([rows @ matrix.T for rows, matrix in zip(x.split(counts), weight, strict=True)])
    g = torch.randn(one.shape, generator=chance).to(dtype)
    for found, expected in zip(torch.autograd.grad(one, (x, weight), g), torch.autograd.grad(other, (x, weight), g), strict=True):
        torch.testing.assert_close(found, expected)
    torch.testing.assert_close(one, other)


def test_far_negative_scores_give_no_nan():
    module, (x, g) = mixture(2, "auxiliary", auxiliary=0.3, dtype=torch.float32), inputs()
    with torch.no_grad():
        module.router.weight.copy_(-1e6 * torch.ones_like(module.router.weight))
    found = gradients(module, x.abs().float(), (slice(None), g.float()))
    assert all(value.isfinite().all() for value in found.values())


# --- in a decoder ----------------------------------------------------------------------------------------------------

VOCABULARY, LENGTH = 40, 12


def decoder(dtype=torch.float64, **changes):
    told = {"layers": 3, "width": 32, "heads": 4, "kv_heads": 2, "experts": 4, "dense_layers": 1, "shared_experts": 1, **changes}
    return build(spec.Model(family="moe", **told), VOCABULARY, LENGTH, seed=0, dtype=dtype)


def tokens(rows=3):
    return torch.randint(0, VOCABULARY, (rows, LENGTH), generator=torch.Generator().manual_seed(rows))


def test_the_first_layers_keep_a_plain_mlp():
    model = decoder()
    assert [found.layer for found in mixtures(model)] == [1, 2]
    assert isinstance(model.blocks[0].mlp, SwiGLU)
    paths = {path for path, _ in model.named_parameters() if path.startswith("blocks.1.mlp")}
    names = ("router.weight", "experts.gate_up", "experts.down", "shared.gate_up.weight", "shared.down.weight")
    assert paths == {f"blocks.1.mlp.{name}" for name in names}
    assert {path for path, _ in model.named_buffers() if "bias" in path} == {f"blocks.{layer}.mlp.router.bias" for layer in (1, 2)}


def test_every_parameter_is_placed_and_drawn_alone():
    model = decoder(torch.float32)
    check(model.sharding, dict(model.named_parameters()))
    kinds = {path: placement(model.sharding, f"blocks.1.mlp.{path}").kind for path, _ in model.blocks[1].mlp.named_parameters()}
    assert list(kinds.values()) == ["replicated", "expert", "expert", "column", "row"]
    down = model.blocks[2].mlp.experts.down
    rows = initial_rows(model.initial, 0, "blocks.2.mlp.experts.down", down.shape, 1, 3)
    assert torch.equal(rows, down[1:3])
    assert down.std().item() == pytest.approx(0.02 / 6**0.5, rel=0.05)
    assert model.blocks[2].mlp.shared.down.weight.std().item() == pytest.approx(0.02 / 6**0.5, rel=0.05)
    assert model.blocks[2].mlp.experts.gate_up.std().item() == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_each_micro_batch_is_counted_once(recompute):
    model = decoder(recompute=recompute)
    for x in (tokens(2), tokens(3)):
        cross_entropy(model(x), x).backward()
    with torch.no_grad():
        model(tokens(4))
    assert [found.router.load.sum().item() for found in mixtures(model)] == [5 * LENGTH * 2] * 2


def test_recomputing_gives_the_same_gradients():
    found = []
    for recompute in ("none", "selective", "full"):
        model = decoder(recompute=recompute, auxiliary=0.1)
        cross_entropy(model(tokens()), tokens()).backward()
        found.append({path: parameter.grad for path, parameter in model.named_parameters()})
    assert_same(found[0], found[1])
    assert_same(found[0], found[2])


@pytest.mark.parametrize("bf16", [False, True])
def test_selective_recomputing_keeps_the_products_of_experts(bf16):
    products = {}
    for recompute in ("none", "selective", "full"):
        model = decoder(torch.float32, recompute=recompute)
        with CountProducts() as counted, torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            cross_entropy(model(tokens()), tokens()).backward()
        products[recompute] = counted.number
    assert products["none"] == products["selective"] < products["full"]


class CountProducts(TorchDispatchMode):
    """Counts the matrix products that are computed, grouped ones as one."""

    number = 0

    def __torch_dispatch__(self, operation, types, arguments=(), keywords=None):
        self.number += operation.overloadpacket in (torch.ops.aten.mm, torch.ops.aten._grouped_mm)
        return operation(*arguments, **(keywords or {}))


def test_samples_that_fill_up_do_not_count_in_a_decoder():
    model, x = decoder(auxiliary=0.1), tokens()
    targets = x.clone()
    targets[1] = -100
    results = []
    for rows, counted in ((slice(None), torch.tensor([True, False, True])), (torch.tensor([0, 2]), None)):
        model.zero_grad()
        cross_entropy(model(x[rows], None, noise(3, counted)), targets[rows]).backward()
        results.append({path: parameter.grad.clone() for path, parameter in model.named_parameters()})
    assert_same(*results)


def test_a_model_in_bf16_stays_in_it():
    assert decoder(torch.bfloat16)(tokens()).dtype == torch.bfloat16


def test_autocast_leaves_the_router_in_fp32(monkeypatch):
    model, x = decoder(torch.float32), tokens()
    kept = []
    monkeypatch.setattr(type(model.blocks[1].mlp.router), "_choose", lambda router, scores: kept.append(scores) or scores.topk(2).indices)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(x)
        cross_entropy(logits, x).backward()
    assert logits.dtype == torch.bfloat16
    assert {scores.dtype for scores in kept} == {torch.float32}
    assert any((scores != scores.bfloat16()).any() for scores in kept)
    plain = decoder(torch.float32)
    cross_entropy(plain(x), x).backward()
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.nn.functional.cosine_similarity(one.grad.flatten(), other.grad.flatten(), 0) > 0.98


def test_generating_with_a_cache_computes_the_same():
    model, x = decoder(), tokens()
    cache = model.new_cache(3, LENGTH)
    with torch.no_grad():
        pieces = torch.cat([model(x[:, :5], cache=cache), model(x[:, 5:], cache=cache)], 1)
        torch.testing.assert_close(pieces, model(x), **EQUAL)


@pytest.mark.slow
def test_compiled_blocks_give_the_same():
    torch._dynamo.reset()
    eager, compiled = decoder(), decoder()
    compile_blocks(compiled)
    for model in (eager, compiled):
        cross_entropy(model(tokens()), tokens()).backward()
    for one, other in zip(eager.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-8, atol=1e-10)
    assert all(torch.equal(one.router.load, other.router.load) for one, other in zip(mixtures(eager), mixtures(compiled), strict=True))


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"family": "llama", "experts": 4}, r'experts belongs to family = "moe"; leave it out with "llama"'),
        ({"family": "gpt2", "bias_rate": 0.1}, r"bias_rate belongs to family"),
        ({"experts": 2, "experts_per_token": 3}, r"experts_per_token = 3 is more than experts = 2"),
        ({"layers": 2, "dense_layers": 2}, r"dense_layers = 2 leaves none of layers = 2"),
        ({"balance": "none", "auxiliary": 0.1}, r"auxiliary is the weight"),
        ({"balance": "auxiliary", "bias_rate": 0.1}, r'bias_rate belongs to balance = "bias"'),
        ({"balance": "auxiliary", "auxiliary": 0.0}, r"needs auxiliary above 0"),
        ({"width": 6, "heads": 2}, r"even head width"),
    ],
)
def test_nonsense_is_refused(given, why):
    with pytest.raises(ValueError, match=why):
        spec.Model(**{"family": "moe", **given})


def test_what_is_left_out_is_usual():
    mixture = spec.Model(family="moe", width=192).mixture
    assert mixture == (8, 2, 0, 256, "sigmoid", "bias", 1e-4, 1e-3)  # two experts of 256: the plain MLP's 512
    assert spec.Model(family="moe", width=192, experts_per_token=3, shared_experts=1).mixture.hidden == 128
