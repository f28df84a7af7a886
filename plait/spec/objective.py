"""[data.objective]: what of a sample a model learns to tell."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from plait.spec.section import Positive, Section

SIDES_EVEN = 16
"""Source and target are filled up to a multiple of so many positions, so that ranks can share them."""
SENTINELS = 100
"""That a tokenizer that is trained here has, as T5's."""
HEADS = ("classify", "regress", "tag", "answer")
"""Objectives that an encoder has a head of their own for, where each row of data is a sample."""


class Head(NamedTuple):
    """What an encoder tells in place of tokens. outputs: numbers at each place."""

    kind: str
    outputs: int

    @property
    def pooled(self) -> bool:
        """Whether it tells something of a sample as a whole."""
        return self.kind in ("classify", "regress")


class Objective(Section):
    """What of a sample a model learns to tell."""

    kind: Literal["causal", "masked", "span", "translate", "classify", "regress", "tag", "answer"] = Field(
        "causal",
        description="causal: each token from those before it; masked: a few tokens from all the others (bert); span: spans of tokens, by a "
        "decoder, from what an encoder reads of the rest (t5); translate: the target of each pair, from its source (t5; or chat); "
        "classify, regress, tag, answer: a label or a number of each row, a label of each word, a span of a passage (bert)",
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
    label: str | None = Field(
        None, description="classify, regress, tag: the field of a row's label, number, or list of labels; `label` or `tags` when left out"
    )
    labels: Annotated[list[str], Field(min_length=2)] | None = Field(
        None, description="classify, tag: what is told apart, in this order; the training split's labels when left out, which plait writes"
    )
    pair: str | None = Field(None, description="classify, regress: the field of a second text, which is read with the first")
    weights: Literal["balanced"] | dict[str, Annotated[float, Field(gt=0)]] | None = Field(
        None,
        description='classify, tag: what a target of each label weighs in the loss, or "balanced": the rarer the more; 1 when left out',
    )
    scale: Annotated[list[float], Field(min_length=2, max_length=2)] | None = Field(
        None, description="regress: mean and deviation by which numbers are scaled; the training split's when left out, which plait writes"
    )
    between: str | None = Field(None, description="tag: what stands between two words; a space when left out")
    question: str | None = Field(None, description="answer: the field of the question; `question` when left out")
    passage: str | None = Field(None, description="answer: the field of what is asked about; `context` when left out")
    answers: str | None = Field(
        None, description="answer: the field of right answers, { text = [...], answer_start = [...] }; `answers` when left out"
    )
    stride: Positive | None = Field(
        None, description="answer: tokens from one window of a long passage to the next; half a sequence when left out"
    )

    BELONGS: ClassVar[dict[str, tuple[str, ...]]] = {
        "rate": ("masked", "span"),
        "whole_words": ("masked",),
        "mean_span": ("span",),
        "target": ("translate",),
        "pack": ("translate",),
        "longer": ("translate",),
        "label": ("classify", "regress", "tag"),
        "labels": ("classify", "tag"),
        "pair": ("classify", "regress"),
        "weights": ("classify", "tag"),
        "scale": ("regress",),
        "between": ("tag",),
        "question": ("answer",),
        "passage": ("answer",),
        "answers": ("answer",),
        "stride": ("answer",),
    }
    MADE: ClassVar[tuple[str, ...]] = ("labels", "weights", "scale", "stride")
    """What is made of rows that are prepared alike."""

    @property
    def labelled(self) -> bool:
        """Whether each row of data is a sample, of which something else than its tokens is told."""
        return self.kind in HEADS

    @property
    def label_field(self) -> str:
        return self.label or ("tags" if self.kind == "tag" else "label")

    @property
    def head(self) -> Head | None:
        """What an encoder tells; its labels must be known by then."""
        if not self.labelled:
            return None
        return Head(self.kind, {"regress": 1, "answer": 2}.get(self.kind) or len(self.labels or ()))

    @model_validator(mode="after")
    def _labelled(self) -> Self:
        if self.labels is not None and len(set(self.labels)) < len(self.labels):
            raise ValueError(f"labels = {self.labels} names one twice")
        if isinstance(self.weights, dict) and self.labels is not None and set(self.weights) != set(self.labels):
            raise ValueError(f"weights are of {sorted(self.weights)}, and labels = {self.labels}; weigh each label")
        if self.scale is not None and self.scale[1] <= 0:
            raise ValueError(f"scale = {self.scale}: is [mean, deviation], and a deviation is above 0")
        return self

    @model_validator(mode="after")
    def _belongs(self) -> Self:
        for name, kinds in self.BELONGS.items():
            if getattr(self, name) is not None and self.kind not in kinds:
                wanted = " or ".join(f'"{kind}"' for kind in kinds)
                raise ValueError(f'{name} belongs to kind = {wanted}; leave it out with "{self.kind}"')
        return self
