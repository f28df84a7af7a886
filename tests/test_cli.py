"""The command line: what it prints, its exit codes, and that a mistake costs one message and nothing else."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import tomli_w

from plait import cli, spec
from plait.cluster.nursery import Nursery
from plait.data.prepare import find
from plait.tasks import pretrain
from tests.runs import history_of, tiny

Plait = Callable[..., SimpleNamespace]


@pytest.fixture
def plait(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Plait:
    """Runs a command in this process; returns its exit code and what it printed."""

    def run(*words: str | Path) -> SimpleNamespace:
        monkeypatch.setattr(sys, "argv", ["plait", *map(str, words)])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        out, err = capsys.readouterr()
        return SimpleNamespace(code=exit_.value.code or 0, out=out, err=err)

    return run


@pytest.fixture
def run_file(tmp_path: Path, corpus: Path, prepared: Path) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(tomli_w.dumps(tiny(corpus, prepared).resolved()))
    return path


@pytest.fixture
def no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails the test should a worker be about to start."""

    def refuse() -> None:
        raise AssertionError("a process was started before the mistake was found")

    monkeypatch.setattr(pretrain, "Nursery", refuse)


@pytest.fixture
def warm(monkeypatch: pytest.MonkeyPatch, nursery: Nursery) -> None:
    """Commands fork from this session's nursery."""

    class Kept:
        def __enter__(self) -> Nursery:
            return nursery

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(pretrain, "Nursery", Kept)


def refused(answer: SimpleNamespace, *words: str) -> None:
    assert answer.code == 2, answer
    told = [line for line in answer.err.splitlines() if not line.startswith("preparing: ")]
    assert told[0].startswith("plait: ")
    assert "Traceback" not in answer.err
    for word in words:
        assert word in answer.err


