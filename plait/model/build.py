"""A model from its settings: one of the families, or a user's own class, with its initial values."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from plait import spec
from plait.errors import RunFileError
from plait.model.decoder import Decoder
from plait.model.encoder import Encoder
from plait.model.init import initialise
from plait.model.layered import Layered
from plait.model.own import check_call, load_object
from plait.model.seq2seq import Seq2Seq
from plait.model.sharding import check

_KINDS: dict[str, type[Layered]] = {"bert": Encoder, "t5": Seq2Seq}


def build(
    model: spec.Model,
    vocabulary: int,
    sequence: int,
    seed: int,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    head: spec.Head | None = None,
) -> nn.Module:
    """The model on `device` in `dtype`, with the values that (settings, seed) mean on every rank and in every layout. head: what an encoder
    tells in place of tokens.

    Raises RunFileError: a user's class that cannot be found, called or built, or does not fit the protocol.
    """
    module = skeleton(model, vocabulary, sequence, seed, head).to(device=device, dtype=dtype)
    if isinstance(module, Layered):
        initialise(module, module.initial, seed)
    return module


def skeleton(model: spec.Model, vocabulary: int, sequence: int, seed: int, head: spec.Head | None = None) -> nn.Module:
    """The model on the CPU before its initial values are drawn; a user's own has them already. Raises as `build`."""
    if model.family not in spec.Model.FAMILIES:
        return _build_own(model, vocabulary, sequence, seed)
    if head is not None:
        return Encoder(model, vocabulary, sequence, head)
    return _KINDS.get(model.family, Decoder)(model, vocabulary, sequence)


def _build_own(model: spec.Model, vocabulary: int, sequence: int, seed: int) -> nn.Module:
    where = f'model.family = "{model.family}"'
    own = load_object(model.family, "model.family")
    if not (isinstance(own, type) and issubclass(own, nn.Module)):
        raise RunFileError(f"{where}: is no subclass of torch.nn.Module")
    check_call(own, model.family, "model.family", model, vocabulary, sequence, **model.settings)
    check_call(own.forward, model.family, "model.family", *(None,) * 4)  # self, tokens_BL, documents_BL, noise
    module = _construct(own, where, model, vocabulary, sequence, seed)
    table: Any = getattr(module, "sharding", {})
    try:
        check(table or {"*": "replicated"}, (path for path, _ in module.named_parameters()))
    except ValueError as error:
        raise RunFileError(f"{where}: {error}") from None
    return module


def _construct(own: type[nn.Module], where: str, model: spec.Model, vocabulary: int, sequence: int, seed: int) -> nn.Module:
    """Seeded, so that every rank starts equal, and without touching the generators of the caller."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return own(model, vocabulary, sequence, **model.settings)
        except Exception as error:  # whatever the user's class raises is the answer
            raise RunFileError(f"{where}: building it fails: {type(error).__name__}: {error}") from error
