"""A pass can be left between two blocks, and what comes after it knows nothing of that."""

from __future__ import annotations

import itertools
from contextlib import suppress

import numpy as np
import pytest
import torch

from plait import spec
from plait.data.batches import MicroBatch
from plait.replica.replica import Replica


class Away(Exception):
    pass


@pytest.mark.parametrize("recompute", ["none", "full"])
def test_a_pass_left_at_any_block_leaves_no_trace_in_the_next_one(recompute):
    replica, untouched = _replica(recompute), _replica(recompute)
    _learn(untouched)
    asked = itertools.count(1)

    def ask_until(last):
        def question():
            if next(asked) == last:
                raise Away

        return question

    left = 0
    for last in range(1, 99):
        asked = itertools.count(1)
        with suppress(Away), replica.asking(ask_until(last)):
            _learn(replica)
            break
        left += 1
    assert left >= 2 * 3, "each of three blocks is a place to leave, forward and backward"
    _learn(replica)
    for mine, its in zip(replica.gradients.buckets, untouched.gradients.buckets, strict=True):
        assert torch.equal(mine, its)


def test_nobody_is_asked_outside_of_asking():
    replica = _replica()
    with replica.asking(lambda: None):
        _learn(replica)
    _learn(replica)

    def refuse():
        raise Away

    with pytest.raises(Away), replica.asking(refuse):
        _learn(replica)


def _learn(replica):
    replica.begin(divisor=16, micro_batches=1)
    tokens_BL = np.arange(16, dtype=np.int64).reshape(2, 8)
    replica.accumulate(MicroBatch(tokens_BL, tokens_BL, np.arange(2), None, 1))
    replica.finish()


def _replica(recompute="none"):
    model = {"layers": 3, "width": 16, "heads": 2, "recompute": recompute}
    run = spec.parse(
        {
            "model": model,
            "data": {"corpus": ["."], "tokenizer": {"train": 300}, "sequence": 8},
            "train": {"duration": "1 steps", "batch": 2, "micro_batch": 2, "precision": "fp64"},
        }
    )
    return Replica(run, 64, torch.device("cpu"))