# --- what works ------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("warm")
def test_train_evaluate_and_generate(plait: Plait, run_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    trained = plait("train", run_file, "train.duration=8 steps", "train.evaluate_every=4 steps", "--out", out)
    assert trained.code == 0, trained.err
    assert "step 8  loss" in trained.out
    assert "validation loss" in trained.out
    score = json.loads(plait("evaluate", out, "--split", "test", "--json").out)
    assert score["step"] == 8
    assert score["loss"] < 6
    assert plait("checkpoints", out, "--check").out.endswith("step-00000008  sound\n")
    text = plait("generate", out, "--prompt", "the cat", "--tokens", "5", "--seed", "3")
    assert text.out.startswith("the cat")
    assert text.out == plait("generate", out, "--prompt", "the cat", "--tokens", "5", "--seed", "3").out


def test_version(plait: Plait) -> None:
    assert plait("--version").out.startswith("plait 0.")


def test_resolved_prints_a_run_file_with_every_setting(plait: Plait, run_file: Path, tmp_path: Path) -> None:
    printed = plait("train", run_file, "train.optimizer.lr=3e-4", "--resolved").out
    again = tmp_path / "again.toml"
    again.write_text(printed)
    assert spec.load(again) == spec.load(run_file, ["train.optimizer.lr=3e-4"])
    assert spec.load(again).train.optimizer.lr == 3e-4


def test_data_prepare_says_what_there_is(plait: Plait, run_file: Path) -> None:
    printed = plait("data", "prepare", run_file).out
    assert "train" in printed
    assert "unigram entropy" in printed


def test_doctor_names_what_is_missing_and_how_to_get_it(plait: Plait, tmp_path: Path) -> None:
    findings = {finding["topic"]: finding for finding in json.loads(plait("doctor", "--json", "--out", tmp_path).out)}
    assert findings["gloo"]["state"] == "ok"
    assert "not yet tested on several GPUs" in findings["NCCL"]["meaning"] or findings["NCCL"]["state"] == "missing"
    assert {"cores", "memory", "disk", "GPU", "versions", "launcher"} <= set(findings)


def test_schema_accepts_what_the_run_file_accepts(plait: Plait) -> None:
    schema = json.loads(plait("schema").out)
    assert set(schema["properties"]) == set(spec.Run.model_fields)


def test_a_test_alert_is_delivered_or_the_command_fails(plait: Plait, run_file: Path, tmp_path: Path) -> None:
    told = plait("alerts", "test", run_file, f"alerts.command=tee {tmp_path / 'alert'}")
    assert told.code == 0
    assert told.out.startswith("command tee: took the test in ")
    assert json.loads((tmp_path / "alert").read_text())["kind"] == "test"
    failed = plait("alerts", "test", run_file, "alerts.command=test 1 = 2")
    assert failed.code == 1
    assert failed.err == "plait: alerts: command test: ended with status 1\n"
    refused(plait("alerts", "test", run_file), "neither a command nor a webhook")


# --- what is refused, before any process starts ----------------------------------------------------------------


@pytest.mark.usefixtures("no_process")
@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.optimiser.lr=1", ["train.optimiser", "did you mean train.optimizer?"]),
        ("trian.seed=1", ["trian", "did you mean train?"]),
        ("train.seed=seven", ["train.seed", "integer", '"seven"']),
        ("model.layers=2.5", ["model.layers", "integer"]),
        ("train.duration=4 stepz", ["train.duration", '"400 steps"']),
        ("train.duration=4", ["train.duration"]),
        ("train.duration=2.5 steps", ["train.duration", "whole"]),
        ("train.micro_batch=9", ["train", "micro_batch = 9 is larger than batch = 8"]),
        ("model.heads=5", ["model", "width = 32 is not divisible by heads = 5"]),
        ("model.kv_heads=3", ["heads = 4 is not divisible by kv_heads = 3"]),
        ("model.family=lama", ["lama", "llama"]),
        ("cluster.launcher=ray", ["not built yet", "torchrun"]),
        ("data.tokenizer.train=200", ["data.tokenizer.train", "257"]),
        ("data.corpus=[]", ["data.corpus"]),
        ("layout.tensor=3", ["layout.tensor = 3 does not divide model.heads = 4", "layout.tensor = 2 works"]),
        ("layout.replicas=0", ["layout.replicas", "greater than or equal to 1"]),
        ("sync.strategy=diloco", ['strategy = "diloco" needs every', 'every = "16 steps"']),
        ("sync.every=4 steps", ["every belongs to", '"local_sgd" and "diloco"', 'leave it out with "allreduce"']),
        ("sync.top_k=0.1", ['top_k belongs to compress = "topk"']),
        ("elastic.replicas=[2,3]", ["elastic.replicas = [2, 3]", "layout.replicas = 1", "not between them"]),
        ("elastic.replicas=[3,1]", ["elastic", "first is more than the second"]),
        ("alerts.command=nowhere.sh", ["alerts.command", "nowhere.sh cannot be run", "PATH"]),
        ("alerts.webhook=ftp://x/secret", ["alerts.webhook", "ftp://x/***", "https://"]),
        ("alerts.kinds=['hangs']", ["alerts.kinds", "'hang'"]),
        ("checkpoint.copy=s4://x", ["s4://x", "did you mean s3://?"]),
        ("checkpoint.copy=s3://key:secret@x", ["checkpoint.copy", "s3://key:***@x holds a secret", "AWS_ACCESS_KEY_ID"]),
        ("checkpoint.copy=memory://x", ["checkpoint.copy", "memory of one process"]),
        ("cluster.launcher=environment", ["no launcher started this process", "torchrun"]),
        ("cluster.launcher=ray", ["ray", "not built yet"]),
        ("balance.capacity=[1,2]", ["balance.capacity", "layout.replicas = 1"]),
        ("watch.wandb=x", ["wandb"]),
        ("nonsense", ["section.key=value"]),
        ("data.sequence=100000", ["shorter than one sequence", "data.sequence"]),
        ("data.tokenizer.train=60000", ["data.tokenizer", "train = 60000 is more than the corpus can give"]),
    ],
)
def test_a_wrong_setting(plait: Plait, run_file: Path, tmp_path: Path, override: str, words: list[str]) -> None:
    refused(plait("train", run_file, override, "--out", tmp_path / "out"), *words)
    assert not (tmp_path / "out" / "events.jsonl").exists()


