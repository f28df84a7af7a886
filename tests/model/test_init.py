"""Initial values: any rows drawn alone are the rows of the whole."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plait import spec
from plait.model.build import build
from plait.model.init import BLOCK_ROWS, draw, initial_rows

GPT2 = spec.Model(family="gpt2", layers=2, width=64, heads=4)
LLAMA = spec.Model(family="llama", layers=2, width=64, heads=4, kv_heads=2)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_rows_drawn_alone_are_rows_of_the_whole(data):
    shape = torch.Size((data.draw(st.integers(1, 3 * BLOCK_ROWS)), data.draw(st.integers(1, 9))))
    first = data.draw(st.integers(0, shape[0]))
    end = data.draw(st.integers(first, shape[0]))
    assert torch.equal(draw(5, "head.weight", shape, first, end), draw(5, "head.weight", shape, 0, shape[0])[first:end])


def test_more_rows_do_not_change_the_first():
    assert torch.equal(draw(0, "x", torch.Size((600, 4)), 0, 300), draw(0, "x", torch.Size((300, 4)), 0, 300))


def test_seed_path_and_block_each_change_the_values():
    shape = torch.Size((2 * BLOCK_ROWS, 8))
    values = draw(0, "a", shape, 0, len(torch.empty(shape)))
    assert not torch.equal(values[:BLOCK_ROWS], values[BLOCK_ROWS:])
    assert not torch.equal(values, draw(1, "a", shape, 0, shape[0]))
    assert not torch.equal(values, draw(0, "b", shape, 0, shape[0]))


def test_every_parameter_of_a_built_model_is_its_rows():
    for settings_ in (GPT2, LLAMA):
        model = build(settings_, 300, 16, seed=3)
        for path, parameter in model.named_parameters():
            middle = parameter.shape[0] // 2
            rows = initial_rows(model.initial, 3, path, parameter.shape, middle, parameter.shape[0])
            assert torch.equal(rows, parameter[middle:]), path


def test_scales_are_gpt2s():
    for settings_ in (GPT2, LLAMA):
        parameters = dict(build(settings_, 500, 128, seed=0).named_parameters())
        for path, parameter in parameters.items():
            if "norm" in path and path.endswith("weight"):
                assert (parameter == 1).all(), path
            elif path.endswith("bias"):
                assert (parameter == 0).all(), path
            else:
                residual = path.endswith(("attention.out.weight", "mlp.down.weight"))
                assert abs(parameter.std().item() / (0.02 / 2 if residual else 0.02) - 1) < 0.05, path


def test_fp64_starts_from_the_values_of_fp32():
    single, double = (build(LLAMA, 100, 16, 0, dtype=dtype) for dtype in (torch.float32, torch.float64))
    for (path, one), two in zip(single.named_parameters(), double.parameters(), strict=True):
        assert two.dtype == torch.float64
        assert torch.equal(one.double(), two), path
