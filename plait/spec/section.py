"""What all sections of the run file are."""

from __future__ import annotations

from typing import Annotated

import pydantic
from pydantic import ConfigDict, Field

Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]


class Section(pydantic.BaseModel):
    """A table of the run file: frozen, no unknown keys, no silent conversions."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, validate_default=True)
