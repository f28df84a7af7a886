"""Gradients in flat buckets: views, launched in one order whatever backward does."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from plait.replica.assemble import Leaf
from plait.replica.gradients import Gradients
from plait.replica.part import Part


@pytest.fixture
def layers() -> list[nn.Linear]:
    torch.manual_seed(0)
    return [nn.Linear(4, 4, bias=False, dtype=torch.float64) for _ in range(4)]


def gradients_of(layers: list[nn.Linear], per_bucket: int = 1) -> Gradients:
    return Gradients([Leaf("", layer.weight, Part.whole(layer.weight.shape)) for layer in layers], per_bucket * 16 * 8)


def run(layers: list[nn.Linear], x: Tensor) -> None:
    for layer in layers:
        x = layer(x).tanh()
    x.sum().backward()


def test_gradients_are_views_of_buckets_in_the_order_of_backward(layers: list[nn.Linear]) -> None:
    gradients = gradients_of(layers, per_bucket=2)
    gradients.begin()
    run(layers, torch.ones(1, 4, dtype=torch.float64))
    assert [bucket.numel() for bucket in gradients.buckets] == [32, 32]
    assert torch.equal(gradients.buckets[0][:16].view(4, 4), layers[3].weight.grad)
    assert layers[0].weight.grad.untyped_storage().data_ptr() == gradients.buckets[1].untyped_storage().data_ptr()


def test_buckets_are_launched_during_the_last_backward_alone(layers: list[nn.Linear]) -> None:
    gradients = gradients_of(layers)
    launched: list[Tensor] = []
    gradients.begin()
    gradients.watch(lambda bucket, key: launched.append(bucket))
    run(layers, torch.ones(1, 4, dtype=torch.float64))
    assert not launched
    gradients.final_pass()
    run(layers, torch.ones(1, 4, dtype=torch.float64))
    assert [bucket.data_ptr() for bucket in launched] == [bucket.data_ptr() for bucket in gradients.buckets]


def test_the_order_is_kept_when_a_parameter_has_no_use_or_a_share_is_empty(layers: list[nn.Linear]) -> None:
    gradients = gradients_of(layers)
    for used in (layers[:3], layers[1:], []):
        launched: list[int] = []
        gradients.begin()
        gradients.watch(lambda bucket, key, launched=launched: launched.append(bucket.data_ptr()))
        gradients.final_pass()
        if used:
            run(used, torch.ones(1, 4, dtype=torch.float64))
        gradients.finish()
        assert launched == [bucket.data_ptr() for bucket in gradients.buckets]


def test_begin_forgets_the_last_unit(layers: list[nn.Linear]) -> None:
    gradients = gradients_of(layers)
    run(layers, torch.ones(1, 4, dtype=torch.float64))
    gradients.begin()
    assert gradients.squared_norm() == 0.0


def test_the_squared_norm_is_that_of_all_gradients(layers: list[nn.Linear]) -> None:
    gradients = gradients_of(layers, per_bucket=3)
    gradients.begin()
    run(layers, torch.ones(1, 4, dtype=torch.float64))
    expected = sum(float((layer.weight.grad**2).sum()) for layer in layers)
    assert gradients.squared_norm() == pytest.approx(expected, rel=1e-12)
    gradients.scale(0.5)
    assert gradients.squared_norm() == pytest.approx(expected / 4, rel=1e-12)


def test_what_is_owed_is_added_once(layers: list[nn.Linear]) -> None:
    gradients = gradients_of(layers)
    gradients.owe({path: torch.full_like(layers[0].weight, 2.0) for paths in gradients.paths for path in paths})
    gradients.begin()
    assert all(bucket.unique().tolist() == [2.0] for bucket in gradients.buckets)
    gradients.begin()
    assert gradients.squared_norm() == 0.0
