"""Weights & Biases and MLflow: with doubles of their libraries everywhere, and with the libraries themselves where they are installed."""

import importlib
import importlib.machinery
import importlib.util
import json
import sys
import types

import pytest

from plait import events
from plait.errors import RunFileError
from plait.watch.mlflow import Mlflow
from plait.watch.wandb import Wandb


@pytest.fixture
def wandb_double(monkeypatch):
    """Stands for the package wandb: keeps what it is given."""
    double = types.ModuleType("wandb")
    double.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
    double.began, double.logged, double.finished = [], [], []

    def init(**settings):
        double.began.append(settings)
        return types.SimpleNamespace(
            log=double.logged.append,
            finish=lambda: double.finished.append(True),
            define_metric=lambda name, **kind: None,
            summary={},
        )

    double.init, double.Settings = init, dict
    monkeypatch.setitem(sys.modules, "wandb", double)
    return double


@pytest.fixture
def mlflow_double(monkeypatch):
    """Stands for the package mlflow: one client that keeps what it is given."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://localhost:1")
    kept = types.SimpleNamespace(created=[], metrics=[], params=[], status=[])

    class Client:
        def get_experiment_by_name(self, name):
            return None

        def create_experiment(self, name):
            return "1"

        def create_run(self, experiment, run_name):
            kept.created.append(run_name)
            return types.SimpleNamespace(info=types.SimpleNamespace(run_id="abc"))

        def update_run(self, run, status):
            kept.status.append((run, status))

        def log_batch(self, run, metrics=(), params=()):
            kept.metrics += metrics
            kept.params += params

        def set_terminated(self, run, status):
            kept.status.append((run, status))

    root, entities, tracking = (types.ModuleType(name) for name in ("mlflow", "mlflow.entities", "mlflow.tracking"))
    root.__spec__ = importlib.machinery.ModuleSpec("mlflow", None)
    entities.Metric = lambda name, value, time, step: (name, value, time, step)
    entities.Param = lambda key, value: (key, value)
    tracking.MlflowClient = Client
    for module in (root, entities, tracking):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return kept


def tell(listener, *told):
    for event in told:
        listener.on(event)
    listener.close()


def test_wandb_logs_curves_by_step_and_resumes_as_the_same_run(tmp_path, run, step, wandb_double):
    tell(Wandb("plaits", tmp_path, run), events.Started(1.0, "0", 1, 1, 3, "cpu"), step(1), step(2))
    tell(Wandb("plaits", tmp_path, run), events.Resumed(1.0, 1), step(2), events.Finished(1.0, 2))
    first, second = wandb_double.began
    assert first["project"] == "plaits"
    assert first["id"] == second["id"]
    assert first["config"]["train.duration"] == "400 steps"
    assert [values["step"] for values in wandb_double.logged] == [1, 2, 2]
    assert wandb_double.logged[0]["train/loss"] == 3.762
    assert len(wandb_double.finished) == 2


def test_wandb_that_was_told_nothing_never_connects(tmp_path, run, wandb_double):
    tell(Wandb("plaits", tmp_path, run))
    assert wandb_double.began == []


def test_mlflow_logs_curves_and_settings_and_resumes_as_the_same_run(tmp_path, run, step, mlflow_double):
    tell(Mlflow("plaits", tmp_path, run), step(1), events.Stopped(1.0, 1, "SIGTERM"))
    tell(Mlflow("plaits", tmp_path, run), step(2), events.Finished(1.0, 2))
    assert mlflow_double.created == [tmp_path.name]
    assert ("train/loss", 3.762, int((1.7e9 + 1) * 1000), 1) in mlflow_double.metrics
    assert ("train.duration", "400 steps") in mlflow_double.params
    assert mlflow_double.status == [("abc", "KILLED"), ("abc", "RUNNING"), ("abc", "FINISHED")]


def test_mlflow_says_failed_where_the_run_neither_finished_nor_stopped(tmp_path, run, step, mlflow_double):
    tell(Mlflow("plaits", tmp_path, run), step(1))
    assert mlflow_double.status == [("abc", "FAILED")]


def test_mlflow_without_a_place_to_log_to_is_refused(tmp_path, run, mlflow_double, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    found = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "sqlalchemy" else found(name))
    with pytest.raises(RunFileError, match="MLFLOW_TRACKING_URI"):
        Mlflow("plaits", tmp_path, run)


@pytest.mark.slow
def test_wandb_itself_writes_offline(tmp_path, run, step, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    tell(Wandb("plaits", tmp_path, run), step(1), step(2), events.Finished(1.0, 2))
    assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))


@pytest.mark.slow
def test_mlflow_itself_writes_to_a_folder(tmp_path, run, step, monkeypatch):
    tracking = pytest.importorskip("mlflow.tracking")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    tell(Mlflow("plaits", tmp_path, run), step(1), step(2), events.Finished(1.0, 2))
    identity = (tmp_path / "mlflow.id").read_text()
    found = tracking.MlflowClient().get_run(identity)
    assert found.info.status == "FINISHED"
    assert json.loads(json.dumps(found.data.metrics))["train/loss"] == 3.762
    assert [point.step for point in tracking.MlflowClient().get_metric_history(identity, "train/loss")] == [1, 2]
