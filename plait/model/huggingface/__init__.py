"""Hugging Face: whose models plait reads and writes, and what of them maps to what."""

from __future__ import annotations

from collections.abc import Sequence

from plait.errors import CheckpointError
from plait.model.huggingface.decoders import DECODERS
from plait.model.huggingface.decoders import kind_of as kind_of_decoder
from plait.model.huggingface.dialect import Config, Dialect, Shape, Source, Weight
from plait.model.huggingface.encoders import BERTS
from plait.model.huggingface.encoders import check as check_encoder
from plait.model.huggingface.seq2seq import T5

__all__ = ["Config", "Dialect", "Shape", "Source", "Weight", "dialect", "dialect_of"]

_DIALECTS = {dialect.kind: dialect for dialect in (*DECODERS, *BERTS.values(), T5)}


def dialect(kind: str, where: str, architectures: Sequence[str] = ()) -> Dialect:
    """Of a model_type; architectures tell heads apart. Raises CheckpointError: none that plait knows."""
    if kind == "bert":
        return next((each for each in BERTS.values() if each.architecture in architectures), BERTS["masked"])
    if kind not in _DIALECTS:
        raise CheckpointError(f"{where}: model_type = {kind!r} is not among those that plait reads: {', '.join(_DIALECTS)}")
    return _DIALECTS[kind]


def dialect_of(shape: Shape) -> Dialect:
    """The one that a model of plait's is written in. Raises CheckpointError naming a setting that none of them has."""
    if ":" in shape.model.family:
        raise CheckpointError(f'model.family = "{shape.model.family}": a model of your own has no family at Hugging Face')
    if shape.model.family == "bert":
        check_encoder(shape)
        return BERTS[shape.objective.kind]
    if shape.model.family == "t5":
        return T5
    return _DIALECTS[kind_of_decoder(shape)]
