"""The run file: strict, typed, and its errors name what would be right."""

from __future__ import annotations

from pathlib import Path

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from plait import spec
from plait.errors import RunFileError

LEAST = {"data": {"corpus": ["x.txt"]}, "train": {"duration": "4 steps"}}
EXAMPLE = Path(__file__).parent.parent / "examples" / "austen.toml"


def test_the_example_reads_and_survives_a_round_trip(tmp_path: Path) -> None:
    run = spec.load(EXAMPLE)
    (tmp_path / "again.toml").write_text(tomli_w.dumps(run.resolved()))
    assert spec.load(tmp_path / "again.toml") == run


def test_files_come_before_overrides_and_defaults_before_both() -> None:
    assert spec.parse(LEAST).train.optimizer.lr == 1e-3
    assert spec.load(EXAMPLE).train.optimizer.lr == 2e-3
    run = spec.load(EXAMPLE, ["train.optimizer.lr=3e-4", "model.family=gpt2", "data.corpus=['a','b']", "layout.replicas=3"])
    assert (run.train.optimizer.lr, run.model.family, run.data.corpus, run.layout.replicas) == (3e-4, "gpt2", ["a", "b"], 3)


@pytest.mark.parametrize(
    ("text", "amount", "unit"),
    [
        ("400 steps", 400, "steps"),
        ("1 step", 1, "steps"),
        ("2.5M tokens", 2.5e6, "tokens"),
        ("3 epochs", 3, "epochs"),
        ("1_000 steps", 1000, "steps"),
    ],
)
def test_durations(text: str, amount: float, unit: str) -> None:
    duration = spec.Duration(text)
    assert (duration.amount, duration.unit) == (amount, unit)


@given(st.text(max_size=12))
def test_no_text_breaks_a_duration(text: str) -> None:
    try:
        amount = spec.parse({**LEAST, "train": {"duration": text}}).train.duration.amount
    except RunFileError as error:
        told = str(error)
    else:
        told = ""
        assert amount >= 0
    assert told == "" or "train.duration" in told


def test_every_mistake_is_told_at_once() -> None:
    with pytest.raises(RunFileError) as error:
        spec.parse({**LEAST, "model": {"layers": 0, "widht": 3}, "layout": {"replicas": "two"}})
    lines = str(error.value).splitlines()
    assert [line.split(": ")[1] for line in lines] == ["model.layers", "model.widht", "layout.replicas"]
    assert "did you mean model.width?" in lines[1]


def test_what_may_change_between_starts_is_not_part_of_the_identity() -> None:
    run, other = spec.parse(LEAST), spec.parse({**LEAST, "layout": {"replicas": 2}, "checkpoint": {"every": "5 steps"}})
    assert run.identity() == other.identity()
    changed = spec.parse({**LEAST, "train": {"duration": "4 steps", "seed": 1}})
    assert run.identity() != changed.identity()


def test_it_can_be_built_in_python() -> None:
    run = spec.Run(data=spec.Data(corpus=["x.txt"]), train=spec.Train(duration="4 steps"), layout=spec.Layout(replicas=2))
    assert run.train.duration.amount == 4
    assert run == spec.parse({**LEAST, "layout": {"replicas": 2}})


@pytest.mark.parametrize("path", sorted(EXAMPLE.parent.glob("*.toml")), ids=lambda path: path.name)
def test_every_example_is_a_run_file(path: Path) -> None:
    assert spec.load(path).train.duration.amount > 0


