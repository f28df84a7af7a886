"""plait compare: the same run under several strategies, its figures by their definition, and a page that stands alone."""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from plait import events, spec
from plait.cluster.nursery import Nursery
from plait.errors import CheckpointError, DataError, RunFileError, UserError, WorkerFailed
from plait.proof import compare as comparing
from plait.proof import report
from plait.proof.comparison import Comparison, Spread, Trial
from plait.proof.verdict import verdict
from plait.tasks import pretrain
from tests.runs import history_of, steps_of, tiny

SYNC = ["diloco", "synchronous", "asynchronous"]
Make = Callable[..., spec.Run]


@pytest.fixture(scope="module")
def make(corpus: Path, prepared: Path) -> Make:
    def run(**changes: Any) -> spec.Run:
        settings = {"layout__replicas": 2, "train__duration": "8 steps", "data__split": {"validation": 0.2}, **changes}
        return tiny(corpus, prepared, **settings)

    return run


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compared")


@pytest.fixture(scope="module")
def compared(make: Make, out: Path, nursery: Nursery) -> Comparison:
    comparison = comparing.compare(make(), SYNC, out, compress=["int8"], nursery=nursery)
    report.write(comparison, out, "plait compare run.toml")
    return comparison


@pytest.fixture(scope="module")
def record(compared: Comparison, out: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((out / "compare.json").read_text())
    return loaded


def by_name(compared: Comparison) -> dict[str, dict[str, float]]:
    return {result.variant.name: {name: spread.mean for name, spread in result.numbers.items()} for result in compared.results}


def test_every_strategy_has_the_same_tokens_and_the_reference_stands_first(compared: Comparison) -> None:
    numbers = by_name(compared)
    assert list(numbers) == ["allreduce", *SYNC, "allreduce/int8"]
    assert {each["steps"] for each in numbers.values()} == {8}
    assert len({each["tokens"] for each in numbers.values()}) == 1
    assert all(result.why is None for result in compared.results)


def test_what_draws_one_curve_ends_at_one_loss(compared: Comparison) -> None:
    numbers = by_name(compared)
    assert numbers["synchronous"]["loss"] == pytest.approx(numbers["allreduce"]["loss"], rel=1e-9)
    assert abs(numbers["diloco"]["loss"] - numbers["allreduce"]["loss"]) > 1e-6
    assert abs(numbers["asynchronous"]["loss"] - numbers["allreduce"]["loss"]) > 1e-6


def test_figures_are_those_of_the_journal(compared: Comparison, out: Path) -> None:
    for result in compared.results:
        steps = steps_of(result.trials[0].folder)
        numbers = by_name(compared)[result.variant.name]
        assert numbers["sent"] == sum(sum(step.sent.values()) for step in steps)
        assert numbers["tokens"] == sum(step.tokens for step in steps)
        assert numbers["train_loss"] == pytest.approx(steps[-1].loss)
        assert numbers["seconds"] > 0


def test_int8_sends_a_quarter_of_what_fp32_would(compared: Comparison) -> None:
    """The run is fp64, of which int8 is an eighth; buckets this small carry scales and padding too."""
    int8 = next(result for result in compared.results if result.variant.name == "allreduce/int8")
    assert int8.ratios["sent"].mean < 0.2


def test_staleness_is_told_of_pushes_applied_as_they_come_alone(record: dict[str, Any]) -> None:
    staleness = {variant["name"]: variant["trials"][0]["staleness"] for variant in record["variants"]}
    assert sum(staleness["asynchronous"].values()) == 8 * 4, "each push of each step once: 8 sequences in pieces of 2"
    assert staleness["allreduce"] == staleness["diloco"] == {}


def test_the_record_has_each_figure_and_nothing_that_json_lacks(record: dict[str, Any], out: Path) -> None:
    json.loads((out / "compare.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert record["reference"] == "allreduce"
    for variant in record["variants"]:
        assert {"loss", "perplexity", "accuracy", "seconds", "sent", "waited", "wait_p50", "wait_p95", "wait_longest"} <= set(
            variant["mean"]
        )
        assert len(variant["trials"][0]["curve"]["loss"]) == 8
        assert variant["sync"]["strategy"] in ("allreduce", "diloco", "server")


def test_the_page_stands_alone_and_is_well_formed(compared: Comparison, out: Path) -> None:
    text = (out / "compare.html").read_text()
    page = ElementTree.fromstring(text.removeprefix("<!DOCTYPE html>"))
    outside = [value for element in page.iter() for name, value in element.items() if name in ("src", "href") and "//" in value]
    assert outside == []
    headings = ["".join(element.itertext()) for element in page.iter() if element.tag.endswith("}h2")]
    assert headings == ["Outcome", "Loss", "Communication", "Staleness", "Settings", "Again"]
    rows = ["".join(element.itertext()) for element in page.iter() if element.tag.endswith("}th") and element.get("scope") == "row"]
    for result in compared.results:
        assert rows.count(result.variant.name) == 3, "outcome, communication, settings"


def test_what_has_ended_is_not_trained_again(compared: Comparison, make: Make, out: Path, nursery: Nursery) -> None:
    journals = {path: path.read_bytes() for path in out.glob("runs/*/events.jsonl")}
    again = comparing.compare(make(), SYNC, out, compress=["int8"], nursery=nursery)
    assert {path: path.read_bytes() for path in journals} == journals
    assert by_name(again) == by_name(compared)


def test_a_comparison_of_other_settings_is_refused_before_anything_starts(compared: Comparison, make: Make, out: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds another run \(train\.batch differ\).*another --out"):
        comparing.compare(make(train__batch=4), SYNC, out)


def test_runs_that_exist_are_compared_as_they_are(compared: Comparison, out: Path) -> None:
    folders = [out / "runs" / "diloco-seed7", out / "runs" / "allreduce-seed7"]
    existing = comparing.compare_runs(folders)
    assert [result.variant.name for result in existing.results] == ["allreduce-seed7", "diloco-seed7"], "what all-reduces is the reference"
    assert by_name(existing)["diloco-seed7"] == by_name(compared)["diloco"]
    assert "not comparable" not in " ".join(verdict(existing))
    ElementTree.fromstring(report.page(existing, "plait compare --runs").removeprefix("<!DOCTYPE html>"))


def test_runs_of_other_budgets_are_not_compared(compared: Comparison, make: Make, out: Path, tmp_path: Path, nursery: Nursery) -> None:
    pretrain.train(make(train__duration="6 steps"), tmp_path / "shorter", nursery=nursery, quiet=True)
    with pytest.raises(UserError, match=r"(?s)not comparable: their budgets of tokens differ.*shorter: "):
        comparing.compare_runs([out / "runs" / "allreduce-seed7", tmp_path / "shorter"])
    with pytest.raises(UserError, match="two folders or more"):
        comparing.compare_runs([tmp_path / "shorter"])


@pytest.mark.slow
def test_seeds_have_a_spread_and_are_compared_each_with_its_own(make: Make, tmp_path: Path, nursery: Nursery) -> None:
    told: list[Trial] = []
    comparison = comparing.compare(
        make(train__duration="4 steps"), ["local_sgd"], tmp_path / "out", seeds=2, told=told.append, nursery=nursery
    )
    assert [(trial.variant, trial.seed) for trial in told] == [("allreduce", 7), ("allreduce", 8), ("local_sgd", 7), ("local_sgd", 8)]
    reference, local = comparison.results
    losses = [[score.loss for _, score in result.ended] for result in (reference, local)]
    assert local.differences["loss"].mean == pytest.approx((losses[1][0] - losses[0][0] + losses[1][1] - losses[0][1]) / 2)
    assert reference.numbers["loss"].deviation == pytest.approx(abs(losses[0][0] - losses[0][1]) / 2**0.5)
    assert "One seed" not in report.page(comparison, "plait compare")


def test_a_variant_that_fails_is_reported_and_the_others_go_on(
    make: Make, tmp_path: Path, nursery: Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = pretrain.train

    def train_but_diloco(run: spec.Run, *arguments: Any, **named: Any) -> pretrain.Result:
        if run.sync.mode == "diloco":
            raise WorkerFailed("replica 1 died <again>")
        return train(run, *arguments, **named)

    monkeypatch.setattr(pretrain, "train", train_but_diloco)
    comparison = comparing.compare(make(train__duration="4 steps"), ["diloco", "local_sgd"], tmp_path / "out", nursery=nursery)
    assert [(result.variant.name, result.why) for result in comparison.results] == [
        ("allreduce", None),
        ("diloco", "replica 1 died <again>"),
        ("local_sgd", None),
    ]
    assert "did not end: replica 1 died &lt;again&gt;" in report.page(comparison, "plait compare")
    with pytest.raises(WorkerFailed, match="diloco: replica 1 died"):
        comparing.check_ended(comparison)


def test_a_loss_that_is_not_finite_is_told_and_drawn_as_nothing(compared: Comparison) -> None:
    diloco = next(result for result in compared.results if result.variant.name == "diloco")
    trial = diloco.trials[0]
    assert trial.figures is not None
    assert trial.score is not None
    broken = replace(
        trial,
        figures=replace(trial.figures, train_loss=None, curve=replace(trial.figures.curve, loss=[math.nan] * 8)),
        score=replace(trial.score, loss=math.nan, perplexity=math.nan),
    )
    known = {name: spread for name, spread in diloco.numbers.items() if name not in ("loss", "perplexity", "train_loss")}
    result = replace(diloco, trials=[broken], numbers=known, differences={}, ratios={**diloco.ratios, "seconds": Spread(0.1)})
    comparison = replace(compared, results=[compared.reference, result])
    ElementTree.fromstring(report.page(comparison, "plait compare").removeprefix("<!DOCTYPE html>"))
    json.dumps(report.as_dict(comparison, "plait compare"), allow_nan=False)
    assert "at a validation loss that is not finite" in verdict(comparison)[0]


def test_an_emulated_link_is_labelled(make: Make, tmp_path: Path, nursery: Nursery) -> None:
    run = make(train__duration="4 steps", sync={"link": {"latency": 0.1, "bandwidth": 500.0}})
    comparison = comparing.compare(run, ["diloco"], tmp_path / "out", nursery=nursery)
    assert comparison.emulated
    assert "over an emulated link" in report.page(comparison, "plait compare")
    linked = [event for event in events_of(comparison) if isinstance(event, events.Linked)]
    assert [event.emulated for event in linked] == [True] * len(comparison.results)


def events_of(comparison: Comparison) -> list[events.Event]:
    return [event for result in comparison.results for trial in result.trials for event in history_of(trial.folder)]


@pytest.mark.parametrize(
    ("changes", "sync", "compress", "refusal"),
    [
        ({}, ["gossip"], [], r"--sync gossip: gossip is no strategy; known are allreduce, local_sgd"),
        ({}, ["diloco/zip"], [], r"--sync diloco/zip: zip is no codec here; known are none, bf16"),
        ({}, [], ["zip"], r"--compress zip: zip is no codec here"),
        ({}, ["phases"], [], r"--sync phases: the run file has no phases"),
        ({"layout__replicas": 1}, ["diloco"], [], r"layout.replicas = 1 has nobody to agree with"),
        ({"data__split": {"validation": 0.0}}, ["diloco"], [], r"data.split.validation sets aside"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_starts(
    make: Make, tmp_path: Path, changes: dict[str, Any], sync: list[str], compress: list[str], refusal: str
) -> None:
    with pytest.raises((UserError, RunFileError, DataError), match=refusal):
        comparing.compare(make(**changes), sync, tmp_path / "out", compress=compress)
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_left_alone(make: Make, tmp_path: Path) -> None:
    (tmp_path / "letters.txt").write_text("dear")
    with pytest.raises(UserError, match=r"holds letters.txt, which is no comparison"):
        comparing.compare(make(), ["diloco"], tmp_path)
