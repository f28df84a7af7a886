"""The sharding table: each parameter of both families has one placement, and cuts fit."""

import pytest

from plait import spec
from plait.model.build import build
from plait.model.sharding import Placement, check, placement

FAMILIES = [
    spec.Model(family="gpt2", layers=1, width=24, heads=6, tied=False),
    spec.Model(family="llama", layers=1, width=24, heads=6, kv_heads=2),
]


@pytest.mark.parametrize("model", FAMILIES, ids=lambda model: model.family)
def test_every_parameter_is_placed_and_divides_by_the_key_heads(model):
    built = build(model, 32, 8, 0)
    check(built.sharding, dict(built.named_parameters()))
    for path, parameter in built.named_parameters():
        place = placement(built.sharding, path)
        if place.dim is None or place.kind == "vocabulary":
            continue
        unit = parameter.shape[place.dim] // sum(place.parts)
        assert parameter.shape[place.dim] % sum(place.parts) == 0
        assert all(part * unit % 2 == 0 for part in place.parts), path


@pytest.mark.parametrize("model", FAMILIES, ids=lambda model: model.family)
def test_biases_go_with_what_they_are_added_to(model):
    table = build(model, 32, 8, 0).sharding
    assert placement(table, "blocks.0.attention.qkv.bias") == placement(table, "blocks.0.attention.qkv.weight")
    assert placement(table, "blocks.0.attention.out.weight").kind == "row"
    assert placement(table, "blocks.0.attention.out.bias").kind == "replicated"
    assert placement(table, "blocks.0.norm1.weight").kind == "replicated"


def test_stacked_parts_are_told():
    assert placement(FAMILIES and {"a.*": "column(6,2,2)"}, "a.weight") == Placement("column", (6, 2, 2))


def test_what_is_missing_or_unreadable_is_named():
    with pytest.raises(ValueError, match=r"no pattern for the parameter b\.weight"):
        check({"a.*": "row"}, ["a.weight", "b.weight"])
    with pytest.raises(ValueError, match=r'"a\.\*": "diagonal"'):
        check({"a.*": "diagonal"}, ["a.weight"])
