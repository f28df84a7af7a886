"""Keys and values of positions already computed, so that generation computes each position once.

Rows may hold different numbers of positions: each writes behind its own last one, and a mask hides what is not its own. A
prompt shorter than its neighbours is padded on the right; `keep` then forgets the padding, which later positions overwrite.
"""

from __future__ import annotations

import torch
from torch import Tensor

from plait import spec


class Cache:
    """One batch's memory of a decoder."""

    def __init__(self, model: spec.Model, rows: int, capacity: int, *, dtype: torch.dtype, device: torch.device) -> None:
        shape = (model.layers, 2, rows, model.key_value_heads, capacity, model.head_width)
        self._values = torch.zeros(shape, dtype=dtype, device=device)
        self._lengths = [0] * rows
        self._positions_BL = torch.empty(0)
        self._end = 0

    def extend(self, length: int) -> tuple[Tensor, Tensor]:
        """Make room for `length` more positions a row. Returns positions_BL, and a mask [B, 1, L, keys]: what each may see.

        Raises ValueError where a row would outgrow the capacity.
        """
        self._end = max(self._lengths) + length
        if self._end > self._values.shape[4]:
            raise ValueError(f"{self._end} positions do not fit a cache of {self._values.shape[4]}")
        device = self._values.device
        starts_B1 = torch.tensor(self._lengths, device=device)[:, None]
        self._positions_BL = starts_B1 + torch.arange(length, device=device)
        self._lengths = [held + length for held in self._lengths]
        mask_BLK = torch.arange(self._end, device=device) <= self._positions_BL[..., None]
        return self._positions_BL, mask_BLK[:, None]

    def layer(self, index: int) -> LayerCache:
        """The memory of one layer, for the positions of the last `extend`."""
        keys, values = self._values[index]
        return LayerCache(keys, values, self._positions_BL, self._end)

    def keep(self, lengths: list[int]) -> None:
        """Forget each row's positions from `lengths` on."""
        self._lengths = list(lengths)

    def select(self, rows: list[int]) -> None:
        """Go on with these rows alone."""
        self._values = self._values[:, :, rows]
        self._lengths = [self._lengths[row] for row in rows]


class LayerCache:
    """One layer's keys and values, [B, G, capacity, E], of which the first `end` are in use."""

    def __init__(self, keys: Tensor, values: Tensor, positions_BL: Tensor, end: int) -> None:
        self._keys, self._values, self._positions_BL, self._end = keys, values, positions_BL, end

    def extend(self, k_BGLE: Tensor, v_BGLE: Tensor) -> tuple[Tensor, Tensor]:
        """Write the new positions; returns the keys and values of all."""
        rows_B1 = torch.arange(len(k_BGLE), device=k_BGLE.device)[:, None]
        self._keys[rows_B1, :, self._positions_BL] = k_BGLE.transpose(1, 2)
        self._values[rows_B1, :, self._positions_BL] = v_BGLE.transpose(1, 2)
        return self._keys[:, :, : self._end], self._values[:, :, : self._end]