def laid_out(**layout):
    """A run of 4 layers, 4 heads, 2 key heads, hidden 128, sequences of 24."""
    model = {"layers": 4, "width": 32, "heads": 4, "kv_heads": 2, "hidden": 128, **layout.pop("model", {})}
    train = {"duration": "1 steps", "batch": 8, "micro_batch": layout.pop("micro_batch", 2), "compile": layout.pop("compile", False)}
    return spec.parse({"model": model, "data": {"corpus": ["x"], "sequence": 24}, "train": train, "layout": layout})


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ({"tensor": 3}, "layout.tensor = 3 does not divide model.heads = 4; layout.tensor = 2 works"),
        ({"tensor": 4}, "layout.tensor = 4 does not divide model.kv_heads = 2; layout.tensor = 2 works"),
        ({"context": 5}, "cuts a sequence into 10 pieces, which do not divide data.sequence = 24; layout.context = 4 works"),
        ({"context": 2, "tensor": 2, "context_by": "ulysses"}, "layout.context = 2 x layout.tensor = 2 does not divide model.kv_heads = 2"),
        ({"pipeline": 5}, "layout.pipeline = 5 makes 5 stages of model.layers = 4; layout.pipeline = 4 works"),
        ({"pipeline": 4, "schedule": "interleaved"}, "makes 8 stages of model.layers = 4; layout.pipeline = 2 works"),
        ({"pipeline": 2, "stages": [1, 2]}, "layout.stages = [1, 2] names 2 stages of 3 layers"),
        ({"pipeline": 2, "micro_batch": "auto"}, "write a number with layout.pipeline"),
        ({"shard": 2, "zero": 1, "offload": True}, "offload = true needs shard above 1 and zero = 2 or 3"),
        ({"shard": 2, "pipeline": 2, "schedule": "zero_bubble"}, 'use zero = 2, or schedule = "interleaved"'),
        ({"pipeline": 2, "schedule": "zero_bubble", "model": {"recompute": "full"}}, 'model.recompute = "full" has both come at once'),
        ({"pipeline": 2, "schedule": "zero_bubble", "compile": True}, "train.compile = true has both come at once; use layout.schedule"),
        ({"expert": 2}, 'model.family = "llama" has none; leave layout.expert out'),
        ({"expert": 3, "model": {"family": "moe"}}, "layout.expert = 3 does not divide model.experts = 8; layout.expert = 2 works"),
    ],
)
def test_a_layout_that_does_not_fit_names_both_settings_and_what_would(layout, message):
    with pytest.raises(RunFileError) as caught:
        laid_out(**layout)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("sync", "messages"),
    [
        ({"strategy": "local_sgd"}, ['strategy = "local_sgd" needs every']),
        ({"strategy": "diloco", "every": "0 steps"}, ["every: a round has one step or more"]),
        ({"strategy": "allreduce", "outer_lr": 0.7}, ["outer_lr belongs to", '"diloco"', 'leave it out with "allreduce"']),
        ({"strategy": "local_sgd", "every": "4 steps", "outer_momentum": 0.9}, ["outer_momentum belongs to", '"diloco"', '"local_sgd"']),
        ({"strategy": "diloco", "every": "4 steps", "servers": 2}, ['servers belongs to strategy = "server"', '"diloco"']),
        ({"strategy": "allreduce", "update": "bounded"}, ['update belongs to strategy = "server"', '"allreduce"']),
        ({"strategy": "allreduce", "push_every": 2}, ['push_every belongs to strategy = "server"', '"allreduce"']),
        ({"strategy": "server", "every": "4 steps"}, ['every belongs to strategy = "local_sgd" and "diloco"', '"server"']),
        ({"strategy": "server", "update": "bounded"}, ['update = "bounded" needs staleness', "staleness = 4"]),
        ({"strategy": "server", "update": "asynchronous", "staleness": 4}, ['staleness belongs to update = "bounded"', '"asynchronous"']),
        ({"strategy": "server", "staleness": 4}, ['staleness belongs to update = "bounded"', '"synchronous"']),
        ({"strategy": "server", "damping": "inverse"}, ["damping is for pushes that are late", 'update = "synchronous"']),
        ({"strategy": "phases"}, ['strategy = "phases" needs phases = [']),
        ({"strategy": "allreduce", "phases": [{"strategy": "allreduce"}]}, ['phases belongs to strategy = "phases"', '"allreduce"']),
        ({"strategy": "phases", "phases": []}, ["each but the last needs `until`"]),
        ({"strategy": "phases", "phases": [{"strategy": "allreduce"}, {"strategy": "server"}]}, ["each but the last needs `until`"]),
        ({"strategy": "phases", "phases": [{"strategy": "allreduce", "until": "9 steps"}]}, ["the last has none"]),
        ({"strategy": "phases", "phases": [{"strategy": "phases"}]}, ["cannot stand inside phases"]),
        ({"strategy": "phases", "phases": [{"strategy": "allreduce"}], "compress": "int8"}, ["compress stands in each of phases"]),
        ({"strategy": "phases", "phases": [{"strategy": "allreduce", "until": "loss above 3"}, {"strategy": "allreduce"}]}, ["loss below"]),
        ({"compress": "zip"}, ["sync.compress", "'bf16'"]),
        ({"compress": "int8", "top_k": 0.1}, ['top_k belongs to compress = "topk"', '"int8"']),
        ({"compress": "topk", "top_k": 0.0}, ["sync.top_k"]),
        ({"strategy": "diloco", "every": "4 steps", "balance": "dynamic"}, ['balance.policy = "dynamic"', 'sync.strategy = "diloco"']),
        ({"strategy": "server", "update": "asynchronous", "balance": "auto"}, ['balance.policy = "auto"', 'sync.update = "asynchronous"']),
        ({"strategy": "local_sgd", "every": "4 steps", "capacity": "measured"}, ['balance.capacity = "measured"', '"local_sgd"']),
        ({"strategy": "server", "capacity": [2.0, 1.0]}, ["balance.capacity is for shares of a batch", 'sync.strategy = "server"']),
        ({"capacity": "measured", "balance": "dynamic"}, ['capacity = "measured" is for policy = "static"', '"dynamic"']),
        ({"capacity": [1.0, 0.0], "balance": "auto"}, ["capacity gives a replica nothing", 'policy = "auto"']),
        ({"link": {"latency": -1.0}}, ["sync.link.latency"]),
        ({"link": {"bandwidth": 0}}, ["sync.link.bandwidth"]),
        ({"bucket_mib": "small"}, ["sync.bucket_mib"]),
    ],
)
def test_settings_of_the_sync_that_exclude_each_other_are_refused_by_name(sync: dict[str, object], messages: list[str]) -> None:
    """balance, capacity: of its own section."""
    balance = {"policy": sync.get("balance", "static"), "capacity": sync.get("capacity")}
    sync = {name: value for name, value in sync.items() if name not in ("balance", "capacity")}
    with pytest.raises(RunFileError) as refused:
        spec.parse({**LEAST, "layout": {"replicas": 2}, "sync": sync, "balance": {key: value for key, value in balance.items() if value}})
    for message in messages:
        assert message in str(refused.value)


def test_shares_may_follow_speeds_where_one_phase_allows_it():
    phases = [{"strategy": "allreduce", "until": "9 steps"}, {"strategy": "diloco", "every": "4 steps"}]
    run = spec.parse({**LEAST, "sync": {"strategy": "phases", "phases": phases}, "balance": {"policy": "auto"}})
    assert run.balance.measures
