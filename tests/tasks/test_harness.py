"""lm-evaluation-harness, the real one, on a task of local files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("lm_eval")

from plait.cluster.nursery import Nursery
from plait.tasks.pretrain import train
from plait.tasks.trained import load
from tests.runs import WORDS, tiny

CHOICE = """
task: choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
target_delimiter: ""
metric_list: [{{metric: acc}}]
"""
WRITTEN = """
task: written
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{choices[answer]}}}}"
generation_kwargs: {{until: [" a"], max_gen_toks: 5, do_sample: false}}
metric_list: [{{metric: exact_match}}]
"""
PERPLEXITY = """
task: perplexity
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list: [{{metric: word_perplexity}}]
"""


def test_the_harness_asks_a_model_by_name(
    tmp_path: Path, corpus: Path, prepared: Path, nursery: Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import lm_eval
    from lm_eval.tasks import TaskManager

    from plait.tasks.harness import PlaitLM

    folder = tmp_path / "run"
    train(tiny(corpus, prepared, train__duration="3 steps"), folder, nursery=nursery, quiet=True)
    rows = [{"question": f"the {word}", "choices": [" sat", " on the mat"], "answer": 0, "text": " ".join(WORDS[:9])} for word in WORDS[:5]]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for name, task in (("choice", CHOICE), ("written", WRITTEN), ("perplexity", PERPLEXITY)):
        (tmp_path / f"{name}.yaml").write_text(task.format(file=tmp_path / "rows.jsonl"))
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    told = lm_eval.simple_evaluate(
        model="plait", model_args=f"path={folder}", tasks=["choice", "written", "perplexity"], task_manager=manager, batch_size=2
    )
    assert {"choice", "written", "perplexity"} == set(told["results"])
    trained = load(folder)
    sample = told["samples"]["choice"][0]
    for (likelihood, _), choice in zip(sample["filtered_resps"], rows[0]["choices"], strict=True):
        ids = [trained.tokenizer.end_of_text, *trained.tokenizer.encode([rows[0]["question"] + choice])[0].tolist()]
        count = len(trained.tokenizer.encode([rows[0]["question"] + choice])[0]) - len(trained.tokenizer.encode([rows[0]["question"]])[0])
        with torch.no_grad():
            log_p = trained.module(torch.tensor([ids[:-1]]))[0].log_softmax(-1)
        expected = sum(float(log_p[place - 1, ids[place]]) for place in range(len(ids) - count, len(ids)))
        assert likelihood == pytest.approx(expected, rel=1e-4)
    whole = PlaitLM(str(folder))
    text = " ".join(WORDS * 3)
    ids = trained.tokenizer.encode([text])[0].tolist()
    assert len(ids) > whole.max_length

    class Request:
        args = (text,)

    assert whole.loglikelihood_rolling([Request()])[0] == pytest.approx(-5.4 * len(ids), rel=0.2)
