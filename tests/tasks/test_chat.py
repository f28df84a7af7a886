"""Conversations: trained on under every layout, and held with what was trained."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plait import events
from plait.cluster import local
from plait.cluster.nursery import Nursery
from plait.errors import UserError
from plait.tasks.answer import answer, compare, reply
from plait.tasks.chat import Conversation
from plait.tasks.generate import Sampling, generate
from plait.tasks.pretrain import train
from plait.tasks.trained import load
from plait.testing.failures import CutOff, CutOffAt
from plait.train.folder import KEPT
from plait.train.huggingface.folder import GENERATION
from tests.curves import Curves, assert_one_curve, spread
from tests.runs import WORDS, differences, slow, tiny

TALK: dict[str, Any] = {"data__chat": {}, "data__sequence": 64, "data__tokenizer": {"train": 266}}


@pytest.fixture
def curve(curves: Callable[..., Curves], conversations: Path) -> Curves:
    return curves(conversations, **{**TALK, "train__duration": "4 steps", "model__dropout": 0.1})


@pytest.mark.slow
def test_answers_draw_the_curve_of_one_process(curve: Curves) -> None:
    """Packed, so that rows have masks and unequal numbers of targets."""
    packed = {"data__chat": {"pack": True}}
    assert_one_curve(curve("alone", **packed), curve("spread", **packed, **spread({"replicas": 2, "shard": 2})))


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Conversations a tenth as long as a row, and as long as one, a row each."""
    chance = random.Random(2)
    path = tmp_path_factory.mktemp("uneven") / "uneven.jsonl"
    texts = [" ".join(chance.choices(WORDS, k=chance.choice((1, 1, 2, 2, 3, 12, 30)))) for _ in range(90)]
    path.write_text("\n".join(json.dumps({"prompt": "say", "answer": text}) for text in texts))
    return path


UNEVEN: dict[str, Any] = {"data__chat": {}, "data__sequence": 96, "train__batch": 12, "train__micro_batch": 3}
DEALT = [
    {"layout__replicas": 3, "balance__capacity": [5.0, 0.0, 7.0]},
    slow({"layout__replicas": 2, "balance__capacity": [1.0, 3.0], "train__duration": "40 steps"}),
    slow({"layout__replicas": 2, "layout__shard": 2}),
    slow({"layout__tensor": 2}),
    slow({"layout__pipeline": 2}),
    slow({"layout__context": 2}),
    slow({"layout__context": 2, "layout__context_by": "ulysses", "data__document_mask": True}),
    slow({"layout__context": 2, "layout__tensor": 2}),
    slow({"layout__replicas": 2, "sync": {"strategy": "server", "push_every": 1}}),
]


