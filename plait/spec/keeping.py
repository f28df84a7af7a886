"""[checkpoint]: what is kept of a run."""

from __future__ import annotations

from typing import Self

from pydantic import ConfigDict, Field, model_validator

from plait.spec.duration import Duration
from plait.spec.section import Positive, Section


class Checkpoint(Section):
    every: Duration | None = Field(None, description="a last one is always saved")
    keep: Positive = Field(2, description="the newest that stay")
    copy_to: str | None = Field(None, alias="copy", description="not built yet")

    model_config = ConfigDict(populate_by_name=True)

    @model_validator(mode="after")
    def _built(self) -> Self:
        if self.copy_to is not None:
            raise ValueError("copy is not built yet; leave it out")
        return self
