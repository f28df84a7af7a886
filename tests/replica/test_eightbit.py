"""Optimizer state in eight bits: the numbers of the paper, near the floats, and the same blocks wherever the parts are."""

from __future__ import annotations

import pytest
import torch
from torch.nn import Parameter

from plait import spec
from plait.errors import RunFileError
from plait.replica.eightbit import _numbers, check_cuts, expand, round_into, scale_part
from plait.replica.optim import build_optimizer
from plait.replica.part import Part

CPU = torch.device("cpu")


def rounded(values: torch.Tensor, signed: bool, block: int) -> tuple[torch.Tensor, torch.Tensor]:
    codes = torch.zeros_like(values, dtype=torch.uint8)
    scales = values.new_zeros(*values.shape[:-1], -(-values.shape[-1] // block))
    round_into(codes, scales, values, signed, block)
    return codes, scales


def test_the_numbers_are_those_of_dynamic_trees() -> None:
    signed, unsigned = _numbers(True, torch.float64, CPU)[0], _numbers(False, torch.float64, CPU)[0]
    assert len(signed) == 256
    assert len(unsigned) == 255
    assert signed[-1] == unsigned[-1] == 1
    assert 0 in signed
    assert unsigned[0] == pytest.approx(3.25e-7)  # the middle of the lower half of [0.1, 1] 1e-6
    assert float(signed.abs()[signed != 0].min()) == pytest.approx(5.5e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("signed", [True, False])
def test_values_are_rounded_to_the_nearest_number(signed: bool, dtype: torch.dtype) -> None:
    values = torch.randn(3, 5, 19, dtype=dtype, generator=torch.Generator().manual_seed(0))
    values = values if signed else values**2
    values[1, 2] = 0.0
    back = expand(*rounded(values, signed, 8), signed, 8)
    assert back.dtype == dtype
    assert not back[1, 2].any()
    largest = values.abs().amax(-1, keepdim=True)
    assert float(((back - values).abs() / torch.where(largest > 0, largest, 1)).max()) < 0.02
    assert signed or torch.all((back > 0) == (values > 0))


def test_a_part_has_the_scales_that_the_whole_has_there() -> None:
    values = torch.randn(6, 30, dtype=torch.float64)
    codes, scales = rounded(values, True, 8)
    part = Part.whole(values.shape).cut(0, [(1, 4)]).cut(1, [(8, 16), (24, 30)])
    own_codes, own_scales = rounded(part.take(values), True, 8)
    assert torch.equal(own_codes, part.take(codes))
    assert torch.equal(own_scales, scale_part(part, 8).take(scales))
    check_cuts({"blocks.0.out.weight": part}, 8)
    with pytest.raises(RunFileError, match=r"block = 16: the layout cuts the rows of blocks\.0\.out\.weight at column 8.*block = 8 works"):
        check_cuts({"blocks.0.out.weight": part}, 16)


@pytest.mark.parametrize("name", ["adamw", "adam"])
def test_steps_are_near_those_of_floats(name: str) -> None:
    paths = {"blocks.0.up.weight": (12, 40), "norm.weight": (12,)}
    start = {path: torch.randn(shape) for path, shape in paths.items()}
    moved = []
    for settings in ({}, {"state": "int8", "block": 16}):
        parameters = {path: Parameter(value.clone()) for path, value in start.items()}
        optimizer = build_optimizer(spec.Optimizer(name=name, lr=0.01, **settings), parameters.items(), "cpu")
        chance = torch.Generator().manual_seed(2)
        for _ in range(20):
            for parameter in parameters.values():
                parameter.grad = torch.randn(parameter.shape, generator=chance) + 0.5
            optimizer.step()
        moved.append({path: (parameter - start[path]).detach() for path, parameter in parameters.items()})
    floats, bytes_ = moved
    assert torch.equal(bytes_["norm.weight"], floats["norm.weight"])
    difference = (bytes_["blocks.0.up.weight"] - floats["blocks.0.up.weight"]).norm() / floats["blocks.0.up.weight"].norm()
    assert 1e-6 < float(difference) < 0.05
    kept = [value for value in optimizer.state[parameters["blocks.0.up.weight"]].values() if value.ndim]
    assert sum(value.nbytes for value in kept) < 2.7 * 12 * 40


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "muon", "state": "int8"}, 'state = "int8" is for name = "adamw" and "adam"; leave it out with "muon"'),
        ({"block": 8}, 'block belongs to state = "int8"; leave it out'),
    ],
)
def test_what_cannot_be_is_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        spec.Optimizer(**settings)
