"""stub for now"""
from __future__ import annotations
from collections.abc import Sequence
from typing import Protocol
from torch import Tensor

class Codec(Protocol):
    name: str
    feeds_back: bool
    def encode(self, values_N: Tensor, key: int) -> list[Tensor]: ...
    def decode(self, payload: Sequence[Tensor], out_N: Tensor) -> None: ...

def build_codec(name: str, top_k: float = 0.01) -> Codec | None:
    return None
