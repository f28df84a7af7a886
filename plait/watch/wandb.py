"""Weights & Biases, an extra: pip install "plait[wandb]". WANDB_* variables are honoured; WANDB_MODE=offline keeps everything here.

A run that is resumed goes on as the same run there: its id is kept in the run's folder.
"""

from __future__ import annotations

import importlib.util
import secrets
from pathlib import Path
from typing import Any

from plait import spec
from plait.errors import RunFileError
from plait.events import Event, Finished
from plait.watch.metrics import metrics, public_settings


class Wandb:
    """Logs the curves to a project. Raises RunFileError where wandb is not installed."""

    def __init__(self, project: str, folder: Path, run: spec.Run) -> None:
        if importlib.util.find_spec("wandb") is None:
            raise RunFileError('watch.wandb: the package wandb is not installed: pip install "plait[wandb]", or leave watch.wandb out')
        self._project, self._folder, self._settings = project, folder, public_settings(run)
        self._run: Any = None

    def on(self, event: Event) -> None:
        found = metrics(event)
        if found is not None:
            step, values = found
            self._begun().log({"step": step, **values})
        if isinstance(event, Finished):
            self._begun().summary["finished"] = True

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()

    def _begun(self) -> Any:
        """Connecting takes seconds, so it waits for the first curve. `step` is a value of its own: W&B's step cannot go back, a run can."""
        if self._run is None:
            import wandb

            self._run = wandb.init(
                project=self._project,
                name=self._folder.resolve().name,
                id=_identity(self._folder),
                resume="allow",
                dir=str(self._folder),
                config=self._settings,
                settings=wandb.Settings(silent=True, console="off"),
            )
            self._run.define_metric("step", hidden=True)
            self._run.define_metric("*", step_metric="step")
        return self._run


def _identity(folder: Path) -> str:
    file = folder / "wandb.id"
    if not file.exists():
        file.write_text(secrets.token_hex(4), encoding="utf-8")
    return file.read_text(encoding="utf-8").strip()
