"""[cluster]: where it runs."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from plait.spec.section import Positive, Section

Device = Literal["auto", "cpu", "cuda"]


class Cluster(Section):
    launcher: Literal["local", "environment", "ray"] = Field("local", description='"environment" is taken under torchrun, srun and mpirun')
    device: Device = Field("auto", description="auto takes a GPU where there is one")
    threads: Positive | None = Field(None, description="threads a worker; the cores shared out when left out")

    @model_validator(mode="after")
    def _built(self) -> Self:
        if self.launcher == "ray":
            raise ValueError('launcher = "ray" is not built yet; use "local", or start plait under torchrun, srun or mpirun')
        return self
