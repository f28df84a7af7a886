"""The endpoint: what OpenAI's clients send and read, many at once, and who is let in."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from plait.errors import UserError
from plait.tasks.generate import Sampling, generate
from plait.tasks.queueing import Queueing
from plait.tasks.trained import Trained, load

pytest.importorskip("fastapi")
pytest.importorskip("httpx2")

from fastapi.testclient import TestClient

from plait.cluster.nursery import Nursery
from plait.tasks.listening import check_address
from plait.tasks.pretrain import train
from plait.tasks.serve import application
from tests.runs import tiny


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, corpus: Path, prepared: Path, nursery: Nursery) -> Trained:
    folder = tmp_path_factory.mktemp("served") / "run"
    train(tiny(corpus, prepared, data__sequence=64, train__duration="3 steps"), folder, nursery=nursery, quiet=True)
    return load(folder)


@pytest.fixture(scope="module")
def client(trained: Trained) -> Iterator[Any]:
    with TestClient(application(trained, "tiny", "secret"), headers={"Authorization": "Bearer secret"}) as client:
        yield client


def alone(trained: Trained, prompt: str | list[int], **settings: Any) -> str:
    return generate(trained.module, trained.tokenizer, [prompt], Sampling(**settings))[0].text


def events(text: str) -> list[Any]:
    told = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert told[-1] == "[DONE]"
    return [json.loads(each) for each in told[:-1]]


def test_a_completion(client: Any, trained: Trained) -> None:
    answer = client.post("/v1/completions", json={"model": "tiny", "prompt": "the cat", "max_tokens": 6, "temperature": 0}).json()
    (choice,) = answer["choices"]
    assert choice["text"] == alone(trained, "the cat", tokens=6, temperature=0)
    assert choice["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 6
    two = client.post("/v1/completions", json={"prompt": ["the cat", "a dog"], "max_tokens": 4, "temperature": 0}).json()
    assert [each["text"] for each in two["choices"]] == [alone(trained, each, tokens=4, temperature=0) for each in ("the cat", "a dog")]


def test_a_streamed_completion_is_the_whole_one(client: Any) -> None:
    asked = {"prompt": "the cat", "max_tokens": 8, "temperature": 0.9, "seed": 3}
    whole = client.post("/v1/completions", json=asked).json()["choices"][0]["text"]
    streamed = events(client.post("/v1/completions", json={**asked, "stream": True}).text)
    assert "".join(each["choices"][0]["text"] for each in streamed) == whole
    assert streamed[-1]["choices"][0]["finish_reason"] == "length"


def test_a_chat(client: Any, trained: Trained) -> None:
    messages = [{"role": "user", "content": "the cat"}]
    asked = {"messages": messages, "max_tokens": 6, "temperature": 0}
    answer = client.post("/v1/chat/completions", json=asked).json()
    expected = alone(trained, trained.template.prompt(messages), tokens=6, temperature=0)
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": expected.strip()}
    streamed = events(client.post("/v1/chat/completions", json={**asked, "stream": True}).text)
    assert streamed[0]["choices"][0]["delta"]["role"] == "assistant"
    assert "".join(each["choices"][0]["delta"].get("content", "") for each in streamed) == expected


def test_a_crowd_gets_what_each_alone_would(client: Any, trained: Trained) -> None:
    prompts = ["the cat", "a", "under the tree and then", "home"] * 3
    asked = [{"prompt": prompt, "max_tokens": 5 + place, "temperature": 0} for place, prompt in enumerate(prompts)]
    with ThreadPoolExecutor(len(asked)) as pool:
        answers = list(pool.map(lambda each: client.post("/v1/completions", json=each).json()["choices"][0]["text"], asked))
    assert answers == [alone(trained, each["prompt"], tokens=each["max_tokens"], temperature=0) for each in asked]


WRONG = [
    ("/v1/completions", {"prompt": "x", "n": 2}, 400, "n: input should be less than or equal to 1"),
    ("/v1/completions", {"prompt": "x", "logprobs": 2}, 400, "logprobs: extra inputs are not permitted"),
    ("/v1/completions", {"prompt": "word " * 99}, 400, "more than the model's context of 64"),
    ("/v1/chat/completions", {"messages": []}, 400, "messages must be a list"),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}], "tools": []}, 400, "tools: extra inputs"),
]


@pytest.mark.parametrize(("path", "asked", "status", "why"), WRONG, ids=lambda value: str(value)[:30])
def test_what_is_wrong_or_not_built_is_refused(client: Any, path: str, asked: dict[str, Any], status: int, why: str) -> None:
    answer = client.post(path, json=asked)
    assert answer.status_code == status
    assert why in answer.json()["error"]["message"]


def test_strangers_are_kept_out(client: Any) -> None:
    for headers in ({"Authorization": "Bearer wrong"}, {"Authorization": ""}):
        answer = client.get("/v1/models", headers=headers)
        assert (answer.status_code, answer.json()["error"]["type"]) == (401, "authentication_error")
    assert client.get("/v1/models").json()["data"][0]["id"] == "tiny"
    for host in ("127.0.0.1", "::1", "localhost"):
        check_address(host, None)
    check_address("0.0.0.0", "secret")
    with pytest.raises(UserError, match=r"--host 0.0.0.0: is open to other machines, and no secret is set; set PLAIT_SECRET"):
        check_address("0.0.0.0", None)


def test_who_has_left_is_written_for_no_more(trained: Trained) -> None:
    queueing = Queueing(trained.module, trained.tokenizer)
    asked = queueing.ask("the cat", Sampling(tokens=60, temperature=0.9))
    asked.left = True
    queueing.close()
    assert asked.text is not None
    assert len(asked.text.tokens) < 60
