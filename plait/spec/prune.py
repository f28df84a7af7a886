"""[prune]: weights become zero while training goes on, and stay so."""

from __future__ import annotations

from collections.abc import Collection
from fnmatch import fnmatchcase
from typing import Literal, Self

from pydantic import Field, model_validator

from plait.spec.duration import Duration
from plait.spec.finetune import some_paths
from plait.spec.section import Fraction, Section


class Prune(Section):
    """The smallest weights of matrices become zero, more and more of them: sparsity (1 - (1 - done)^3) after each `every` from `begin` to
    `end` (Zhu, Gupta 2017)."""

    sparsity: Fraction | None = Field(None, description="share of each matrix that is zero in the end; needed but for 2:4, which has half")
    pattern: Literal["free", "2:4"] = Field(
        "free", description="free: anywhere in a matrix; 2:4: two of each four in a row, all at `begin`"
    )
    matrices: list[str] = Field(["blocks.*"], min_length=1, description="patterns of the paths of matrices, each by itself")
    spared: list[str] = Field(["*.router.*"], description="patterns of those of them that stay whole")
    begin: Duration = Field(
        Duration("0 steps"), description="when it begins; with finetune.from, what is zero there stays so from the start"
    )
    end: Duration | None = Field(None, description="free: when `sparsity` is reached; at `begin` when left out")
    every: Duration | None = Field(None, description="free: how often more become zero; each 10 steps when left out")

    @model_validator(mode="after")
    def _fitting(self) -> Self:
        if self.pattern == "2:4":
            given = next((name for name in ("sparsity", "end", "every") if getattr(self, name) is not None), None)
            if given:
                raise ValueError(f'{given} belongs to pattern = "free": "2:4" makes half of a matrix zero, all at once; leave it out')
        elif self.sparsity is None:
            raise ValueError("sparsity is missing: the share of each matrix that is zero in the end, as 0.8")
        return self

    @property
    def final(self) -> float:
        """The share that is zero in the end."""
        return 0.5 if self.sparsity is None else self.sparsity

    def fits(self, path: str, dims: int) -> bool:
        """Whether weights of the parameter of this path, of so many dims, become zero."""
        if dims < 2 or any(fnmatchcase(path, pattern) for pattern in self.spared):
            return False
        return any(fnmatchcase(path, pattern) for pattern in self.matrices)

    def misses(self, matrices: Collection[str]) -> str | None:
        """Why a pattern fits none of these paths, or nothing is left; None where all is well."""
        for pattern in self.matrices:
            if not any(fnmatchcase(path, pattern) for path in matrices):
                return f'prune.matrices: "{pattern}" fits no matrix; there are {some_paths(matrices)}'
        return None if any(self.fits(path, 2) for path in matrices) else "prune.spared: leaves no matrix to prune"
