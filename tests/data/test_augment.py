"""Augmentation: a pure function of seed and sample, rows that stay full, and each kind does what it is for."""

import base64
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer as Engine

from plait import spec
from plait.data import chance, prepare
from plait.data.augment import Augmentation, Tables
from plait.data.batches import NO_TARGET, Batches, EvaluationBatches, MicroBatch
from plait.data.merges import Merges
from plait.data.tokenizer import Tokenizer, load
from plait.data.tokens import Prepared, TokenFile
from plait.errors import DataError, RunFileError

ENGLISH = "The cat sat on the mat. Then the dog ran under the tree! Who saw the bird again? It flew over the house, and slowly went home."
CHINESE = "学而时习之，不亦说乎？有朋自远方来，不亦乐乎？人不知而不愠，不亦君子乎？"
TRAIN = spec.Train(duration=spec.Duration("40 steps"), batch=8, seed=5)
EVERYTHING = {"bpe_dropout": 0.1, "word_dropout": 0.1, "word_swap": 0.1, "sentence_shuffle": 0.5, "span_mask": 0.1}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> spec.Data:
    folder = tmp_path_factory.mktemp("augment")
    (folder / "a.txt").write_text("\f".join(f"{ENGLISH} {number} times." for number in range(60)))
    (folder / "b.txt").write_text("\f".join(f"{CHINESE}{number}。" for number in range(30)))
    corpus = [spec.Source(path=str(folder / name), name=name) for name in ("a.txt", "b.txt")]
    return spec.Data(corpus=corpus, prepared=str(folder / "prepared"), tokenizer=spec.Tokenizer(train=340), sequence=24, workers=1)


@pytest.fixture(scope="module")
def prepared(data: spec.Data) -> Prepared:
    return prepare.prepare(data)


@pytest.fixture(scope="module")
def tokenizer(prepared: Prepared) -> Tokenizer:
    return prepared.tokenizer()


def batches(data: spec.Data, mask: bool = False, **augment: Any) -> Batches:
    told = data.model_copy(update={"augment": spec.Augment(**augment), "document_mask": mask})
    opened = prepare.prepare(told)
    return Batches(opened.split("train", 24), TRAIN, opened.fingerprint)


def whole(read: Batches, step: int) -> MicroBatch:
    return read.read(step, 0, read.size(step))


def rewritten(tokenizer: Tokenizer, text: str, key: int, count: int | None = None, **augment: Any) -> str:
    """A text, end-of-text before it, as a row that is drawn under a key."""
    [ids] = tokenizer.encode([text])
    twice = np.concatenate([[tokenizer.end_of_text], ids, [tokenizer.end_of_text], ids])
    stream = TokenFile(Path(), twice, np.array([0, len(ids) + 1]))
    tokens = Augmentation(spec.Augment(**augment), tokenizer).rewrite(
        stream, 0, count or len(ids) + 1, chance.keys(1, "t", np.array([key]))[0]
    )
    assert tokens[0] == tokenizer.end_of_text
    return tokenizer.decode(tokens[1:].tolist())


def test_any_cut_of_a_batch_reads_the_same(data: spec.Data) -> None:
    one = batches(data, mask=True, **EVERYTHING)
    for step in (1, 7, 40):
        together = whole(one, step)
        parts = [batches(data, mask=True, **EVERYTHING).read(step, first, first + 2) for first in range(0, 8, 2)]
        for name in ("tokens_BL", "targets_BL", "documents_BL"):
            assert np.array_equal(np.concatenate([getattr(part, name) for part in parts]), getattr(together, name))


def test_a_sample_differs_from_epoch_to_epoch_and_from_seed_to_seed(data: spec.Data) -> None:
    read = batches(data, word_dropout=0.2)
    plain, changed = ({row.tobytes() for step in range(1, 41) for row in whole(each, step).tokens_BL} for each in (batches(data), read))
    assert len(changed) > 1.3 * len(plain)
    other = Batches(read._split, spec.Train(duration=TRAIN.duration, batch=8, seed=6), "f")
    assert not np.array_equal(whole(other, 1).tokens_BL, whole(Batches(read._split, TRAIN, "f"), 1).tokens_BL)


@pytest.mark.parametrize("kind", ["bpe_dropout", "word_dropout", "word_swap", "sentence_shuffle", "token_mask", "span_mask"])
def test_rows_stay_full_and_targets_as_many_as_arithmetic_says(data: spec.Data, kind: str) -> None:
    plain, changed = batches(data), batches(data, **{kind: 0.3})
    differing = 0
    for step in range(1, 20):
        before, after = whole(plain, step), whole(changed, step)
        assert changed.targets(step) == plain.targets(step) == (after.targets_BL != NO_TARGET).sum()
        assert np.array_equal(after.targets_BL == NO_TARGET, before.targets_BL == NO_TARGET)
        differing += int((after.tokens_BL != before.tokens_BL).any(axis=1).sum())
        if kind in ("token_mask", "span_mask"):
            assert np.array_equal(after.targets_BL, before.targets_BL)
            assert ((after.tokens_BL != before.tokens_BL).sum(axis=1) <= round(0.3 * 24)).all()
        else:
            inner = after.targets_BL[:, 1:] != NO_TARGET
            assert np.array_equal(after.targets_BL[:, :-1][inner], after.tokens_BL[:, 1:][inner])
    assert differing > 20


