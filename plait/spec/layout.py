"""[layout]: over what it is spread."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from plait.spec.section import Positive, Section


class Layout(Section):
    """Replicas, each spread over pipeline x shard x context x tensor x expert."""

    replicas: Positive = Field(1, description="whole copies of the model that share each global batch")
    pipeline: Positive = Field(1, description="stages of consecutive layers")
    shard: Positive = Field(1, description="ranks that share parameters, gradients and optimizer state, and cut micro-batches by sequences")
    context: Positive = Field(1, description="ranks that cut each sequence by positions")
    tensor: Positive = Field(1, description="ranks that cut each matrix")
    expert: Positive = Field(1, description="ranks that share the experts of a mixture, and cut micro-batches by sequences")
    zero: Literal[1, 2, 3] = Field(
        3, description="shard: what is kept in shares alone; 1: optimizer state, 2: gradients too, 3: parameters too"
    )
    offload: bool = Field(False, description="shard: parameters, gradients and optimizer state rest in the host's memory")
    schedule: Literal["gpipe", "1f1b", "interleaved", "zero_bubble"] = Field("1f1b", description="pipeline: the order of micro-batches")
    stages: list[Positive] | None = Field(None, description="pipeline: layers of each stage, in order; by cost when left out")
    context_by: Literal["ring", "ulysses"] = Field(
        "ring", description="context: keys and values go around, or heads are exchanged for positions"
    )

    auto: bool = Field(False, description='chosen when the run starts: what fits in memory and sends least; layout = "auto" says the same')

    INNER: ClassVar[tuple[str, ...]] = ("pipeline", "shard", "context", "tensor", "expert")

    @model_validator(mode="before")
    @classmethod
    def _named(cls, given: Any) -> Any:
        return {"auto": True} if given == "auto" else given

    @model_validator(mode="after")
    def _chosen_later(self) -> Self:
        if self.auto and self.workers > 1:
            raise ValueError("auto = true chooses the sizes of all axes; leave them out, or auto")
        return self

    @model_validator(mode="after")
    def _kept_where_needed(self) -> Self:
        if self.offload and (self.shard == 1 or self.zero == 1):
            raise ValueError("offload = true needs shard above 1 and zero = 2 or 3: what rests on the host is gathered from there")
        if self.schedule == "zero_bubble" and min(self.pipeline, self.shard) > 1 and self.zero == 3:
            raise ValueError(
                'zero = 3 frees parameters behind forward, and schedule = "zero_bubble" finds its halves of backward by them; '
                'use zero = 2, or schedule = "interleaved"'
            )
        return self

    @property
    def ranks(self) -> int:
        """Processes of one replica."""
        return math.prod(getattr(self, axis) for axis in self.INNER)

    @property
    def workers(self) -> int:
        """Processes of all replicas."""
        return self.replicas * self.ranks
