"""[data]: what it is computed on."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from plait.spec.augment import Augment
from plait.spec.cache import Cache
from plait.spec.clean import Clean
from plait.spec.objective import SENTINELS, Objective
from plait.spec.places import Place
from plait.spec.section import Positive, Section
from plait.spec.split import SOURCE, Splits


class Source(Section):
    """One source of a mixture."""

    path: Place = Field(description="a path, a glob, a URL, or a folder that datasets.save_to_disk wrote")
    name: str | None = Field(None, description="what it is called; its path when left out")
    weight: float = Field(1.0, gt=0, description="its share of the training samples, relative to the others'")
    format: Literal["text", "jsonl", "parquet", "arrow", "bin", "tsv", "po", "mo"] | None = Field(
        None, description="bin is tokens, tsv, po and mo are pairs; told by the file's name when left out"
    )
    target: Place | None = Field(None, description="translate: the text files that hold the translations, line by line")
    sides: Annotated[list[str], Field(min_length=2, max_length=2)] | None = Field(
        None,
        description="translate: the fields of source and target; source and target in JSONL and Parquet, the first two columns of a TSV "
        "file without titles when left out",
    )
    prefix: str | None = Field(None, description="translate: what is read before each source, to tell one pair of languages from another")
    split: Literal["train", "validation", "test"] | None = Field(None, description="where all of it goes; told by data.split when left out")


class Tokenizer(Section):
    """Either trained here or read from a file."""

    train: Annotated[int, Field(ge=257)] | None = Field(
        None, description="entries of a byte-level BPE: 256 bytes, one special token, merges"
    )
    file: Place | None = Field(None, description="tokenizer.json, a SentencePiece .model or a .tiktoken file; a path or a URL")
    pattern: str | None = Field(None, description="how a .tiktoken file cuts text into words; GPT-4's when left out")

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.train is None) == (self.file is None):
            raise ValueError('write { train = 2048 }, a byte-level BPE of that size, or { file = "tokenizer.json" }')
        return self


def _range(pair: list[int]) -> list[int]:
    if pair[0] >= pair[1]:
        raise ValueError(f"{pair} is [first, end), and nothing lies between")
    return pair


Samples = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=2, max_length=2), AfterValidator(_range)]


class Chat(Section):
    """Rows of JSONL or Parquet are conversations, of which the assistant's answers are learned."""

    messages: str = Field("messages", description="the field of a list of {role, content}")
    prompt: str = Field("prompt", description="or the field of a question ...")
    answer: str = Field("answer", description="... and that of its answer")
    system: str | None = Field(None, description="said before each conversation that begins without a system's message")
    template: Place | None = Field(
        None, description="a Jinja file, or a tokenizer_config.json, that says how messages become text; the base's, or a plain one"
    )
    learn: Literal["answers", "last"] = Field("answers", description="all of the assistant's answers, or the last one alone")
    pack: bool = Field(False, description="as many conversations in a sequence as fit, which do not see each other; one when left out")


