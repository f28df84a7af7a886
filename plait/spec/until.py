"""When a phase of a run ends."""

from __future__ import annotations

import re
from typing import Literal

import pydantic
from pydantic import ConfigDict, model_validator

from plait.spec.duration import Duration

What = Literal["loss", "waiting"]
_CONDITION = re.compile(r"(loss) below ([0-9.eE+-]+)|(waiting) above ([0-9.]+)\s*%")


class Until(pydantic.RootModel[str]):
    """A length of the run so far, "200 steps", or what the last ten steps came to: "loss below 4.5", "waiting above 30%"."""

    model_config = ConfigDict(frozen=True, strict=True)

    @model_validator(mode="after")
    def _readable(self) -> Until:
        if self.condition is None:
            try:
                Duration(self.root)
            except ValueError as error:
                raise ValueError(f'{error}; or a condition: "loss below 4.5", "waiting above 30%"') from None
        return self

    @property
    def duration(self) -> Duration | None:
        return None if self.condition else Duration(self.root)

    @property
    def condition(self) -> tuple[What, float] | None:
        """("loss", most) or ("waiting", least share of a step)."""
        found = _CONDITION.fullmatch(self.root.strip())
        if found is None:
            return None
        try:
            return ("loss", float(found[2])) if found[1] else ("waiting", float(found[4]) / 100)
        except ValueError:
            return None

    def __str__(self) -> str:
        return self.root
