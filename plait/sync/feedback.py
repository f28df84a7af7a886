"""Error feedback: what compression holds back is sent with what comes next.

    values = gradient + residual        sent = decode(encode(values))        residual' = values - sent

What was staged in a unit counts once the unit is committed, and is thrown away with it otherwise: a step that was skipped sent nothing.
Sources: Seide et al. 2014 (1-bit SGD); Stich et al. 2018 (sparsified SGD with memory).
"""

from __future__ import annotations

from zlib import crc32

import torch
from torch import Tensor

from plait.sync.compress import Codec


class Feedback:
    """Encodes what one member sends. residuals: by bucket's key, empty where the codec needs none. codec None: all is sent as it is."""

    def __init__(self, codec: Codec | None, seed: int) -> None:
        self.codec = codec
        self._seed = seed
        self.residuals: dict[int, Tensor] = {}
        self._staged: dict[int, Tensor] = {}

    @property
    def feeds_back(self) -> bool:
        """Whether anything is ever held back."""
        return self.codec is not None and self.codec.feeds_back

    def pay(self, values_N: Tensor, key: int) -> list[Tensor]:
        """A bucket as it is, with all that was held back of it."""
        held = self._staged.get(key, self.residuals.get(key))
        self._staged[key] = torch.zeros_like(values_N)
        return [values_N if held is None else values_N + held]

    def pay_back(self, values_N: Tensor, key: int) -> None:
        """Nobody is left to send it to: what was held back is in the sum itself."""
        if key in self.residuals:
            values_N += self.residuals[key]
            self._staged[key] = torch.zeros_like(values_N)

    def encode(self, values_N: Tensor, key: int, unit: tuple[int, ...]) -> list[Tensor]:
        """The payload of a bucket. unit: what is sent of it, so that no rounding is like another."""
        if self.codec is None:
            return [values_N]
        named = crc32(repr((self._seed, key, unit)).encode())
        if not self.codec.feeds_back:
            return self.codec.encode(values_N, named)
        held = self._staged.get(key, self.residuals.get(key))
        owed_N = values_N if held is None else values_N + held
        payload = self.codec.encode(owed_N, named)
        sent_N = torch.empty_like(owed_N)
        self.codec.decode(payload, sent_N)
        self._staged[key] = owed_N - sent_N
        return payload

    def keep(self, committed: bool) -> None:
        """The verdict on what was sent since the last one."""
        if committed:
            self.residuals |= self._staged
        self._staged = {}