class Data(Section):
    """What it is computed on."""

    corpus: list[Place | Source] = Field(
        min_length=1, description="paths or globs of text, JSONL or Parquet; a weighted mixture of sources"
    )
    tokenizer: Tokenizer = Field(Tokenizer(train=2048, file=None, pattern=None), description="how text becomes tokens")
    sequence: Positive = Field(128, description="tokens a sequence")
    objective: Objective = Field(Objective(), description="what a model learns to tell")
    prepared: Place = Field(
        "runs/prepared", description="the folder or URL where token files are kept, and found again by what they were made of"
    )
    fetched_gib: float | None = Field(
        None, ge=0, description="GiB of the files that corpus URLs name that stay on this disk once they are prepared; all when left out"
    )
    backup: Place | None = Field(None, description="a place where prepared data is mirrored, and read from where the first one fails")
    compress: bool = Field(
        True, description="token files are packed by zstd in a store; false where the wire is faster than a core unpacks"
    )
    cache: Cache | None = Field(None, description="for data.prepared in a store; 16 GiB in ~/.cache/plait when left out")
    field: str = Field("text", description="where JSONL and Parquet rows keep the text")
    separator: str = Field("\f", min_length=1, description="ends a document in a plain text file; a form feed when left out")
    split: Splits = Field(Splits(), description="what is held back")
    document_mask: bool = Field(False, description="attention does not cross the border of two documents")
    skip: list[Samples] | None = Field(
        None, description="[first, end) samples of the run's order that are left out, as `Spiked` tells them"
    )
    workers: Positive | None = Field(None, description="processes that prepare; the cores when left out")
    broken: Literal["fail", "skip", "quarantine"] = Field(
        "fail", description="what becomes of input that cannot be used: an error, left out and counted, or laid aside in a file too"
    )
    largest: Positive | None = Field(None, description="bytes of the largest document; a larger one cannot be used; no bound when left out")
    numeric: list[str] = Field(
        [], description="fields of numbers that are kept beside the tokens, scaled by the training split's mean and deviation"
    )
    clean: Clean | None = Field(None, description="how raw text is cleaned; as it is when left out")
    chat: Chat | None = Field(None, description="documents are conversations")
    temperature: float | None = Field(
        None,
        gt=0,
        description="sources are drawn by weight * tokens^(1/temperature): 1 is by size, more is evener; weights alone when left out",
    )
    augment: Augment = Field(Augment(), description="what is changed at random in training samples; nothing when left out")

    @property
    def translates(self) -> bool:
        """Whether documents are pairs of a source and its translation."""
        return self.objective.kind == "translate"

    @model_validator(mode="after")
    def _paired(self) -> Self:
        for entry in () if self.translates else self.corpus:
            given = isinstance(entry, Source) and next(
                (name for name in ("target", "sides", "prefix") if getattr(entry, name) is not None), ""
            )
            if given:
                raise ValueError(f'corpus: {given} is of pairs, and objective.kind = "{self.objective.kind}"; write kind = "translate"')
        if self.translates and (self.clean is not None or self.augment.any):
            raise ValueError(
                f'{"clean" if self.clean is not None else "augment"} is for texts, and objective.kind = "translate" has documents be '
                "pairs; leave one out"
            )
        of_rows = next((name for name in ("target", "pack", "longer") if getattr(self.objective, name) is not None), None)
        if self.chat is not None and of_rows:
            raise ValueError(
                f"objective.{of_rows} is of an encoder-decoder's rows, and chat has a decoder's; leave it out (chat.pack packs)"
            )
        return self

    @model_validator(mode="after")
    def _spoken(self) -> Self:
        if self.chat is not None and self.clean is not None:
            raise ValueError("clean is for texts, and chat has documents be conversations; leave one out")
        if self.chat is not None and self.objective.kind not in ("causal", "translate"):
            raise ValueError(f'chat has answers learned token by token; objective.kind = "{self.objective.kind}" does not')
        if self.chat is not None and self.augment.any:
            raise ValueError("augment changes samples of texts, and chat has documents be conversations; leave one out")
        return self

    @model_validator(mode="after")
    def _of_rows(self) -> Self:
        """What a sample that is a row excludes."""
        kind, parts = self.objective.kind, self.objective.kind in ("tag", "answer") or self.objective.pair is not None
        if not self.objective.labelled:
            return self
        if self.document_mask:
            raise ValueError(f'document_mask is for samples that hold several documents, and objective.kind = "{kind}" has one in each')
        if self.augment.any:
            raise ValueError(f'augment changes samples of texts, and those of objective.kind = "{kind}" have labels; leave augment out')
        if parts and self.clean is not None:
            raise ValueError(f'clean is for texts, and rows of objective.kind = "{kind}" are more than one; leave clean out')
        return self

    @property
    def needed_fields(self) -> dict[str, str]:
        """Fields of a row that settings ask for besides the text, by setting."""
        asked = {"data.split.by": self.split.by if self.split.by != SOURCE else None, "data.split.stratify": self.split.stratify}
        if self.objective.kind in ("classify", "regress"):
            asked["data.objective.label"] = self.objective.label_field
        named = {setting: field for setting, field in asked.items() if field is not None}
        return named | {f"data.numeric.{number}": field for number, field in enumerate(self.numeric)}

    @property
    def numbers(self) -> list[str]:
        """Fields that are numbers, and kept."""
        label = [self.objective.label_field] if self.objective.kind == "regress" else []
        return [*self.numeric, *(field for field in label if field not in self.numeric)]

    @property
    def studied(self) -> bool:
        """Whether documents are looked at together before any is taken."""
        return self.clean is not None or self.split.stratify is not None or self.split.together is not None

    @model_validator(mode="after")
    def _cached(self) -> Self:
        if self.cache is not None and "://" not in self.prepared:
            raise ValueError(f"cache is for token files in a store, and prepared = {self.prepared!r} is a folder; leave cache out")
        return self

    @model_validator(mode="after")
    def _room_for_sentinels(self) -> Self:
        least = 256 + 1 + SENTINELS
        if self.objective.kind == "span" and self.tokenizer.train is not None and self.tokenizer.train < least:
            raise ValueError(
                f'tokenizer.train = {self.tokenizer.train} leaves no room for {SENTINELS} sentinels, which objective.kind = "span" needs '
                f"beside 256 bytes and the end of text; write {least} or more"
            )
        return self

    @model_validator(mode="after")
    def _hidden_once(self) -> Self:
        hiding = next((name for name in ("token_mask", "span_mask") if getattr(self.augment, name)), None)
        if hiding and self.objective.kind != "causal":
            raise ValueError(f'augment.{hiding} hides inputs, which objective.kind = "{self.objective.kind}" does itself; leave it out')
        return self
