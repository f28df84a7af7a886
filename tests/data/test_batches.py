"""Batches: a pure function of fingerprint, seed and step, in which no token is lost."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plait import spec
from plait.data.batches import NO_TARGET, Batches, EvaluationBatches, MicroBatch
from plait.data.tokens import Split, TokenFile
from plait.errors import RunFileError


def split_of(lengths: list[int], sequence: int, weights: list[float] | None = None, mask: bool = False) -> Split:
    """Sources of distinct tokens: source s holds s * 10,000 and up, a document begins at every seventh."""
    files = []
    for source, length in enumerate(lengths):
        tokens = np.arange(length, dtype=np.uint32) + 10_000 * source
        files.append(TokenFile(Path(f"{source}.npy"), tokens, np.arange(0, length, 7)))
    return Split("train", files, weights or [1.0] * len(files), sequence, mask)


def train(**settings: Any) -> spec.Train:
    return spec.Train(**{"duration": spec.Duration("10 steps"), "batch": 4, **settings})


def whole(batches: Batches, step: int) -> MicroBatch:
    return batches.read(step, 0, batches.size(step))


@given(length=st.integers(2, 300), sequence=st.integers(1, 40), seed=st.integers(0, 5))
@settings(deadline=None)
def test_each_token_but_the_first_is_a_target_once_an_epoch(length: int, sequence: int, seed: int) -> None:
    split = split_of([length], sequence)
    batches = Batches(split, train(batch=EvaluationBatches(split).size, micro_batch=1, duration=spec.Duration("2 epochs"), seed=seed), "f")
    assert batches.steps == 2
    for epoch in (1, 2):
        read = whole(batches, epoch)
        counted = read.targets_BL != NO_TARGET
        assert Counter(read.targets_BL[counted].tolist()) == Counter(range(1, length))
        assert np.array_equal(read.targets_BL[counted], read.tokens_BL[counted] + 1)
        assert batches.targets(epoch) == length - 1


def test_micro_batches_are_cuts_of_the_global_batch() -> None:
    batches = Batches(split_of([500, 90], 8, [3.0, 1.0], mask=True), train(batch=12), "f")
    for step in (1, 9, 10**9):
        together = whole(batches, step)
        first, rest = (
            batches.read(step, 0, 5),
            Batches(split_of([500, 90], 8, [3.0, 1.0], mask=True), train(batch=12), "f").read(step, 5, 12),
        )
        for name in ("tokens_BL", "targets_BL", "samples_B", "documents_BL"):
            assert np.array_equal(np.concatenate([getattr(first, name), getattr(rest, name)]), getattr(together, name))
        assert together.samples_B.tolist() == list(range((step - 1) * 12, step * 12))
        assert batches.targets(step, [[0, 5]]) + batches.targets(step, [[5, 9], [9, 12]]) == batches.targets(step)
        assert batches.targets(step, []) == 0
        assert batches.read(step, 3, 3).tokens_BL.shape == (0, 8)


def test_seed_and_fingerprint_tell_the_order() -> None:
    split = split_of([5000], 8)
    read = whole(Batches(split, train(), "f"), 1).tokens_BL
    assert np.array_equal(read, whole(Batches(split, train(), "f"), 1).tokens_BL)
    assert not np.array_equal(read, whole(Batches(split, train(seed=1), "f"), 1).tokens_BL)
    assert not np.array_equal(read, whole(Batches(split, train(), "g"), 1).tokens_BL)


def test_epochs_differ_in_order() -> None:
    batches = Batches(split_of([801], 8), train(batch=100), "f")
    first, second = whole(batches, 1).tokens_BL, whole(batches, 2).tokens_BL
    assert not np.array_equal(first, second)
    assert np.array_equal(np.sort(first, axis=0), np.sort(second, axis=0))


def test_a_mixture_draws_by_weight_from_the_first_batch_on() -> None:
    batches = Batches(split_of([10_000, 300], 4, [3.0, 1.0]), train(batch=8), "f")
    for step in range(1, 50):
        assert (whole(batches, step).tokens_BL[:, 0] >= 10_000).sum() == 2


def test_documents_are_numbered_within_the_row() -> None:
    batches = Batches(split_of([500], 16, mask=True), train(), "f")
    for step in range(1, 10):
        read = whole(batches, step)
        absolute = read.tokens_BL // 7
        expected = np.where(read.targets_BL != NO_TARGET, absolute - absolute[:, :1], read.documents_BL)
        assert np.array_equal(read.documents_BL, expected)
    assert whole(Batches(split_of([500], 16), train(), "f"), 1).documents_BL is None


def test_durations_in_steps_tokens_and_epochs() -> None:
    batches = Batches(split_of([801], 8), train(batch=4), "f")
    told = {
        text: batches.steps_of(spec.Duration(text)) for text in ("7 steps", "33 tokens", "1k tokens", "1 epoch", "0.5 epochs", "0 steps")
    }
    assert told == {"7 steps": 7, "33 tokens": 2, "1k tokens": 32, "1 epoch": 25, "0.5 epochs": 13, "0 steps": 0}


def stages(*entries: tuple[int, str | None]) -> list[spec.BatchStage]:
    return [spec.BatchStage(batch=batch, until=spec.Duration(until) if until else None) for batch, until in entries]


def test_batch_size_by_stages_of_steps_and_tokens() -> None:
    batches = Batches(split_of([8001], 8), train(batch=stages((4, "2 steps"), (6, "200 tokens"), (10, None))), "f")
    assert [batches.size(step) for step in range(1, 8)] == [4, 4, 6, 6, 6, 10, 10]
    assert [batches.first(step) for step in range(1, 8)] == [0, 4, 8, 14, 20, 26, 36]
    assert batches.steps_of(spec.Duration("288 tokens")) == 6
    assert batches.steps_of(spec.Duration("289 tokens")) == 7
    assert whole(batches, 6).samples_B.tolist() == list(range(26, 36))


def test_a_stage_that_is_over_before_it_begins_is_refused() -> None:
    with pytest.raises(RunFileError, match=r'train.batch.1.until: "2 steps" is over before the stage begins, at step 4'):
        Batches(split_of([801], 8), train(batch=stages((4, "3 steps"), (6, "2 steps"), (8, None))), "f")


def test_evaluation_reads_each_sequence_once_in_order() -> None:
    batches = EvaluationBatches(split_of([100, 37], 8), None)
    assert batches.size == 13 + 5
    read = batches.read(0, batches.size)
    assert read.targets_BL[read.targets_BL != NO_TARGET].tolist() == [*range(1, 100), *range(10_001, 10_037)]
    assert batches.targets(0, batches.size) == 99 + 36
    assert batches.targets(12, 14) == 3 + 8


def test_a_limited_evaluation_spreads_over_the_split() -> None:
    batches = EvaluationBatches(split_of([801], 8), 10)
    assert batches.size == 10
    assert batches.read(0, 10).samples_B.tolist() == list(range(0, 100, 10))
    assert EvaluationBatches(split_of([801], 8), 10_000).size == 100
