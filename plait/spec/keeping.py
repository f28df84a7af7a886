"""[checkpoint]: what is kept of a run."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field

from plait.spec.duration import Duration
from plait.spec.places import Place
from plait.spec.section import Positive, Section

_More = Annotated[float, Field(gt=0.0)]


class Checkpoint(Section):
    every: Duration | None = Field(None, description="a last one is always saved")
    keep: Positive = Field(2, description="the newest that stay, in each home")
    copy_to: Place | None = Field(
        None, alias="copy", description="a second home: a URL or a path that each is copied to, in the background"
    )
    copy_mib_per_s: _More | None = Field(None, description="the most that copying sends, on average")
    copy_patience: _More = Field(300.0, description="seconds that the end of a run waits for the last copy")

    model_config = ConfigDict(populate_by_name=True)
