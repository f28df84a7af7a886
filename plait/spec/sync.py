"""The section [sync]: how replicas agree, and what excludes what."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from plait.spec.duration import Duration
from plait.spec.section import Fraction, Positive, Section
from plait.spec.until import Until

_PHASES = '[{ until = "100 steps", strategy = "allreduce" }, { strategy = "diloco", every = "20 steps" }]'


class Agreement(Section):
    """How replicas agree: for a run, or for one phase of it."""

    strategy: Literal["allreduce", "local_sgd", "diloco", "server", "phases"] = Field(
        "allreduce", description="gradients summed each step; parameters averaged each round, diloco with an outer step; a parameter server"
    )
    every: Duration | None = Field(None, description="local_sgd, diloco: steps between two averages")
    outer_lr: Annotated[float, Field(gt=0)] | None = Field(None, description="diloco: of the outer step; 0.7 when left out")
    outer_momentum: Fraction | None = Field(None, description="diloco: of the outer step, Nesterov's; 0.9 when left out")
    update: Literal["synchronous", "bounded", "asynchronous"] | None = Field(
        None, description="server: applied once a global batch, or each push as it comes; synchronous when left out"
    )
    staleness: Annotated[int, Field(ge=0)] | None = Field(
        None, description='update = "bounded": most updates between the parameters that a push was computed from and its own'
    )
    damping: Literal["none", "inverse"] | None = Field(
        None, description="server, not synchronous: the rate of a push s updates old is divided by 1 + s; none when left out"
    )
    push_every: Positive | None = Field(None, description="server: micro-batches in a push; 1 when left out")
    compress: Literal["none", "bf16", "fp16", "int8", "topk"] = Field("none", description="of what replicas send")
    top_k: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description='compress = "topk": the share of values that is sent; 0.01 when left out'
    )

    OF_STRATEGY: ClassVar[dict[str, tuple[str, ...]]] = {
        "every": ("local_sgd", "diloco"),
        "outer_lr": ("diloco",),
        "outer_momentum": ("diloco",),
        "update": ("server",),
        "staleness": ("server",),
        "damping": ("server",),
        "push_every": ("server",),
    }

    @model_validator(mode="after")
    def _belong(self) -> Self:
        for name, strategies in self.OF_STRATEGY.items():
            if getattr(self, name) is not None and self.strategy not in strategies:
                belongs = " and ".join(f'"{each}"' for each in strategies)
                raise ValueError(f'{name} belongs to strategy = {belongs}; leave it out with "{self.strategy}"')
        if self.strategy in ("local_sgd", "diloco") and self.every is None:
            raise ValueError(f'strategy = "{self.strategy}" needs every, the length of a round; write every = "16 steps"')
        if self.every is not None and self.every.amount == 0:
            raise ValueError("every: a round has one step or more")
        if self.top_k is not None and self.compress != "topk":
            raise ValueError(f'top_k belongs to compress = "topk"; leave it out with "{self.compress}"')
        return self

    @model_validator(mode="after")
    def _served(self) -> Self:
        if self.strategy != "server":
            return self
        if (self.staleness is not None) != (self.update == "bounded"):
            raise ValueError(
                f'staleness belongs to update = "bounded"; leave it out with "{self.mode}"'
                if self.staleness is not None
                else 'update = "bounded" needs staleness, a number of updates; write staleness = 4'
            )
        if self.damping is not None and self.mode == "synchronous":
            raise ValueError('damping is for pushes that are late, and update = "synchronous" has none; leave it out')
        return self

    @property
    def mode(self) -> str:
        """The strategy's name, and of a server the update's: what events call it."""
        return (self.update or "synchronous") if self.strategy == "server" else self.strategy

    @property
    def unit(self) -> Literal["step", "round", "piece"]:
        """What commits whole."""
        units: dict[str, Literal["round", "piece"]] = {
            "local_sgd": "round",
            "diloco": "round",
            "bounded": "piece",
            "asynchronous": "piece",
        }
        return units.get(self.mode, "step")


class Phase(Agreement):
    until: Until | None = Field(
        None, description='the run so far: "200 steps", or its last ten steps: "loss below 4.5", "waiting above 30%"; none in the last'
    )

    @model_validator(mode="after")
    def _not_nested(self) -> Self:
        if self.strategy == "phases":
            raise ValueError('strategy = "phases" cannot stand inside phases; name another')
        return self


class Link(Section):
    """A slow link between replicas, emulated; events and reports say so."""

    latency: Annotated[float, Field(ge=0)] = Field(0.0, description="milliseconds that a message takes")
    bandwidth: Annotated[float, Field(gt=0)] | None = Field(None, description="MiB a second, at most, each way")


class Sync(Agreement):
    """How replicas agree."""

    phases: list[Phase] | None = Field(None, description='strategy = "phases": one after the other')
    servers: Positive | None = Field(None, description="server: processes that share parameters and optimizer state; 1 when left out")
    bucket_mib: Annotated[float, Field(gt=0)] | Literal["auto"] = Field(
        8.0, description="size of the pieces in which gradients are sent; auto: by the link as it is measured"
    )
    link: Link | None = Field(None, description="a slower link than there is, emulated")

    @model_validator(mode="after")
    def _in_phases(self) -> Self:
        if (self.strategy == "phases") != (self.phases is not None):
            raise ValueError(
                f'strategy = "phases" needs phases = {_PHASES}'
                if self.phases is None
                else f'phases belongs to strategy = "phases"; leave it out with "{self.strategy}"'
            )
        if self.phases is not None:
            if not self.phases or any(phase.until is None for phase in self.phases[:-1]) or self.phases[-1].until is not None:
                raise ValueError("phases: each but the last needs `until`, and the last has none")
            if self.compress != "none":
                raise ValueError('compress stands in each of phases; leave it out beside strategy = "phases"')
        if self.servers is not None and not self.serves:
            raise ValueError(f'servers belongs to strategy = "server"; leave it out with "{self.strategy}"')
        return self

    @property
    def agreements(self) -> Sequence[Agreement]:
        """One for each phase; a run without phases is one."""
        return self.phases if self.phases is not None else [self]

    @property
    def serves(self) -> bool:
        """Whether there is a parameter server, in any phase."""
        return any(agreement.strategy == "server" for agreement in self.agreements)

    @property
    def processes(self) -> int:
        """Parameter servers, in all phases."""
        return (self.servers or 1) if self.serves else 0

    @property
    def bucket_bytes(self) -> int:
        """To begin with."""
        return int((8.0 if self.bucket_mib == "auto" else self.bucket_mib) * 2**20)
