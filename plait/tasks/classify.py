"""What a trained encoder tells of texts: the label of each, a number, or a label of each word."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from plait.data.labels import encode_words, has_parts
from plait.data.samples import Batched, Frame, batched
from plait.errors import UserError
from plait.replica import device as devices
from plait.tasks.trained import Trained

Text = str | tuple[str, str]
"""A text, or two that are read together."""


@dataclass(frozen=True)
class Classified:
    """probabilities: of all labels, in the order of the model's."""

    text: Text
    label: str
    probability: float
    probabilities: dict[str, float]


@dataclass(frozen=True)
class Numbered:
    """value: in the unit of the data."""

    text: Text
    value: float


@dataclass(frozen=True)
class Tagged:
    """labels: of each word; None of words behind what the model reads."""

    words: list[str]
    labels: list[str | None]


def classify(trained: Trained, texts: Sequence[Text], batch: int = 32) -> list[Classified]:
    """Raises UserError: the model has no head that classifies, or reads other texts, one or two."""
    needs_head(trained, "classify")
    names = trained.run.data.objective.labels or []
    found = []
    for text, outputs_1O in zip(texts, outputs_of(trained, rows_of(trained, texts), batch), strict=True):
        shares = outputs_1O[0].softmax(-1).tolist()
        best = max(range(len(names)), key=shares.__getitem__)
        found.append(Classified(text, names[best], shares[best], dict(zip(names, shares, strict=True))))
    return found


def numbers(trained: Trained, texts: Sequence[Text], batch: int = 32) -> list[Numbered]:
    """Raises as `classify`."""
    needs_head(trained, "regress")
    mean, deviation = trained.run.data.objective.scale or (0.0, 1.0)
    outputs = outputs_of(trained, rows_of(trained, texts), batch)
    return [Numbered(text, float(row[0, 0]) * deviation + mean) for text, row in zip(texts, outputs, strict=True)]


def tag(trained: Trained, sentences: Sequence[list[str]], batch: int = 32) -> list[Tagged]:
    """A label of each word, told at its first token. Raises as `classify`."""
    needs_head(trained, "tag")
    objective, frame = trained.run.data.objective, frame_of(trained)
    names = objective.labels or []
    pieces = [encode_words(words, objective, trained.tokenizer) for words in sentences]
    outputs = outputs_of(trained, [frame.one(np.concatenate(words)) for words in pieces], batch)
    found = []
    for words, parts, outputs_RO in zip(sentences, pieces, outputs, strict=True):
        firsts = 1 + np.cumsum([0, *map(len, parts)])[:-1]
        told = outputs_RO.argmax(-1).tolist()
        labels = [
            names[told[first]] if first < frame.sequence - 1 and len(part) else None for first, part in zip(firsts, parts, strict=True)
        ]
        found.append(Tagged(words, labels))
    return found


def needs_head(trained: Trained, *kinds: str) -> None:
    """Raises UserError: a model that tells something else."""
    kind = trained.run.data.objective.kind
    if kind not in kinds:
        wanted = " or ".join(f'"{each}"' for each in kinds)
        from_it = f'finetune.from = "{trained.folder}"' if trained.run.model.family == "bert" else 'model.family = "bert"'
        raise UserError(
            f'{trained.folder}: was trained with data.objective.kind = "{kind}", and has no head for {wanted}; '
            f'train a "bert" for it: {from_it}, data.objective = {{ kind = "{kinds[0]}" }}'
        )


def frame_of(trained: Trained) -> Frame:
    return Frame.of(trained.tokenizer, trained.run.data.sequence)


def rows_of(trained: Trained, texts: Sequence[Text]) -> list[np.ndarray]:
    """Texts as the model was trained to read them. Raises UserError: empty ones, or one where it reads two."""
    pairs, frame = trained.run.data.objective.pair is not None, frame_of(trained)
    for text in texts:
        if isinstance(text, tuple) != pairs:
            raise UserError(f"{trained.folder}: reads {'two texts' if pairs else 'one text'} at a time, and got {text!r}")
        if not all(part.strip() for part in ([text] if isinstance(text, str) else text)):
            raise UserError("there is an empty text, of which nothing can be told")
    encoded = trained.tokenizer.encode([part for text in texts for part in ([text] if isinstance(text, str) else text)])
    if not pairs:
        return [frame.one(ids) for ids in encoded]
    return [frame.two(first, second) for first, second in zip(encoded[::2], encoded[1::2], strict=True)]


def outputs_of(trained: Trained, rows: Sequence[np.ndarray], batch: int = 32) -> list[Tensor]:
    """What the head tells of each row, fp32 [1 or the row's places, outputs], on the CPU: rows of like lengths are computed together."""
    frame, objective = frame_of(trained), trained.run.data.objective
    pairs = has_parts(objective) and objective.kind != "tag"
    along = sorted(range(len(rows)), key=lambda number: len(rows[number]))
    found: dict[int, Tensor] = {}
    for first in range(0, len(along), batch):
        some = along[first : first + batch]
        outputs_BRO = _computed(trained, batched([rows[number] for number in some], len(rows[some[-1]]), frame, pairs))
        found |= {number: outputs_RO[: len(rows[number])] for number, outputs_RO in zip(some, outputs_BRO, strict=True)}
    return [found[number] for number in range(len(rows))]


@torch.inference_mode()
def _computed(trained: Trained, inputs: Batched) -> Tensor:
    device = trained.compute.device
    tokens, documents, segments = (None if each is None else torch.from_numpy(each).to(device) for each in inputs)
    with devices.autocast(device, trained.run.train.precision):
        outputs_BRO: Tensor = trained.module(tokens, documents, segments_BL=segments)
    return outputs_BRO.float().cpu()