@pytest.mark.parametrize("changes", DEALT, ids=str)
def test_rows_of_unlike_lengths_draw_the_curve_of_rows_that_are_padded(
    curve: Curves, uneven: Path, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are dealt by cost and computed without their padding, wherever that can be."""
    settings = {**UNEVEN, "data__corpus": [str(uneven)], **{name: changes[name] for name in changes if name.startswith(("data", "train"))}}
    dealt = curve("dealt", **settings | changes)
    monkeypatch.setattr(local, "WORKER", "tests.padding:kept")
    assert_one_curve(curve("padded", **settings), dealt)


@pytest.mark.slow
def test_dropout_that_follows_the_padding_is_seen(curve: Curves, uneven: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {**UNEVEN, "data__corpus": [str(uneven)]}
    dealt = curve("dealt", **settings)
    monkeypatch.setattr(local, "WORKER", "tests.padding:forgotten")
    assert differences(dealt, curve("forgotten", **settings))[1] > 1e-4


def test_a_step_counts_the_tokens_of_answers(curve: Curves, tmp_path: Path, prepared: Path) -> None:
    assert all(step.tokens < 8 * 64 / 4 for step in curve("alone", data__chat={}, train__duration="2 steps"))
    assert (tmp_path / "alone" / "chat_template.jinja").exists()


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory, conversations: Path, prepared: Path, nursery: Nursery) -> Path:
    folder = tmp_path_factory.mktemp("talker") / "run"
    settings = {**TALK, "train__duration": "12 steps"}
    train(tiny(conversations, prepared, **settings, train__optimizer={"lr": 1e-2}), folder, nursery=nursery, quiet=True)
    return folder


def test_an_answer_goes_on_behind_all_that_was_said(talker: Path) -> None:
    trained = load(talker)
    conversation = Conversation(trained, Sampling(tokens=5, temperature=0), "Be brief.")
    first = "".join(conversation.say("say the cat"))
    assert [message["role"] for message in conversation.messages] == ["system", "user", "assistant"]
    prompt = trained.template.prompt([*conversation.messages, {"role": "user", "content": "again"}])
    expected = generate(trained.module, trained.tokenizer, [prompt], Sampling(tokens=5, temperature=0))[0].text
    assert "".join(conversation.say("again")) == expected.lstrip()
    conversation.forget()
    assert "".join(conversation.say("say the cat")) == first


def test_an_answer_ends_where_any_text_of_the_model_does(talker: Path, tmp_path: Path) -> None:
    """As a model says that comes from Hugging Face with several ends."""
    trained = load(talker)
    prompt = trained.template.prompt([{"role": "user", "content": "say the cat"}])
    [written] = generate(trained.module, trained.tokenizer, [prompt], trained.answering(Sampling(tokens=5, temperature=0)))
    assert reply(trained, "say the cat", None, tokens=5).answer == written.text.strip() != ""
    kept = shutil.copytree(talker, tmp_path / "run") / KEPT / GENERATION
    kept.parent.mkdir(exist_ok=True)
    kept.write_text(json.dumps({"eos_token_id": [written.tokens[0]]}))
    assert reply(load(tmp_path / "run"), "say the cat", None).answer == ""


def test_a_conversation_that_is_too_long_is_said_to_be_and_goes_on(talker: Path) -> None:
    conversation = Conversation(load(talker), Sampling(tokens=5, temperature=0))
    with pytest.raises(UserError, match=r"this conversation's \d+ tokens fill the model's context of 64; begin anew with /new"):
        next(conversation.say("word " * 60))
    assert conversation.messages == []
    assert list(conversation.say("say a dog")) is not None


@pytest.mark.slow
def test_the_newest_checkpoint_of_a_run_that_goes_on_answers(tmp_path: Path, conversations: Path, prepared: Path, nursery: Nursery) -> None:
    settings = {"data__chat": {}, "data__sequence": 64, "data__tokenizer": {"train": 266}, "train__duration": "6 steps"}
    run = tiny(conversations, prepared, **settings, checkpoint={"every": "2 steps", "keep": 3})
    with pytest.raises(CutOff):
        train(run, tmp_path / "run", listeners=[CutOffAt(2, kind=events.Saved)], nursery=nursery, quiet=True)
    conversation = Conversation(load(tmp_path / "run"), Sampling(tokens=2, temperature=0))
    before = conversation.trained.step
    train(run, tmp_path / "run", nursery=nursery, quiet=True)
    list(conversation.say("say the cat"))
    assert before < conversation.trained.step == 6
    newest = dict(load(tmp_path / "run").module.named_parameters())
    assert all(value.equal(newest[path]) for path, value in conversation.trained.module.named_parameters())


def test_answers_are_counted_as_squad_counts_them(talker: Path, tmp_path: Path) -> None:
    assert compare("The Cat!", ["a cat"]) == (1.0, 1.0)
    assert compare("black cat", ["dog", "a cat"]) == (0.0, pytest.approx(2 / 3))
    assert compare("", ["cat"]) == (0.0, 0.0)
    rows = [{"prompt": "say cat", "answer": "cat"}, {"prompt": "say cat", "answer": "cat"}, {"prompt": "say dog", "answer": "dog"}]
    (tmp_path / "questions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    told = answer(talker, tmp_path / "questions.jsonl", batch=2, tokens=4)
    assert (told.questions, told.baseline_exact) == (3, pytest.approx(2 / 3))
    trained = load(talker)
    prompt = trained.template.prompt([{"role": "user", "content": "say dog"}])
    assert told.told[2].said == generate(trained.module, trained.tokenizer, [prompt], Sampling(tokens=4, temperature=0))[0].text.strip()
    (tmp_path / "texts.jsonl").write_text('{"text": "x"}')
    with pytest.raises(UserError, match="has no 'messages'"):
        answer(talker, tmp_path / "texts.jsonl")
