"""Encoders with the head of a task go to Hugging Face and come back unchanged; and what they tell of texts is what theirs tell."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from plait.cluster.nursery import Nursery
from plait.errors import CheckpointError, UserError
from plait.tasks.answer import answer, reply
from plait.tasks.classify import classify, frame_of
from plait.tasks.huggingface.exporting import export_model
from plait.tasks.huggingface.importing import import_model
from plait.tasks.pretrain import train
from plait.tasks.spans import find
from plait.tasks.trained import Trained, load
from plait.train.folder import read_run
from tests.runs import tiny
from tests.tasks import foreign

transformers = pytest.importorskip("transformers", reason="needs the extra [bench]")
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

HEADS: dict[str, tuple[str, dict[str, Any]]] = {
    "classify": ("SequenceClassification", {"num_labels": 3, "id2label": {0: "bad", 1: "fine", 2: "so so"}}),
    "regress": ("SequenceClassification", {"num_labels": 1, "problem_type": "regression"}),
    "tag": ("TokenClassification", {"num_labels": 4}),
    "answer": ("QuestionAnswering", {}),
}


@pytest.fixture(scope="module")
def headed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A folder with a random BERT that has a head, as transformers saves it; and the run that it becomes."""
    tokenizer, made = foreign.tokenizer_json(), dict[str, tuple[Path, Path]]()

    def make(kind: str) -> tuple[Path, Path]:
        if kind not in made:
            folder = tmp_path_factory.mktemp("headed") / kind
            head, settings = HEADS[kind]
            torch.manual_seed(0)
            model = getattr(transformers, f"BertFor{head}")(transformers.BertConfig(**foreign.MODELS["bert"][1], **settings))
            for parameter in model.parameters():
                parameter.data.add_(torch.randn_like(parameter) * 0.1)
            model.save_pretrained(folder)
            (folder / "tokenizer.json").write_text(tokenizer)
            import_model(folder, folder.with_name("ours"))
            made[kind] = folder, folder.with_name("ours")
        return made[kind]

    return make


def theirs(kind: str, folder: Path) -> Any:
    return getattr(transformers, f"AutoModelFor{HEADS[kind][0]}").from_pretrained(folder, attn_implementation="eager").eval()


@torch.no_grad()
def outputs_of(model: Any, kind: str) -> torch.Tensor:
    """Of two rows of two texts each, the second one padded: of a sample, or of the places that are no padding."""
    tokens = torch.randint(1, 272, (2, 20), generator=torch.Generator().manual_seed(1))
    segments = (torch.arange(20) > 8).long().expand(2, -1)
    seen = torch.ones_like(tokens)
    seen[1, 15:] = 0
    if isinstance(model, Trained):
        found = model.module(tokens, seen - 1, segments_BL=segments)
    else:
        given = model(tokens, attention_mask=seen, token_type_ids=segments)
        found = torch.stack([given.start_logits, given.end_logits], -1) if kind == "answer" else given.logits
        found = found[:, None] if found.ndim == 2 else found
    return found if found.shape[1] == 1 else found[seen.bool()]


@pytest.mark.parametrize("kind", HEADS)
def test_a_head_comes_and_goes_unchanged(kind: str, headed: Any, tmp_path: Path) -> None:
    source, ours = headed(kind)
    objective = read_run(ours).data.objective
    assert objective.kind == kind
    assert objective.labels == {"classify": ["bad", "fine", "so so"], "tag": [f"LABEL_{number}" for number in range(4)]}.get(kind)
    expected = outputs_of(theirs(kind, source), kind)
    torch.testing.assert_close(outputs_of(load(ours, "cpu"), kind), expected, atol=1e-4, rtol=0)
    exported = export_model(ours, tmp_path / "back")
    torch.testing.assert_close(outputs_of(theirs(kind, exported.folder), kind), expected, atol=1e-6, rtol=0)
    again = import_model(exported.folder, tmp_path / "again")
    assert again.next.startswith(f"next: plait {'answer' if kind == 'answer' else 'classify'} {tmp_path / 'again'} ")
    assert read_run(tmp_path / "again").data.objective == objective


