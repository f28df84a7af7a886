"""[balance] and [elastic]: who gets how much, and what becomes of a run whose workers die or come."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from plait.spec.duration import Duration
from plait.spec.section import Positive, Section


class Balance(Section):
    """Who gets how much of a global batch; the curve is the same."""

    policy: Literal["static", "dynamic", "auto"] = Field(
        "static",
        description="static: by capacity; dynamic: by speeds as they are measured, step by step; auto: the one or the other, and the size "
        "of pieces, as speeds and waiting tell",
    )
    capacity: list[Annotated[float, Field(ge=0)]] | Literal["measured"] | None = Field(
        None, description="each replica's share, relative to the others'; zero included; measured: by its speed over the first steps"
    )

    @model_validator(mode="after")
    def _fitting(self) -> Self:
        if self.policy != "static" and self.capacity == "measured":
            raise ValueError(f'capacity = "measured" is for policy = "static", and "{self.policy}" measures anyway; leave it out')
        if self.stated is not None and sum(self.stated) <= 0:
            raise ValueError("capacity: at least one replica must have a share")
        if self.policy != "static" and self.stated is not None and 0 in self.stated:
            raise ValueError(
                f'capacity gives a replica nothing, and policy = "{self.policy}" measures it by what it computes; give it a little, or use '
                'policy = "static"'
            )
        return self

    @property
    def stated(self) -> list[float] | None:
        """Capacities, where they are in the run file."""
        return self.capacity if isinstance(self.capacity, list) else None

    @property
    def measures(self) -> bool:
        """Whether shares follow speeds, at all."""
        return self.policy != "static" or self.capacity == "measured"

    @property
    def told(self) -> str:
        """The setting by which shares follow speeds."""
        return 'balance.capacity = "measured"' if self.capacity == "measured" else f'balance.policy = "{self.policy}"'


class Elastic(Section):
    """What becomes of a run whose workers die or come."""

    replicas: Annotated[list[Positive], Field(min_length=2, max_length=2)] | None = Field(
        None, description="[fewest, most]: below the fewest the run waits; it grows to the most; [1, layout.replicas] when left out"
    )
    hang_after: float = Field(
        120.0, gt=0, description="seconds without progress after which a worker is named and replaced; ten times as many for its first unit"
    )

    check_every: Duration | None = Field(
        None,
        description='replicas compare their state so often, and before each save; "100 steps" when left out, "0 steps" for never',
    )

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.replicas is not None and self.replicas[0] > self.replicas[1]:
            raise ValueError(f"replicas = {self.replicas} is [fewest, most], and the first is more than the second")
        return self