def test_evaluation_is_never_augmented(data: spec.Data) -> None:
    told = data.model_copy(update={"augment": spec.Augment(**EVERYTHING)})
    for split in ("train", "validation", "test"):
        plain, augmented = (EvaluationBatches(prepare.prepare(each).split(split, 24)) for each in (data, told))
        assert np.array_equal(plain.read(0, plain.size).tokens_BL, augmented.read(0, augmented.size).tokens_BL)


def test_what_is_prepared_does_not_hang_on_augmentation(data: spec.Data, prepared: Prepared) -> None:
    assert prepare.prepare(data.model_copy(update={"augment": spec.Augment(**EVERYTHING)})).folder == prepared.folder


@pytest.mark.parametrize("text", [ENGLISH, CHINESE])
def test_bpe_dropout_changes_the_pieces_and_not_the_text(tokenizer: Tokenizer, text: str) -> None:
    [ids] = tokenizer.encode([text])
    merges = Merges.of(tokenizer)
    forms = [merges.again(ids.tolist(), 0.4, iter(np.random.default_rng(seed).random(10**6).tolist())) for seed in range(8)]
    assert all(tokenizer.decode(again) == text for again in forms)
    assert sum(map(len, forms)) > 8 * len(ids)
    starts = Tables.of(tokenizer).starts(ids.astype(np.int64))
    for word in np.split(ids, starts[1:]):
        assert merges.again(word.tolist(), 0.0, iter([0.5] * 10**4)) == word.tolist()


def test_bpe_dropout_draws_as_the_tokenizers_library_does(prepared: Prepared, tokenizer: Tokenizer) -> None:
    engine = Engine.from_file(str(prepared.tokenizer_file))
    engine.model.dropout = 0.3
    [ids] = tokenizer.encode([" again"])
    merges, numbers = Merges.of(tokenizer), iter(np.random.default_rng(1).random(10**6).tolist())
    ours = Counter(tuple(merges.again(ids.tolist(), 0.3, numbers)) for _ in range(4000))
    theirs = Counter(tuple(engine.encode(" again").ids) for _ in range(4000))
    assert len(ours) > 2
    for pieces in set(ours) | set(theirs):
        assert abs(ours[pieces] - theirs[pieces]) < 5 * (ours[pieces] + theirs[pieces] + 10) ** 0.5


def test_words_are_left_out_and_what_follows_moves_up(tokenizer: Tokenizer) -> None:
    for key in range(20):
        said = rewritten(tokenizer, ENGLISH, key, word_dropout=0.3, count=20)
        assert set(re.findall(r"\w+", said)[:-1]) <= set(re.findall(r"\w+", ENGLISH))
        assert said.startswith("The")  # no space stands before it, and what is left reads as text
    assert len({rewritten(tokenizer, ENGLISH, key, word_dropout=0.3, count=20) for key in range(20)}) > 15
    assert len(rewritten(tokenizer, CHINESE, 3, word_dropout=0.3)) >= len(CHINESE)


def test_neighbours_change_places(tokenizer: Tokenizer) -> None:
    plain = ENGLISH.split()
    swapped = [rewritten(tokenizer, ENGLISH, key, word_swap=0.3) for key in range(20)]
    assert all(Counter("".join(said.split())) == Counter("".join(plain)) for said in swapped)
    assert len(set(swapped)) > 15
    assert sorted(rewritten(tokenizer, CHINESE, 1, word_swap=0.5)) == sorted(CHINESE)


@pytest.mark.parametrize(("text", "end"), [(ENGLISH, "."), (CHINESE, "？")])
def test_sentences_change_places_whole(tokenizer: Tokenizer, text: str, end: str) -> None:
    said = {rewritten(tokenizer, text, key, sentence_shuffle=1.0) for key in range(30)}
    assert len(said) > 3
    sentences = [part for part in text.replace("!", end).replace("?", end).split(end) if part]
    for each in said:
        assert Counter(each) == Counter(text)
        assert all(sentence.strip() in each for sentence in sentences)


def test_kinds_that_exclude_each_other() -> None:
    for augment, objective, message in [
        ({"token_mask": 0.1, "span_mask": 0.1}, {}, "both hide input tokens"),
        ({"token_mask": 0.1}, {"kind": "masked"}, "does itself; leave it out"),
        ({"word_dropout": 0.7}, {}, "word_dropout"),
    ]:
        with pytest.raises(RunFileError, match=message):
            spec.parse({"data": {"corpus": ["a"], "augment": augment, "objective": objective}, "train": {"duration": "1 steps"}})


def test_bpe_dropout_of_a_tokenizer_without_merges_is_refused(tmp_path: Path) -> None:
    ranks = tmp_path / "a.tiktoken"
    ranks.write_bytes(b"".join(base64.b64encode(bytes([byte])) + f" {byte}\n".encode() for byte in range(256)))
    with pytest.raises(DataError, match=r"needs the merges of a tokenizer.json of kind BPE"):
        Augmentation(spec.Augment(bpe_dropout=0.1), load(ranks))
