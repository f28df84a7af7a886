"""[balance] and [elastic]: who gets how much, and what becomes of a run whose workers die or come."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from plait.spec.section import Positive, Section


class Balance(Section):
    """Who gets how much of a global batch; the curve is the same."""

    policy: Literal["static", "dynamic", "auto"] = Field("static", description="built: static")
    capacity: list[Annotated[float, Field(ge=0)]] | None = Field(
        None, description="each replica's share, relative to the others'; zero included"
    )

    @model_validator(mode="after")
    def _built(self) -> Self:
        if self.policy != "static":
            raise ValueError(f'policy = "{self.policy}" is not built yet; use "static"')
        if self.capacity is not None and sum(self.capacity) <= 0:
            raise ValueError("capacity: at least one replica must have a share")
        return self


class Elastic(Section):
    """What becomes of a run whose workers die or come."""

    replicas: Annotated[list[Positive], Field(min_length=2, max_length=2)] | None = Field(
        None, description="[fewest, most]: below the fewest the run waits; it grows to the most; [1, layout.replicas] when left out"
    )
    hang_after: float = Field(
        120.0, gt=0, description="seconds without progress after which a worker is named and replaced; ten times as many for its first unit"
    )

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.replicas is not None and self.replicas[0] > self.replicas[1]:
            raise ValueError(f"replicas = {self.replicas} is [fewest, most], and the first is more than the second")
        return self
