"""layout = "auto": what fits, and of that what sends least."""

import pytest

from plait import spec
from plait.errors import RunFileError
from plait.plan.auto import choose, state_bytes

GIB = 2**30


def run(**train):
    model = {"family": "gpt2", "layers": 12, "width": 768, "heads": 12}
    return spec.parse({"model": model, "data": {"corpus": ["x"], "sequence": 1024}, "train": {"duration": "1 steps", "batch": 8, **train}})


def test_replicas_alone_while_a_copy_fits():
    choice = choose(run(), 50257, 4, 4 * GIB)
    assert choice.layout == spec.Layout(replicas=4)
    assert "4 replicas" in choice.why


def test_the_smallest_shard_that_fits_and_replicas_of_it():
    state = state_bytes(run(), 50257)
    assert state == 124_439_808 * 16
    assert choose(run(), 50257, 8, int(state / 1.5)).layout == spec.Layout(replicas=4, shard=2)
    assert choose(run(), 50257, 6, int(state / 2)).layout == spec.Layout(replicas=2, shard=3)


def test_no_more_replicas_than_sequences():
    assert choose(run(batch=2, micro_batch=1), 50257, 4, 64 * GIB).layout.replicas == 2


def test_what_fits_nowhere_is_refused_with_both_figures():
    with pytest.raises(RunFileError, match=r"take 1.85 GiB, and 2 workers of 0.50 GiB leave room for 0.80 GiB"):
        choose(run(), 50257, 2, GIB // 2)


def test_auto_stands_alone():
    assert spec.parse({"data": {"corpus": ["x"]}, "train": {"duration": "1 steps"}, "layout": "auto"}).layout.auto
    with pytest.raises(RunFileError, match="auto = true chooses the sizes"):
        spec.parse({"data": {"corpus": ["x"]}, "train": {"duration": "1 steps"}, "layout": {"auto": True, "tensor": 2}})
