"""[data.objective]: what of a sample a model learns to tell."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from plait.spec.section import Positive, Section

SIDES_EVEN = 16
"""Source and target are filled up to a multiple of so many positions, so that ranks can share them."""
SENTINELS = 100
"""That a tokenizer that is trained here has, as T5's."""


class Objective(Section):
    """What of a sample a model learns to tell."""

    kind: Literal["causal", "masked", "span", "translate"] = Field(
        "causal",
        description="causal: each token from those before it; masked: a few tokens from all the others (bert); span: spans of tokens, by a "
        "decoder, from what an encoder reads of the rest (t5); translate: the target of each pair, from its source (t5; or chat)",
    )
    rate: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="masked and span: share of the tokens to tell; 0.15 when left out"
    )
    whole_words: bool | None = Field(None, description="masked: words are masked as a whole, but for one that would be too much")
    mean_span: Annotated[float, Field(ge=1)] | None = Field(None, description="span: tokens of a span, on average; 3 when left out")

    target: Positive | None = Field(None, description="translate: tokens of a row's target side; data.sequence when left out")
    pack: bool | None = Field(
        None, description="translate: a row holds as many pairs as fit, which do not see each other; yes when left out"
    )
    longer: Literal["skip", "cut", "fail"] | None = Field(
        None, description="translate: a pair that is longer than a row is left out and counted, cut off, or an error; skip when left out"
    )

    BELONGS: ClassVar[dict[str, tuple[str, ...]]] = {
        "rate": ("masked", "span"),
        "whole_words": ("masked",),
        "mean_span": ("span",),
        "target": ("translate",),
        "pack": ("translate",),
        "longer": ("translate",),
    }

    @model_validator(mode="after")
    def _belongs(self) -> Self:
        for name, kinds in self.BELONGS.items():
            if getattr(self, name) is not None and self.kind not in kinds:
                wanted = " or ".join(f'"{kind}"' for kind in kinds)
                raise ValueError(f'{name} belongs to kind = {wanted}; leave it out with "{self.kind}"')
        return self