@pytest.mark.usefixtures("no_process")
@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("missing.txt", None, ["missing.txt"]),
        ("empty.txt", b"", ["empty"]),
        ("latin.txt", "caf\xe9".encode("latin-1"), ["latin.txt", "UTF-8"]),
        ("broken.jsonl", b'{"text": "fine"}\n{"text": \n', ["broken.jsonl:2"]),
        ("other.jsonl", b'{"body": "fine"}\n', ["other.jsonl:1", "text", "body"]),
        ("torn.txt.gz", b"\x1f\x8b\x08\x00torn", ["torn.txt.gz"]),
        ("short.txt", b"a few words", ["sequence"]),
    ],
)
def test_a_wrong_corpus(plait: Plait, run_file: Path, tmp_path: Path, name: str, content: bytes | None, words: list[str]) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    corpus = f'data.corpus=["{tmp_path / name}"]'
    answer = plait(
        "train", run_file, corpus, f"data.prepared={tmp_path / 'prepared'}", "data.tokenizer.train=257", "--out", tmp_path / "out"
    )
    refused(answer, *words)


@pytest.mark.usefixtures("no_process")
def test_a_missing_run_file_suggests_its_neighbour(plait: Plait, run_file: Path) -> None:
    refused(plait("train", run_file.with_name("rum.toml")), "rum.toml", "did you mean", "run.toml")


@pytest.mark.usefixtures("no_process")
def test_a_run_file_that_is_not_toml(plait: Plait, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text("[train\n")
    refused(plait("train", tmp_path / "run.toml"), "is not TOML", "line 1")


@pytest.mark.usefixtures("no_process")
def test_a_corrupt_token_file_is_named(plait: Plait, run_file: Path, tmp_path: Path) -> None:
    own = f"data.prepared={tmp_path / 'prepared'}"
    assert plait("data", "prepare", run_file, own).code == 0
    found = find(spec.load(run_file, [own]).data)
    assert found is not None
    victim = found.folder / "train-0.npy"
    with victim.open("ab") as file:
        file.write(b"x")
    refused(plait("train", run_file, own, "--out", tmp_path / "out"), str(victim))


@pytest.mark.usefixtures("no_process")
def test_no_space_for_a_checkpoint(plait: Plait, run_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    refused(plait("train", run_file, "--out", tmp_path / "out"), "no space left")


@pytest.mark.usefixtures("no_process")
def test_a_folder_that_cannot_be_made(plait: Plait, run_file: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    refused(plait("train", run_file, "--out", tmp_path / "file" / "out"), "cannot keep a run here", "--out")


@pytest.mark.usefixtures("warm")
def test_refusals_of_a_folder_lose_nothing(plait: Plait, run_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of another run, a tokenizer that does not match, a checkpoint of another model: each refused, each intact."""
    out = tmp_path / "out"
    assert plait("train", run_file, "--out", out).code == 0
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    refused(plait("train", run_file, "model.width=64", "--out", out), "model.width: 32 there, 64 now")
    refused(plait("train", run_file, "data.tokenizer.train=280", "--out", out), "data.vocabulary: 288 there, 280 now")
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before

    smaller = find(spec.load(run_file, ["data.tokenizer.train=280"]).data)
    assert smaller is not None
    shutil.copy(smaller.tokenizer_file, out)
    refused(plait("generate", out, "--prompt", "x"), "not the tokenizer that this model was trained with")

    piece = next((out / "checkpoints").rglob("*.safetensors"))
    sound = piece.read_bytes()
    piece.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    assert plait("checkpoints", out).code == 0
    damaged = plait("checkpoints", out, "--check")
    assert damaged.code == 3
    assert f"DAMAGED: {piece}: is corrupt" in damaged.out
    assert damaged.err == f"plait: {out}: 1 of 1 checkpoints are damaged\n"
    piece.write_bytes(sound)

    other = tmp_path / "other"
    assert plait("train", run_file, "model.width=64", "--out", other).code == 0
    shutil.rmtree(other / "checkpoints")
    shutil.copytree(out / "checkpoints", other / "checkpoints")
    refused(plait("evaluate", other), "checkpoint of another model")
    assert len(history_of(out)) > 6


@pytest.mark.parametrize("command", ["evaluate", "generate"])
def test_a_folder_without_a_run(plait: Plait, tmp_path: Path, command: str) -> None:
    refused(plait(command, tmp_path), "there is no run here")


@pytest.mark.usefixtures("warm")
def test_an_unknown_split(plait: Plait, run_file: Path, tmp_path: Path) -> None:
    refused(plait("evaluate", tmp_path, "--split", "tests"), "--split tests", "train, validation, test")


def test_an_unknown_command_is_usage(plait: Plait) -> None:
    assert plait("trian").code == 2
