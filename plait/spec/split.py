"""[data.split]: what is held back."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from plait.spec.section import Fraction, Section

SOURCE = "source"
"""As `by`: the name of a document's source."""


class Splits(Section):
    """What is held back: shares of the documents, or those whose field says so."""

    validation: Fraction = Field(0.05, description="share of the documents")
    test: Fraction = Field(0.05, description="share of the documents")
    by: str | None = Field(
        None,
        description="the field that tells a document's split; documents of one value stay together; `source` is the source's name; "
        "a hash of the content when left out",
    )
    validation_from: str | float | None = Field(None, description="documents whose field is this or later are held back")
    test_from: str | float | None = Field(None, description="those from here on are for testing")
    validation_values: list[str] = Field([], description="documents whose field is one of these are held back")
    test_values: list[str] = Field([], description="those whose field is one of these are for testing")
    stratify: str | None = Field(None, description="the field of a label: each label has the shares exactly")
    together: float | None = Field(None, gt=0.0, le=1.0, description="documents at least this similar go to one split")

    @property
    def fixed(self) -> bool:
        """Values say the split, not shares."""
        return bool(self.validation_from is not None or self.test_from is not None or self.validation_values or self.test_values)

    @model_validator(mode="after")
    def _something_left(self) -> Self:
        if self.validation + self.test >= 1:
            raise ValueError(f"validation + test = {self.validation + self.test:g} leaves nothing to train on")
        return self

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        since = self.validation_from is not None or self.test_from is not None
        listed = bool(self.validation_values or self.test_values)
        if (since or listed) and self.by is None:
            raise ValueError('validation_from and validation_values are of a field; name it, for example by = "date"')
        if since and listed:
            raise ValueError("validation_from and validation_values are two ways to say the same; write one of them")
        if self.stratify is not None and self.by is not None:
            raise ValueError(
                f'stratify = "{self.stratify}" takes shares of each label, and by = "{self.by}" keeps documents together; write one'
            )
        if type(self.validation_from) is not type(self.test_from) and None not in (self.validation_from, self.test_from):
            raise ValueError("validation_from and test_from must be of one kind, both text or both numbers")
        if (self.validation_from is not None and self.test_from is not None) and self.test_from < self.validation_from:  # type: ignore[operator]
            raise ValueError(f"test_from = {self.test_from!r} is before validation_from = {self.validation_from!r}")
        if self.together is not None and self.by is not None:
            raise ValueError(f'together = {self.together} moves documents to one split, and by = "{self.by}" says which; write one')
        return self
