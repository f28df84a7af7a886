"""[watch] and [alerts]: who is told of a run."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from plait.spec.section import Section


class Alerts(Section):
    command: str | None = Field(None, description="not built yet")
    webhook: str | None = Field(None, description="not built yet")

    @model_validator(mode="after")
    def _built(self) -> Self:
        if self.command is not None or self.webhook is not None:
            raise ValueError("command and webhook are not built yet; leave them out")
        return self


class Watch(Section):
    """Who is told of the run's events, besides events.jsonl and the log."""

    tensorboard: bool = Field(True, description="files for it in OUT/tensorboard")
    wandb: str | None = Field(None, description="a project of Weights & Biases")
    mlflow: str | None = Field(None, description="an experiment of MLflow")
    listeners: list[str] = Field(default_factory=list, description='"package.module:Class", your own')
