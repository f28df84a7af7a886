"""[data.clean]: how raw text becomes text worth training on."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from plait.spec.section import Positive, Section

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Private = Literal["email", "ip", "phone"]
Bounds = Annotated[list[float], Field(min_length=2, max_length=2)]
RuleSet = Literal["gopher", "repetition", "c4"]


class Limits(Section):
    """Bounds of the rules for one language, laid over those that are built in for it."""

    words: Bounds | None = Field(None, description="fewest and most words of a document; of Chinese and Japanese, characters")
    mean_word: Bounds | None = Field(None, description="shortest and longest mean length of its words, in characters")
    symbols: Share | None = Field(None, description="most `#`, and most ellipses, a word")
    bullets: Share | None = Field(None, description="largest share of lines that begin with a bullet")
    ellipses: Share | None = Field(None, description="largest share of lines that end in an ellipsis")
    letters: Share | None = Field(None, description="smallest share of words that hold a letter")
    stop_words: int | None = Field(None, ge=0, description="fewest different stop words")
    line_words: int | None = Field(None, ge=0, description='"c4": fewest words of a line')
    sentences: int | None = Field(None, ge=0, description='"c4": fewest sentences of a document')


class Clean(Section):
    """How documents are repaired, which are dropped, and which count as the same."""

    repair: bool = Field(True, description="text that was decoded wrongly is decoded right (ftfy)")
    normalize: Literal["none", "NFC", "NFKC"] = Field("NFC", description="the form of Unicode")
    controls: bool = Field(True, description="control and invisible characters go, tabs and line breaks stay")
    whitespace: bool = Field(True, description="line ends, trailing blanks, more than one empty line in a row")
    private: list[Private] = Field([], description="e-mail addresses, IP addresses, phone numbers are replaced by placeholders")
    languages: list[str] = Field([], description='languages that are kept, ["en", "zh"]; all when left out')
    rules: list[RuleSet] = Field(["gopher", "repetition"], description="sets of rules that a document must pass")
    limits: dict[str, Limits] = Field({}, description='bounds by language; "*" is for all')
    duplicates: Literal["keep", "exact", "near"] = Field("near", description="of documents that are alike the first stays, in all sources")
    similarity: float = Field(
        0.8, gt=0.0, le=1.0, description="share of 5-word sequences in common from which two documents are near-duplicates"
    )
    within: Literal["corpus", "source"] = Field("corpus", description="whether duplicates are looked for across sources, or in each alone")
    against: list[str] = Field([], description="evaluation sets, paths or globs: what shares a sequence of words with them is dropped")
    against_words: Positive = Field(13, description="words of such a sequence")

    @model_validator(mode="after")
    def _sensible(self) -> Self:
        for language in [*self.languages, *(language for language in self.limits if language != "*")]:
            if not re.fullmatch("[a-z]{2,3}", language):
                raise ValueError(f'{language!r} is no code of a language; write "en" for English, "zh" for Chinese')
        for language, limits in self.limits.items():
            for name in ("words", "mean_word"):
                bounds = getattr(limits, name)
                if bounds is not None and bounds[0] > bounds[1]:
                    raise ValueError(f"limits.{language}.{name} = {list(bounds)} is [fewest, most]")
        return self
