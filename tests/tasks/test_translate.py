"""A translator learns a small language, and is measured beside what copies and what looks sentences up; who is none is told so."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from plait import cli, events, spec
from plait.cluster.nursery import Nursery
from plait.data import prepare
from plait.data.batches import EvaluationBatches
from plait.data.scoring import Scorer
from plait.errors import UserError
from plait.model import seq2seq
from plait.model.build import build
from plait.model.seq2seq import Seq2Seq
from plait.replica.assemble import assemble
from plait.replica.compute import Compute, Sums
from plait.tasks.beam import Beams, search
from plait.tasks.evaluate import evaluate
from plait.tasks.neighbours import Neighbours
from plait.tasks.pretrain import train
from plait.tasks.translate import load_translator
from plait.train.duties import measure
from tests.runs import T5_PAIRS, history_of, pairs, slow, tiny, write_pairs

LEARNING: dict[str, Any] = {
    **T5_PAIRS,
    "model__width": 64,
    "data__split": {"validation": 0.1, "test": 0.1},
    "train__precision": "fp32",
    "train__duration": "150 steps",
    "train__batch": 16,
    "train__micro_batch": 16,
    "train__optimizer": {"name": "adamw", "lr": 5e-3},
    "train__label_smoothing": 0.0,
    "train__evaluate_every": "75 steps",
    "train__evaluate_translations": 6,
}


@pytest.fixture(scope="module")
def translator(tmp_path_factory: pytest.TempPathFactory, nursery: Nursery) -> Path:
    folder = tmp_path_factory.mktemp("translator")
    return train(tiny(write_pairs(folder, 600), folder / "prepared", **LEARNING), folder / "run", nursery=nursery, quiet=True).folder


def test_it_translates_what_it_has_not_seen(translator: Path) -> None:
    unseen = [pair for pair in pairs(640)[600:] if len(pair[0].split()) <= 5][:12]
    found = load_translator(translator, tokens=60).translate([source for source, _ in unseen])
    scores = Scorer([target for _, target in unseen]).scores(found)
    copied = Scorer([target for _, target in unseen]).scores([source for source, _ in unseen])
    assert scores.chrf > 40
    assert copied.chrf < 10
    assert scores.bleu > copied.bleu


def test_sentences_are_translated_amid_training(translator: Path) -> None:
    first, last = (event.scores for event in history_of(translator) if isinstance(event, events.Evaluated))
    assert set(last) == {"bleu", "chrf"}
    assert last["chrf"] > first["chrf"] > 0


@pytest.mark.parametrize(
    "layouts",
    [
        [{"replicas": 2, "tensor": 2}],
        slow([{"replicas": 2}, {"pipeline": 2, "schedule": "interleaved"}, {"context": 2, "tensor": 2}, {"pipeline": 2, "shard": 2}]),
        slow([{"shard": 2, "zero": zero} for zero in (1, 2, 3)]),
    ],
    ids=str,
)
def test_they_are_the_same_whatever_the_model_is_spread_over(
    translator: Path, tmp_path: Path, nursery: Nursery, layouts: list[dict[str, Any]]
) -> None:
    """Two steps further, in fp64."""
    settings = {key: value for key, value in LEARNING.items() if not key.startswith("model__")} | {
        "finetune__from": str(translator),
        "model": {},
        "data__tokenizer": None,
        "data__prepared": str(translator.parent / "prepared"),
        "train__precision": "fp64",
        "train__duration": "2 steps",
        "train__evaluate_every": "1 steps",
        "train__evaluate_translations": 9,
    }
    said = []
    for layout in [{}, *layouts]:
        run = tiny(translator.parent / "pairs.tsv", translator.parent / "prepared", **settings, layout=layout)
        folder = train(run, tmp_path / str(len(said)), nursery=nursery, quiet=True).folder
        said.append([event.scores for event in history_of(folder) if isinstance(event, events.Evaluated)])
    assert all(scores["chrf"] > 20 for scores in said[0])
    assert said[0][0] != said[0][1]
    for scores in said[1:]:
        assert scores == said[0]


def loss_of(corpus: Path, prepared: Path, pack: bool) -> tuple[int, Sums]:
    """Rows of a training split, and its loss by a model that has learned nothing."""
    run = tiny(corpus, prepared, **{**T5_PAIRS, "data__objective": {"kind": "translate", "pack": pack}})
    found = prepare.prepare(run.data)
    device = torch.device("cpu")
    batches = EvaluationBatches(found.split("train", 32))
    return batches.size, measure(Compute(run, assemble(run, found.vocabulary, device), device), batches, [[0, batches.size]], 8)


def test_packed_pairs_do_not_see_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same pairs, each in a row of its own, have the same loss, in fp64; and not where targets see all of the source."""
    corpus = write_pairs(tmp_path, 60)
    (rows, together), (pairs_, apart) = (loss_of(corpus, tmp_path / "prepared", pack) for pack in (True, False))
    assert rows < pairs_ / 2
    assert together.targets == apart.targets
    assert together.loss == pytest.approx(apart.loss, rel=1e-12)
    monkeypatch.setattr(seq2seq, "_seen", lambda source_BS, *_: (source_BS >= 0)[:, None, None])
    assert abs(loss_of(corpus, tmp_path / "prepared", True)[1].loss / apart.loss - 1) > 1e-6


