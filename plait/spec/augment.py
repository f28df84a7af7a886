"""[data.augment]: another form of each training sample each time that it is drawn."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from plait.spec.section import Section

Rate = Annotated[float, Field(ge=0.0, le=0.5)]


class Augment(Section):
    """What is changed at random in a training sample, by a hash of seed and sample; validation and test never are."""

    bpe_dropout: Rate = Field(0.0, description="merges of the tokenizer that are left out: words in other pieces")
    word_dropout: Rate = Field(0.0, description="words that are left out")
    word_swap: Rate = Field(0.0, description="words that change places with the next")
    sentence_shuffle: Annotated[float, Field(ge=0.0, le=1.0)] = Field(0.0, description="samples whose sentences are put in another order")
    token_mask: Rate = Field(0.0, description="input tokens that are hidden by a random one; targets stay")
    span_mask: Rate = Field(0.0, description="input tokens that are hidden in spans; targets stay")
    mean_span: float = Field(3.0, ge=1.0, description="tokens of a hidden span, on average")

    @property
    def any(self) -> bool:
        return self.rewrites or self.token_mask > 0 or self.span_mask > 0

    @property
    def rewrites(self) -> bool:
        """Whether the text itself changes, and not the inputs alone."""
        return max(self.bpe_dropout, self.word_dropout, self.word_swap, self.sentence_shuffle) > 0

    @model_validator(mode="after")
    def _one_mask(self) -> Self:
        if self.token_mask and self.span_mask:
            raise ValueError("token_mask and span_mask both hide input tokens; write one of them")
        return self