def test_transformers_tells_of_a_text_what_plait_does(headed: Any, tmp_path: Path) -> None:
    """The exported tokenizer puts its tokens around a text as the model was trained to read it."""
    _, ours = headed("classify")
    export_model(ours, tmp_path / "back")
    texts = ["the cat sat", "a bird flew over the house and away again"]
    pipeline = transformers.pipeline("text-classification", str(tmp_path / "back"), device="cpu")
    for one, other in zip(pipeline(texts), classify(load(ours, "cpu"), texts), strict=True):
        assert (one["label"], one["score"]) == (other.label, pytest.approx(other.probability, abs=1e-5))


@pytest.mark.parametrize("passage", ["the cat sat on the mat and the dog ran home", "a bird flew over the house and away again " * 12])
def test_the_best_span_of_all_windows_is_found(headed: Any, passage: str) -> None:
    """Against each span tried by itself."""
    _, ours = headed("answer")
    trained, question, best = load(ours, "cpu"), "who flew ?", (-1e9, "")
    ids, edges = trained.tokenizer.located(passage)
    [asked] = trained.tokenizer.encode([question])
    frame, none = frame_of(trained), 1e9
    windows = list(frame.windows(len(asked), len(ids), None))
    assert (len(windows) > 3) == (len(passage) > 100)
    for first, end in windows:
        row = torch.from_numpy(frame.asked(asked, ids[first:end]))[None]
        lead = len(asked) + 2
        scores = trained.module(row, segments_BL=(torch.arange(row.shape[1]) >= lead).long()[None])[0].detach()
        none = min(none, float(scores[0].sum()))
        for low in range(end - first):
            for high in range(low, min(low + 5, end - first)):
                score = float(scores[lead + low, 0] + scores[lead + high, 1])
                text = passage[edges[first + low, 0] : edges[first + high, 1]].strip()
                best = max(best, (score, text))
    [span] = find(trained, [(question, passage)], longest=5)
    assert span.answer == best[1] == passage[span.first : span.end]
    assert span.score == pytest.approx(best[0] - none, abs=1e-4)
    assert find(trained, [(question, passage)], none=span.score + 1)[0].answer == ""


def test_a_files_questions_are_scored_as_squad_scores_them(headed: Any, tmp_path: Path) -> None:
    _, ours = headed("answer")
    trained, passage = load(ours, "cpu"), "cat dog bird sat on mat under tree"
    told = reply(trained, "who sat ?", passage).answer
    rows = [
        {"answers": {"text": ["cat dog", told], "answer_start": [0, passage.index(told)]}},  # the better one counts
        {"answers": {"text": [], "answer_start": []}},
    ]
    file = tmp_path / "questions.jsonl"
    file.write_text("\n".join(json.dumps({"question": "who sat ?", "context": passage, **row}) for row in rows))
    always, sometimes = answer(ours, file, device="cpu"), answer(ours, file, none=1e9, device="cpu")
    assert [each.exact for each in always.told] == [1.0, 0.0]
    assert [(each.said, each.exact) for each in sometimes.told] == [("", 0.0), ("", 1.0)]
    with pytest.raises(UserError, match="--passage is missing"):
        reply(trained, "who sat ?", None)


def test_a_new_head_is_tuned_from_a_folder_of_theirs(
    saved: foreign.Saved, corpus: Path, prepared: Path, nursery: Nursery, tmp_path: Path
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(json.dumps({"text": f"the cat {'sat' * (number % 3)}", "label": number % 3}) for number in range(60)))
    settings = {
        "finetune__from": str(saved("bert")),
        "model": {},
        "data__tokenizer": None,
        "data__sequence": None,
        "data__objective": {"kind": "classify"},
        "train__duration": "2 steps",
    }
    train(tiny(rows, prepared, **settings), tmp_path / "tuned", nursery=nursery, quiet=True)
    assert read_run(tmp_path / "tuned").data.objective.labels == ["0", "1", "2"]
    mean = tmp_path / "mean"
    train(tiny(rows, prepared, **{**settings, "model": {"pooling": "mean"}}), mean, nursery=nursery, quiet=True)
    with pytest.raises(CheckpointError, match=r'model.pooling = "mean": a BERT at Hugging Face is without it'):
        export_model(mean, tmp_path / "nowhere")
