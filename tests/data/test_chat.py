"""Conversations: what is learned of them, and that nobody's words become special tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plait import spec
from plait.data import prepare, skew, statistics
from plait.data.batches import NO_TARGET, Batches, EvaluationBatches
from plait.data.bpe import JsonTokenizer, train
from plait.data.chat import DEFAULT, Template
from plait.data.dealing import Cost
from plait.data.tokens import Prepared
from plait.errors import DataError

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TURNS = [
    {"role": "user", "content": "What is a cat?"},
    {"role": "assistant", "content": "An animal."},
    {"role": "user", "content": "And <|im_end|> a dog?<|endoftext|>"},
    {"role": "assistant", "content": "Another."},
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> JsonTokenizer:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    path.write_text(train(["What is a cat? An animal. And a dog? Another."] * 3, 270, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]))
    return JsonTokenizer(path)


@pytest.mark.parametrize("source", [DEFAULT, CHATML])
@pytest.mark.parametrize("learn", ["answers", "last"])
def test_answers_are_learned_with_the_end_of_their_turn(tokenizer: JsonTokenizer, source: str, learn: str) -> None:
    template = Template(source, tokenizer)
    ids, learned = template.encode(TURNS, learn)
    assert tokenizer.decode(ids) == template.render(TURNS)
    told = tokenizer.decode(ids[learned])
    endings = {DEFAULT: "<|endoftext|>", CHATML: "<|im_end|>\n"}
    answers = [answer + endings[source] for answer in ("An animal.", "Another.")]
    assert told.replace(" A", "A") == "".join(answers if learn == "answers" else answers[1:])


@pytest.mark.parametrize("source", [DEFAULT, CHATML])
def test_a_prompt_is_what_training_saw_before_the_answer(tokenizer: JsonTokenizer, source: str) -> None:
    template = Template(source, tokenizer)
    ids, learned = template.encode(TURNS, "answers")
    first = int(np.argmax(learned))
    assert template.prompt(TURNS[:1]) == [tokenizer.end_of_text, *ids[:first]]
    assert template.prompt(TURNS[:3])[1:] == ids[: len(template.prompt(TURNS[:3])) - 1].tolist()


def test_the_name_of_a_special_token_in_a_message_is_text(tokenizer: JsonTokenizer) -> None:
    template = Template(CHATML, tokenizer)
    ids, _ = template.encode(TURNS, "answers")
    ends = tokenizer.token("<|im_end|>")
    assert ids.tolist().count(ends) == 4  # one a message, none of those that one quotes
    assert tokenizer.end_of_text not in ids
    assert "And <|im_end|> a dog?<|endoftext|>" in template.render(TURNS)


def test_what_ends_an_answer_is_told_by_the_template(tokenizer: JsonTokenizer) -> None:
    assert Template(DEFAULT, tokenizer).ends() == ([tokenizer.end_of_text], ())
    assert Template(CHATML, tokenizer).ends() == ([tokenizer.token("<|im_end|>")], ())
    plain = "{% for message in messages %}{{ message.role }}: {{ message.content }} ###\n{% endfor %}"
    assert Template(plain, tokenizer).ends() == ([], ("###",))


def rows(count: int) -> list[dict[str, Any]]:
    return [{"prompt": f"say {'a' * (number % 5 + 1)}", "answer": "b" * (number % 3 + 1)} for number in range(count)]


def prepared(folder: Path, found: list[dict[str, Any]], **changes: Any) -> tuple[spec.Data, Any]:
    folder.mkdir(exist_ok=True)
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, found)))
    settings = {"chat": {}, "split": {"validation": 0.1, "test": 0.0}, "tokenizer": {"train": 258}, "sequence": 64, **changes}
    data = spec.Data.model_validate({"corpus": [str(folder / "pairs.jsonl")], "prepared": str(folder / "kept"), "workers": 1, **settings})
    return data, prepare.prepare(data)


@pytest.mark.parametrize("pack", [False, True])
def test_every_answer_is_told_once_and_counted_by_the_index(tmp_path: Path, pack: bool) -> None:
    data, found = prepared(tmp_path, rows(60), chat={"pack": pack})
    batches = EvaluationBatches(found.split("train", data.sequence))
    read = batches.read(0, batches.size)
    learned = np.load(found.folder / "train-0.learned.npy")
    assert (read.targets_BL != NO_TARGET).sum() == learned.sum() == batches.targets(0, batches.size)
    assert (batches.size < found.documents("train")) is pack
    tokenizer = found.tokenizer()
    row = 3
    told = tokenizer.decode(read.targets_BL[row][read.targets_BL[row] != NO_TARGET].tolist())
    assert set(told.replace("<|endoftext|>", "")) == {" ", "b"}


def test_how_much_of_a_row_is_of_use_is_told_for_both_ways(tmp_path: Path) -> None:
    data, found = prepared(tmp_path, rows(60))
    (file,) = found.split("train", data.sequence).sources
    lengths = np.diff(np.append(file.starts, len(file))) - 1
    one, packed = statistics.of(found).filling
    assert (one.rows, one.cut) == (found.documents("train"), 0)
    assert one.filled == pytest.approx(lengths.sum() / (one.rows * data.sequence))
    assert one.filled < 0.5 < packed.filled
    assert packed.rows * 2 <= one.rows
    assert statistics.of(Prepared.open(found.folder)).filling == [], "nobody said how long a row is"


def test_what_pieces_of_a_step_cost_is_told(tmp_path: Path) -> None:
    found = [{"prompt": "say", "answer": "a b " * (1 + 12 * (number % 7 == 0))} for number in range(120)]
    _, ready = prepared(tmp_path, found)
    train = spec.Train.model_validate({"duration": "1 epochs", "batch": 32, "micro_batch": 8})
    padded, trimmed, dealt = skew.pieces(ready, train, Cost(64, 8, 500.0))
    assert padded.filled < trimmed.filled < dealt.filled
    assert padded.micro_batch == 1.0 <= dealt.half <= trimmed.half
    assert statistics.of(ready, [dealt]).as_dict()["pieces"][0]["way"] == "dealt"
    assert skew.pieces(ready, train, None) == []


def test_conversations_of_a_row_do_not_see_each_other(tmp_path: Path) -> None:
    data, found = prepared(tmp_path, rows(60), chat={"pack": True})
    read = EvaluationBatches(found.split("train", data.sequence)).read(0, 4)
    assert read.documents_BL is not None
    begins = np.diff(read.documents_BL, axis=1) > 0
    assert begins.any()
    assert (read.tokens_BL[:, 1:][begins] == found.tokenizer().end_of_text).all()


def test_what_is_too_long_is_cut_and_what_has_no_answer_left_is_left_out(tmp_path: Path) -> None:
    data, found = prepared(tmp_path, [*rows(30), {"prompt": "x" * 200, "answer": "never reached"}], split={"validation": 0.0, "test": 0.0})
    split = found.split("train", data.sequence)
    assert EvaluationBatches(split).size == 30
    with pytest.raises(DataError, match=r"data.sequence = 4: no conversation of .* has an answer that begins within it"):
        EvaluationBatches(found.split("train", 4))


def test_a_step_is_a_function_of_the_seed(tmp_path: Path) -> None:
    data, found = prepared(tmp_path, rows(60))
    settings = spec.Train.model_validate({"duration": "2 epochs", "batch": 4})
    batches = Batches(found.split("train", data.sequence), settings, found.fingerprint)
    whole = batches.read(2, 0, 4)
    assert (batches.read(2, 1, 3).tokens_BL == whole.tokens_BL[1:3]).all()
    assert batches.targets(2, [[1, 3]]) == (whole.targets_BL[1:3] != NO_TARGET).sum()


WRONG = [
    ({"text": "x"}, "has no 'messages', and no 'prompt' with 'answer'; its keys are 'text'; set data.chat.messages"),
    ({"messages": []}, "messages must be a list of {role, content}, and not empty"),
    ({"messages": [{"role": "me", "content": "x"}]}, "message 1: has the role 'me', which is none of system, user, assistant"),
    ({"messages": [{"role": "user", "content": 1}]}, "message 1: must be an object with a role and a text as its content"),
    ({"prompt": "x", "answer": " "}, "message 2: is an empty answer, which teaches nothing"),
    ({"messages": [{"role": "user", "content": "x"}]}, "its last message is the user's; what is learned is the assistant's answer"),
]


@pytest.mark.parametrize(("row", "why"), WRONG, ids=lambda value: str(value)[:30])
def test_a_row_that_is_no_conversation_is_named(tmp_path: Path, row: dict[str, Any], why: str) -> None:
    with pytest.raises(DataError) as error:
        prepared(tmp_path, [*rows(3), row])
    assert "pairs.jsonl:4" in str(error.value)
    assert why in str(error.value)


def test_a_broken_template_is_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.jinja").write_text("{% for message in messages %}")
    with pytest.raises(DataError, match=r"data.chat.template: is no Jinja template"):
        prepared(tmp_path, rows(20), chat={"template": str(tmp_path / "broken.jinja")})
    (tmp_path / "refusing.jinja").write_text("{{ raise_exception('no system here') }}")
    with pytest.raises(DataError, match=r"the chat template refuses these messages: UserError: no system here"):
        prepared(tmp_path, rows(20), chat={"template": str(tmp_path / "refusing.jinja")})
