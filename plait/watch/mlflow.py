"""MLflow, an extra: pip install "plait[mlflow]". MLFLOW_TRACKING_URI says where to: a server, or what else MLflow takes.
Left out, MLflow keeps a database in the working directory, which takes the whole of mlflow: the extra brings its small client alone.

A run that is resumed goes on as the same run there: its id is kept in the run's folder.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

from plait import spec
from plait.errors import RunFileError
from plait.events import Event, Finished, Stopped
from plait.watch.metrics import metrics, public_settings

_PARAMETERS = 100  # MLflow takes that many at once
_LENGTH = 500  # and cuts or refuses longer values, by version


class Mlflow:
    """Logs the curves to an experiment. Raises RunFileError where mlflow is not installed."""

    def __init__(self, experiment: str, folder: Path, run: spec.Run) -> None:
        if importlib.util.find_spec("mlflow") is None:
            raise RunFileError('watch.mlflow: the package mlflow is not installed: pip install "plait[mlflow]", or leave watch.mlflow out')
        if not os.environ.get("MLFLOW_TRACKING_URI") and importlib.util.find_spec("sqlalchemy") is None:
            raise RunFileError(
                "watch.mlflow: nowhere to log to: set MLFLOW_TRACKING_URI to your server, or pip install mlflow, which keeps its own"
            )
        self._experiment, self._folder, self._settings = experiment, folder, public_settings(run)
        self._client: Any = None
        self._run = ""
        self._status = "FAILED"

    def on(self, event: Event) -> None:
        found = metrics(event)
        if found is not None:
            self._begin()
            step, values = found
            self._client.log_batch(self._run, metrics=[_metric(name, value, event.time, step) for name, value in values.items()])
        if isinstance(event, Finished | Stopped):
            self._status = "FINISHED" if isinstance(event, Finished) else "KILLED"

    def close(self) -> None:
        if self._client is not None:
            self._client.set_terminated(self._run, status=self._status)

    def _begin(self) -> None:
        if self._client is not None:
            return
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        client = MlflowClient()
        file = self._folder / "mlflow.id"
        if file.exists():
            self._run = file.read_text(encoding="utf-8").strip()
            client.update_run(self._run, status="RUNNING")
        else:
            found = client.get_experiment_by_name(self._experiment)
            experiment = found.experiment_id if found is not None else client.create_experiment(self._experiment)
            self._run = client.create_run(experiment, run_name=self._folder.resolve().name).info.run_id
            settings = [Param(key, str(value)[:_LENGTH]) for key, value in self._settings.items()]
            for first in range(0, len(settings), _PARAMETERS):
                client.log_batch(self._run, params=settings[first : first + _PARAMETERS])
            file.write_text(self._run, encoding="utf-8")
        self._client = client


def _metric(name: str, value: float, time: float, step: int) -> Any:
    from mlflow.entities import Metric

    return Metric(name, float(value), int(time * 1000), step)
