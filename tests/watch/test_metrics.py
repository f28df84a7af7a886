"""What leaves the machine: curves, and settings without secrets."""

from plait import events, spec
from plait.watch.metrics import metrics, public_settings, void_after


def test_shares_have_curves():
    event = events.Rebalanced(1.0, 7, "dynamic", {"0": 0.25, "1": 0.75}, 1, "speeds differ")
    assert metrics(event) == (7, {"share/replica_0": 0.25, "share/replica_1": 0.75})


def test_a_step_is_curves_and_what_is_unknown_is_left_out(step):
    number, values = metrics(
        step(3, memory={"0": 2**30, "1": 2**31}, waited={"0": 0.5}, computed={"0": 1.5}, data={"0": 0.1}, load=[[], [1, 2, 3, 2], [0, 0]])
    )
    assert number == 3
    assert values["train/loss"] == 3.762
    assert values["memory/peak_gib"] == 2.0
    assert [values[f"{name}/replica_0"] for name in ("computed", "waited", "data")] == [1.5, 0.5, 0.1]
    assert {name: value for name, value in values.items() if name.startswith("experts/")} == {"experts/layer_1_busiest_over_mean": 1.5}
    assert "speed/mfu" not in values


def test_an_evaluation_is_named_by_its_split():
    found = metrics(events.Evaluated(1.0, 5, "test", 2.0, 7.4, 0.25, 10))
    assert found == (5, {"test/loss": 2.0, "test/perplexity": 7.4, "test/accuracy": 0.25})


def test_other_events_have_no_curve():
    assert metrics(events.Finished(1.0, 5)) is None


def test_only_resuming_and_rolling_back_make_void(step):
    assert void_after(events.Resumed(1.0, 200)) == 200
    assert void_after(events.RolledBack(1.0, 0, "why")) == 0
    assert void_after(step(3)) is None


def test_secrets_and_logins_stay_here_and_tokenizers_do_not():
    run = spec.parse(
        {
            "data": {"corpus": ["a.txt"], "tokenizer": {"train": 300}},
            "train": {"duration": "4 steps", "optimizer": {"name": "a:B", "settings": {"api_key": "hunter2", "keys": 4, "factor": 2}}},
            "watch": {"mlflow": "https://me:hunter2@host/a"},
        }
    )
    found = public_settings(run)
    assert "hunter2" not in str(found)
    assert found["data.tokenizer.train"] == 300
    assert found["train.optimizer.settings.factor"] == 2
    assert found["watch.mlflow"] == "https://***@host/a"
