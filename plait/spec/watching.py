"""[watch] and [alerts]: who is told of a run."""

from __future__ import annotations

import re
from typing import Annotated, Literal, get_args
from urllib.parse import urlsplit

from pydantic import Field, field_serializer, field_validator

from plait.spec.section import Positive, Section

AlertKind = Literal[
    "run_failed",
    "failure",
    "hang",
    "waiting",
    "straggler",
    "corruption",
    "spike",
    "nonfinite",
    "rollback",
    "save_failed",
    "copy_failed",
    "damaged",
    "low_disk",
    "run_ended",
]
_TROUBLES: list[AlertKind] = [kind for kind in get_args(AlertKind) if kind != "run_ended"]
_Seconds = Annotated[float, Field(gt=0.0)]


class Alerts(Section):
    """Who is told when something goes wrong: a command, a webhook, or both."""

    command: str | None = Field(None, description="run for each alert, which is JSON on its standard input")
    webhook: str | None = Field(
        None, description="an http or https URL that each alert is posted to as JSON; or $NAME, a variable with it", repr=False
    )
    kinds: list[AlertKind] = Field(_TROUBLES, description="what is told")
    every: Annotated[float, Field(ge=0.0)] = Field(60.0, description="least seconds between two alerts of one kind about one worker")
    timeout: _Seconds = Field(10.0, description="seconds for one attempt; a command that takes longer is killed")
    patience: _Seconds = Field(30.0, description="seconds that the end of a run waits for alerts that are still to be delivered")
    low_disk_mib: Positive = Field(1024, description="free space, in MiB, below which a disk is low; two checkpoints are the least")

    @property
    def told(self) -> bool:
        """Whether there is someone to tell."""
        return self.command is not None or self.webhook is not None

    @field_validator("command")
    @classmethod
    def _something(cls, command: str | None) -> str | None:
        if command is not None and not command.strip():
            raise ValueError('is empty; write a command, for example "notify.sh", or leave it out')
        return command

    @field_validator("webhook")
    @classmethod
    def _usable(cls, url: str | None) -> str | None:
        if url is not None and not re.fullmatch(r"\$\w+", url):
            check_webhook(url)
        return url

    @field_serializer("webhook")
    def _mask(self, url: str | None) -> str | None:
        """Who knows a webhook's URL can post to it: it stands in no dump."""
        return None if url is None else masked_url(url)


def check_webhook(url: str) -> None:
    """Raises ValueError, without the secrets of the URL."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or re.search(r"[^\x21-\x7e]", url):
        raise ValueError(f'"{masked_url(url)}" is no webhook; write one that begins with https:// or http:// and a host, or "$NAME"')


def masked_url(url: str) -> str:
    """A URL of which host and port alone are shown."""
    found = re.match(r"(\$\w+$|[\w+.-]+://)(?:[^/?#]*@)?([\w.:\[\]-]*)(.*)", url, re.DOTALL)
    if found is None:
        return "***"
    return found[1] + found[2] + ("/***" if found[3].strip("/") else found[3])


class Watch(Section):
    """Who is told of the run's events, besides events.jsonl and the log."""

    tensorboard: bool = Field(True, description="files for it in OUT/tensorboard")
    wandb: str | None = Field(None, description="a project of Weights & Biases")
    mlflow: str | None = Field(None, description="an experiment of MLflow")
    listeners: list[str] = Field(default_factory=list, description='"package.module:Class", your own')
