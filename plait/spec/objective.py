"""[data.objective]: what of a sample a model learns to tell."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from plait.spec.section import Section


class Objective(Section):
    """What of a sample a model learns to tell."""

    kind: Literal["causal", "masked"] = Field(
        "causal", description="causal: each token from those before it; masked: a few tokens from all the others (bert)"
    )
    rate: Annotated[float, Field(gt=0, lt=1)] | None = Field(None, description="masked: share of the tokens to tell; 0.15 when left out")
    whole_words: bool | None = Field(None, description="masked: words are masked as a whole, but for one that would be too much")

    @model_validator(mode="after")
    def _belongs(self) -> Self:
        given = [name for name in ("rate", "whole_words") if getattr(self, name) is not None]
        if self.kind == "causal" and given:
            raise ValueError(f'{given[0]} belongs to kind = "masked"; leave it out with "causal"')
        return self
