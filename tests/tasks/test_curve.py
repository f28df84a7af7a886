"""Promise 1: the curve follows the model, the data, the seed and the global batch; not the replicas, and not a restart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from plait import events
from plait.testing.failures import CutOff, CutOffAt
from tests.curves import LOSS, Curves, assert_one_curve
from tests.runs import bf16_floor, differences, slow

STEPS = 40


@pytest.fixture
def curve(curves: Callable[..., Curves], corpus: Path) -> Curves:
    return curves(corpus, train__duration=f"{STEPS} steps", model__dropout=0.1, checkpoint__every="10 steps")


def test_replicas_with_equal_and_unequal_shares_draw_one_curve(curve: Curves) -> None:
    alone = curve("alone")
    two = curve("two", layout__replicas=2)
    three = curve("three", layout__replicas=3, balance__capacity=[5.0, 0.0, 3.0])
    assert len(alone) == STEPS
    assert alone[-1].loss < alone[0].loss
    assert_one_curve(alone, two)
    assert_one_curve(alone, three)
    assert three[0].shares == {"0": [[0, 5]], "1": [], "2": [[5, 8]]}
    assert three[9].computed["1"] == 0.0
    assert all(two[9].computed[replica] + two[9].data[replica] + two[9].waited[replica] <= two[9].seconds for replica in ("0", "1"))


def test_killed_and_resumed_at_other_replica_counts_goes_on_with_the_same_curve(curve: Curves) -> None:
    alone = curve("alone")
    with pytest.raises(CutOff):
        curve("killed", CutOffAt(10, kind=events.Saved), layout__replicas=2)
    with pytest.raises(CutOff):
        curve("killed", CutOffAt(30, kind=events.Saved), layout__replicas=3)
    assert_one_curve(alone, curve("killed", layout__replicas=1))
    first, second = [event.from_step for event in curve.of("killed", events.Resumed)]
    assert 10 <= first < second


def test_killed_before_the_first_checkpoint_starts_again_and_says_so(curve: Curves) -> None:
    with pytest.raises(CutOff):
        curve("killed", CutOffAt(3), layout__replicas=2, train__duration="5 steps")
    assert_one_curve(curve("alone", train__duration="5 steps"), curve("killed", train__duration="5 steps"))
    assert [event.from_step for event in curve.of("killed", events.Resumed)] == [0]


AUGMENT = {"bpe_dropout": 0.1, "word_dropout": 0.1, "word_swap": 0.1, "sentence_shuffle": 0.5, "span_mask": 0.15}


@pytest.mark.slow
def test_augmented_samples_are_the_same_whoever_reads_them(curve: Curves) -> None:
    alone = curve("alone", data__augment=AUGMENT)
    assert_one_curve(alone, curve("two", data__augment=AUGMENT, layout__replicas=2, balance__capacity=[5.0, 3.0], train__micro_batch=3))
    assert differences(alone, curve("plain"))[0] > 1e-3


def test_micro_batches_do_not_shape_the_curve(curve: Curves) -> None:
    assert_one_curve(curve("twos"), curve("fives", train__micro_batch=5, model__recompute="full"))


@pytest.mark.slow
def test_gpt2_with_masked_documents_and_growing_batches_draws_one_curve(curve: Curves) -> None:
    family = {"model__family": "gpt2", "model__kv_heads": None, "data__document_mask": True}
    batch = {"train__batch": [{"batch": 4, "until": "9 steps"}, {"batch": 7}]}
    assert_one_curve(curve("alone", **family, **batch), curve("two", layout__replicas=2, **family, **batch))


@pytest.mark.parametrize("optimizer", [slow("sgd"), slow("muon")])
def test_other_optimizers_draw_one_curve(curve: Curves, optimizer: str) -> None:
    assert_one_curve(curve("alone", train__optimizer__name=optimizer), curve("two", layout__replicas=2, train__optimizer__name=optimizer))


def test_short_curves_agree_in_fp32(curve: Curves) -> None:
    """Over the first 8 steps: later any reordering of sums makes such curves drift apart."""
    settings = {"train__precision": "fp32", "train__duration": "8 steps"}
    loss, _ = differences(curve("alone", **settings), curve("two", layout__replicas=2, **settings))
    assert loss <= 1e-5


@pytest.mark.slow
def test_short_curves_agree_in_bf16_as_far_as_one_process_agrees_with_itself(curve: Curves) -> None:
    settings = {"train__precision": "bf16", "train__duration": "8 steps"}
    alone, two = curve("alone", **settings), curve("two", layout__replicas=2, **settings)
    first, _ = differences(alone[:2], two[:2])
    loss, _ = differences(alone, two)
    assert first <= 1e-7, "two replicas round what one process does"
    assert loss <= 2 * bf16_floor(curve, alone, **settings)


def test_a_wrong_divisor_is_seen(curve: Curves) -> None:
    """The check above is able to fail: here each micro-batch divides by its own targets."""
    wrong = {"train__duration": "5 steps", "train__micro_batch": 3, "train__loss": "tests.wrong:mean_of_means"}
    loss, grad_norm = differences(curve("alone", **wrong), curve("two", layout__replicas=2, **wrong))
    assert loss > LOSS
    assert grad_norm > 1e-3
