"""Linear layers in oneDNN's order: what the layers themselves compute, of any number of rows."""

import pytest
import torch

from plait import spec
from plait.model import packed
from plait.model.blocks import Linear
from plait.model.build import build


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 3, 16, 40])
def test_layers_are_applied_and_added(bias, rows):
    chance = torch.Generator().manual_seed(0)
    layer = Linear(256, packed.VALUES // 256 + 3, bias=bias)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, generator=chance)
    x_BI, residual_BO = torch.randn(rows, 256, generator=chance), torch.randn(rows, layer.out_features, generator=chance)
    with torch.inference_mode():
        expected = layer(x_BI)
        for pack in (False, True):
            torch.testing.assert_close(packed.applied(layer, pack)(x_BI), expected, rtol=1e-5, atol=1e-4)
            torch.testing.assert_close(packed.added(layer, pack)(residual_BO, x_BI), expected + residual_BO, rtol=1e-5, atol=1e-4)


def test_only_large_matrices_of_models_of_a_size_are_copied(monkeypatch):
    copied = []
    monkeypatch.setattr(packed, "_in_order", lambda weight: copied.append(weight.shape))
    for width in (256, 512):
        packed.applied(Linear(256, width), pack=True)
    assert copied == [(512, 256)]
    model = build(spec.Model(layers=1, width=16, heads=2), 20, 8, 0)
    assert packed.is_worth_it(model)
    assert not packed.is_worth_it(model.to(torch.bfloat16))
    monkeypatch.setattr(packed, "BYTES", 1000)
    assert not packed.is_worth_it(model.to(torch.float32))