def test_several_sources_at_once_are_searched_as_one_at_a_time() -> None:
    model = build(spec.Model(family="t5", layers=1, width=16, heads=2), 40, 16, seed=1, dtype=torch.float64)
    assert isinstance(model, Seq2Seq)
    sources = [[number % 37 + 1 for number in range(start, start + length)] + [0] for start, length in enumerate((3, 9, 1, 6, 9, 2))]
    for settings in (Beams(3, 0.6, 12), Beams(1, 1.0, 5)):
        together = search(model, sources, 0, 0, settings, batch=4)
        apart = [search(model, [source], 0, 0, settings)[0] for source in sources]
        assert [each.tokens for each in together] == [each.tokens for each in apart]
        assert [each.score for each in together] == pytest.approx([each.score for each in apart], rel=1e-9)


def test_the_nearest_shares_the_rarest_n_grams() -> None:
    texts = ["save the file", "open the file", "delete all pages", "save the chapter"]
    neighbours = Neighbours(texts)
    assert [neighbours.nearest(text) for text in texts] == [0, 1, 2, 3]
    assert neighbours.nearest("Delete a page!") == 2
    assert neighbours.nearest("保存") == 0


def test_who_is_no_translator_is_told_so(translator: Path, tmp_path: Path, corpus: Path, prepared: Path, nursery: Nursery) -> None:
    train(tiny(corpus, prepared, train__duration="1 steps"), tmp_path / "writer", nursery=nursery, quiet=True)
    with pytest.raises(UserError, match=r'is no translator: model.family = "llama" has learned data.objective.kind = "causal"'):
        load_translator(tmp_path / "writer")
    with pytest.raises(UserError, match=r"--pair fr: is none of corpus"):
        load_translator(translator, pair="fr")


def test_a_line_that_is_too_long_follows_the_policy(translator: Path) -> None:
    lines = ["the cat", "", "mat " * 80]
    cut = load_translator(translator, beams=1, tokens=8)
    assert cut.translate(lines)[1] == ""
    assert cut.longer == 1
    assert load_translator(translator, beams=1, tokens=8, longer="skip").translate(lines)[2] == ""
    with pytest.raises(UserError, match=r"line 3: its \d+ tokens are more than the 31 of a source"):
        load_translator(translator, longer="fail").translate(lines)


def test_a_split_is_measured_beside_what_needs_no_model(translator: Path) -> None:
    [compared] = evaluate(translator, "test", limit=6, beams=Beams(2, 1.0, 60)).translations
    assert compared.pair == "corpus"
    assert compared.sentences == 6
    assert compared.copied.chrf < compared.nearest.chrf
    assert "nrefs:1" in compared.signature
    assert evaluate(translator, "test", limit=2, loss_only=True).translations == []


def test_the_command_translates_files_and_arguments(
    translator: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["plait", "translate", str(translator), *words])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        return (int(exit_.value.code or 0), *capsys.readouterr())

    given = [("the cat", "TAC EHT"), ("a dog ran", "NAR A GOD"), ("", "")]
    for side, name in enumerate(("source", "target")):
        (tmp_path / f"{name}.txt").write_text("".join(f"{pair[side]}\n" for pair in given))
    files = ["--file", str(tmp_path / "source.txt"), "--out", str(tmp_path / "out.txt"), "--against", str(tmp_path / "target.txt")]
    code, _, told = run(*files, "--beams", "2", "--tokens", "20", "--batch", "1")
    assert code == 0, told
    assert "copying the source" in told
    lines = (tmp_path / "out.txt").read_text().split("\n")
    assert [bool(line) for line in lines] == [True, True, False, False]
    code, shown, _ = run("the cat", "--beams", "2", "--tokens", "20")
    assert (code, shown) == (0, f"{lines[0]}\n")
    monkeypatch.setattr(sys, "stdin", io.StringIO("the cat\na dog ran\n"))
    assert run("--beams", "2", "--tokens", "20")[1].split("\n")[:2] == lines[:2]
    (tmp_path / "target.txt").write_text("one\n")
    assert run(*files)[0::2] == (
        2,
        f"plait: --against {tmp_path / 'target.txt'}: has 1 lines and {tmp_path / 'source.txt'} 3; the two must belong "
        "together, line by line\n",
    )
    assert run("x", "--out", "y")[2] == "plait: --out is for the lines of a --file; name one\n"
