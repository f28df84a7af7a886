"""plait verify layouts: what it compares, what it finds, and how it says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tomli_w
from typer.testing import CliRunner

from plait import cli
from plait.cluster.nursery import Nursery
from plait.errors import ProofFailed, RunFileError
from plait.proof.layouts import defaults, named, parse_layout, verify_layouts
from tests.runs import tiny


def test_layouts_are_compared_in_loss_gradient_norm_and_parameters(corpus: Path, prepared: Path, nursery: Nursery) -> None:
    run = tiny(corpus, prepared, model__family="gpt2", model__kv_heads=None, model__dropout=0.1)
    report = verify_layouts(run, [{"tensor": 2}], steps=4, nursery=nursery)
    [compared] = report.layouts
    assert report.ok
    assert compared.layout == {"tensor": 2}
    assert 0 < max(compared.loss, compared.grad_norm, compared.params) < 1e-12  # another layout is another order of sums
    assert 0 < max(report.floor.loss, report.floor.grad_norm, report.floor.params) < 1e-12


def test_a_model_that_breaks_a_rule_is_seen(corpus: Path, prepared: Path, nursery: Nursery) -> None:
    """Its dropout is torch's, drawn from a generator that belongs to a process."""
    run = tiny(corpus, prepared, model__family="tests.wrong:Forgetful", model__kv_heads=None)
    report = verify_layouts(run, [{"replicas": 2}], steps=3, nursery=nursery)
    assert not report.ok
    assert report.layouts[0].loss > 1e-6


def test_the_command_prints_writes_json_and_exits_3_where_a_layout_fails(
    corpus: Path, prepared: Path, nursery: Nursery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    run_file = tmp_path / "run.toml"
    run_file.write_text(tomli_w.dumps(tiny(corpus, prepared, model__family="tests.wrong:Forgetful", model__kv_heads=None).resolved()))
    arguments = ["verify", "layouts", str(run_file), "--layouts", "replicas=2", "--steps", "2", "--json", str(tmp_path / "proof.json")]
    result = CliRunner().invoke(cli.app, arguments)
    assert isinstance(result.exception, ProofFailed)
    assert result.exception.exit_code == 3
    assert "replicas=2" in result.output
    assert "FAIL" in result.output
    proof = json.loads((tmp_path / "proof.json").read_text())
    assert proof["tolerance"] == {"loss": 1e-9, "grad_norm": 1e-7, "params": 1e-6}
    assert [(row["layout"], row["ok"]) for row in proof["layouts"]] == [({"replicas": 2}, False)]


def test_layouts_that_do_not_fit_are_refused_when_asked_for_and_left_out_when_not(corpus: Path, prepared: Path) -> None:
    run = tiny(corpus, prepared)
    with pytest.raises(RunFileError, match=r"does not divide model.heads = 4; layout.tensor = 2 works"):
        verify_layouts(run, [{"tensor": 3}])
    with pytest.raises(RunFileError, match="write axis=size"):
        parse_layout("tensor:2")
    assert parse_layout("tensor=2,schedule=gpipe") == {"tensor": 2, "schedule": "gpipe"}


def test_defaults_have_each_axis_alone_and_products_of_two_and_three(corpus: Path, prepared: Path) -> None:
    names = [named(layout) for layout in defaults(tiny(corpus, prepared))]
    assert len(set(names)) == len(names)
    assert {"tensor=2", "shard=4", "context=2 context_by=ulysses", "tensor=2 pipeline=2", "pipeline=2 shard=2 tensor=2"} <= set(names)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt2", "moe", "bert", "t5"])
def test_every_axis_alone_and_products_of_two_and_three_draw_one_curve(corpus: Path, prepared: Path, nursery: Nursery, family: str) -> None:
    """But for what a family refuses: experts where there are none, and of an encoder-decoder a ring."""
    settings = {"model__family": family, "model__layers": 4, "model__kv_heads": None, "model__dropout": 0.1, "data__document_mask": True}
    settings |= {"data__objective": {"kind": "masked"}} if family == "bert" else {}
    if family == "t5":
        of_spans = {"data__objective": {"kind": "span"}, "data__tokenizer": {"train": 400}, "data__document_mask": False}
        settings |= {"model__layers": 2, "data__sequence": 32, "train__label_smoothing": 0.1, **of_spans}
    report = verify_layouts(tiny(corpus, prepared, **settings), steps=4, nursery=nursery)
    assert [compared for compared in report.layouts if not compared.ok] == []
    refused = {"moe": (), "t5": ("experts", "ring", "cut twice")}.get(family, ("experts",))
    assert all(any(word in why for word in refused) for why in report.left_out.values()), report.left_out
    assert len(report.layouts) == len(list(defaults(tiny(corpus, prepared)))) - len(report.left_out)
