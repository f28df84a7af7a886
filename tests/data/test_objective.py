"""Masked tokens: so many as the divisor says, whole words together, and the same for every cut of the batch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plait import spec
from plait.data import bpe, chance
from plait.data.batches import NO_TARGET, Batches, EvaluationBatches
from plait.data.objective import Masking, Spans, build
from plait.data.tokenizer import load
from plait.data.tokens import Split, TokenFile
from plait.data.words import LONGEST, Words
from plait.errors import DataError, RunFileError

MASK, VOCABULARY = 5000, 4000


def split(length: int, sequence: int) -> Split:
    tokens = np.arange(length, dtype=np.uint32)
    return Split(
        "train", [TokenFile(Path("0.npy"), tokens, np.arange(0, length, 7))], [1.0], sequence, False, Masking(0.2, MASK, VOCABULARY)
    )


def batches(length: int = 203, sequence: int = 16) -> Batches:
    train = spec.Train(duration=spec.Duration("10 steps"), batch=13, micro_batch=1, seed=3)
    return Batches(split(length, sequence), train, "f")


@given(st.integers(20, 300), st.integers(2, 40))
def test_the_divisor_is_known_before_a_token_is_read(length: int, sequence: int) -> None:
    found = batches(length, sequence)
    for step in (1, 2):
        read = found.read(step, 0, 13)
        assert (read.targets_BL != NO_TARGET).sum() == found.targets(step)
        assert found.targets(step, [[2, 5]]) == (read.targets_BL[2:5] != NO_TARGET).sum()


def test_what_is_hidden_is_told_and_all_else_is_as_it_was() -> None:
    read = batches().read(1, 0, 13)
    told = read.targets_BL != NO_TARGET
    original = np.where(told, read.targets_BL, read.tokens_BL)
    assert read.documents_BL is not None
    assert np.array_equal(np.diff(original, axis=1)[read.documents_BL[:, 1:] == 0], np.ones((read.documents_BL[:, 1:] == 0).sum()))
    assert (read.tokens_BL[told] == MASK).mean() > 0.5
    assert (read.documents_BL == -1).sum() == 16 - 202 % 16
    assert not told[read.documents_BL == -1].any()


def test_masks_follow_no_cut_and_are_others_in_the_next_epoch() -> None:
    found = batches()
    together = found.read(2, 0, 13)
    for first, end in ((0, 4), (4, 13)):
        part = batches().read(2, first, end)
        assert np.array_equal(part.tokens_BL, together.tokens_BL[first:end])
        assert np.array_equal(part.targets_BL, together.targets_BL[first:end])
    places = {step: {(row[row != NO_TARGET].tobytes()) for row in found.read(step, 0, 13).targets_BL} for step in (1, 2)}
    assert len(places[1] & places[2]) < 4
    measured = EvaluationBatches(split(203, 16))
    assert (measured.read(0, 5).targets_BL != NO_TARGET).sum() == measured.targets(0, 5)


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> tuple[Words, object]:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    path.write_text(bpe.train(["the cat, under the tree; unbelievable"] * 2, 275, ["<|endoftext|>", "<|mask|>"]))
    tokenizer = load(path)
    return Words.of(tokenizer), tokenizer


def test_tokens_of_a_word_are_found_by_their_text(words: tuple[Words, object]) -> None:
    table, tokenizer = words
    [ids] = tokenizer.encode(["the cat, under xyz\nÄpfel (two)"])  # type: ignore[attr-defined]
    numbers = table.number(ids[None].astype(np.int64))[0]
    pieces: dict[int, list[int]] = {}
    for number, token in zip(numbers, ids, strict=True):
        pieces.setdefault(int(number), []).append(int(token))
    texts = [tokenizer.decode(some).strip() for some in pieces.values()]  # type: ignore[attr-defined]
    assert [text for text in texts if text] == ["the", "cat", ",", "under", "xyz", "Äpfel", "(", "two", ")"]


def test_whole_words_are_hidden_together_and_still_exactly_so_many() -> None:
    letters = np.ones(VOCABULARY, dtype=bool)
    letters[::3] = False
    masking = Masking(0.3, MASK, VOCABULARY, Words(letters, np.ones(VOCABULARY, dtype=bool)))
    tokens = np.arange(40 * 24).reshape(40, 24)
    _, targets = masking.apply(tokens, np.full(40, 24), chance.keys(0, "masked", np.arange(40)))
    told = targets != NO_TARGET
    assert (told.sum(axis=1) == 7).all()
    whole = told.reshape(40, 8, 3).sum(axis=2)
    assert ((whole == 0) | (whole == 3)).sum(axis=1).min() == 7  # of one word a part, since three do not divide seven
    assert masking.words is not None
    assert masking.words.number(np.ones((1, 20), dtype=np.int64)).max() == 19 // LONGEST


def test_a_tokenizer_without_a_mask_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(bpe.train(["a b"], 257))
    with pytest.raises(DataError, match=r"needs a tokenizer with a mask token, .* <\|mask\|>, \[MASK\]"):
        build(spec.Objective(kind="masked"), load(tmp_path / "tokenizer.json"), 16)


@pytest.mark.parametrize(
    ("model", "objective", "told"),
    [
        ({"family": "bert"}, {}, r'family = "bert" and data.objective.kind = "causal".* kind = "masked"'),
        ({"family": "gpt2"}, {"kind": "masked"}, r'this family learns by "causal"'),
        ({"family": "gpt2", "rope_scaling": {"kind": "linear", "factor": 2.0}}, {}, r"rope_scaling is for rotary positions"),
        ({"rope_scaling": {"kind": "linear", "factor": 2.0, "low": 1.0}}, {}, r'low belongs to kind = "llama3"'),
        ({"rope_scaling": {"kind": "llama3", "factor": 2.0}}, {}, r"needs low, high above it, and original"),
        ({}, {"rate": 0.1}, r'rate belongs to kind = "masked" or "span"'),
    ],
    ids=str,
)
def test_what_a_family_cannot_learn_is_refused(model: dict, objective: dict, told: str) -> None:
    table = {"model": model, "data": {"corpus": ["a"], "objective": objective}, "train": {"duration": "1 steps"}}
    with pytest.raises(RunFileError, match=told):
        spec.parse(table)


class OfSpans:
    """Spans of rows of 24 tokens; sentinels from 900 down."""

    masking = Spans(24, 0.25, 2.0, first_sentinel=900, begin=950, end=951)

    @classmethod
    def batches(cls) -> Batches:
        train = spec.Train(duration=spec.Duration("10 steps"), batch=9, micro_batch=1, seed=3)
        return Batches(replace(split(200, 24), masking=cls.masking), train, "f")


def test_a_source_and_its_target_are_the_row_again() -> None:
    read = OfSpans.batches().read(1, 0, 9)
    source = read.source
    assert (source, read.tokens_BL.shape[1]) == (32, 32 + 16)
    for row in range(9):
        shown = read.tokens_BL[row, :source][read.documents_BL[row, :source] == 0]  # type: ignore[index]
        told = read.targets_BL[row][read.targets_BL[row] != NO_TARGET]
        assert shown[-1] == told[-1] == 951
        spans: dict[int, list[int]] = {}
        for token in told[:-1]:
            if token > 800:
                spans[int(token)] = []
            else:
                spans[list(spans)[-1]].append(int(token))
        again = [each for token in shown[:-1] for each in (spans[int(token)] if token > 800 else [int(token)])]
        assert again == list(range(again[0], again[0] + len(again)))
        assert list(spans) == list(range(900, 900 - len(spans), -1))
        begins = read.tokens_BL[row, source]
        assert begins == 950
        assert np.array_equal(read.tokens_BL[row, source + 1 : source + len(told)], told[:-1])
        assert (read.targets_BL[row, :source] == NO_TARGET).all()


def test_the_divisor_of_spans_is_known_too_and_they_follow_no_cut() -> None:
    for step in (1, 2, 3):
        read = OfSpans.batches().read(step, 0, 9)
        assert (read.targets_BL != NO_TARGET).sum() == OfSpans.batches().targets(step)
        assert np.array_equal(OfSpans.batches().read(step, 3, 7).tokens_BL, read.tokens_BL[3:7])


def test_a_tokenizer_without_enough_sentinels_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(bpe.train(["a b"], 258, ["<|endoftext|>", "<extra_id_0>"]))
    with pytest.raises(DataError, match=r"needs 7 sentinels in sequences of 128 tokens, <extra_id_0> and so on"):
        build(spec.Objective(kind="span"), load(tmp_path / "tokenizer.json"), 128)


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ({"layout": {"tensor": 3}, "model": {"heads": 3, "width": 48, "hidden": 48}}, r"does not divide the multiples of 16"),
        (
            {"layout": {"pipeline": 2, "schedule": "interleaved", "shard": 2, "zero": 3, "offload": True}},
            r"layout.offload would leave on the host",
        ),
        ({"layout": {"pipeline": 5}}, r"model.layers = 2 \+ model.decoder_layers = 2"),
        ({"data": {"tokenizer": {"train": 300}}}, r"tokenizer.train = 300 leaves no room for 100 sentinels.* 357 or more"),
        ({"data": {"document_mask": True}}, r"spans are told of all of a sample"),
        ({"model": {"kv_heads": 2}}, r'family = "t5" has no kv_heads'),
        ({"model": {"family": "llama", "gated": True}}, r'gated belongs to family = "t5"'),
        ({"train": {"label_smoothing": 0.1, "loss": "a:b"}}, r"label_smoothing belongs to loss"),
    ],
    ids=str,
)
def test_what_an_encoder_decoder_cannot_do_is_refused(table: dict, told: str) -> None:
    usual = {
        "model": {"family": "t5", "layers": 2, "width": 64, "heads": 4},
        "data": {"corpus": ["a"], "objective": {"kind": "span"}},
        "train": {"duration": "1 steps"},
    }
    with pytest.raises(RunFileError, match=told):
        spec.parse({name: {**usual.get(name, {}), **table.get(name, {})} for name in usual | table})
