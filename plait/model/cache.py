"""Keys and values of positions already computed, so that generation computes each position once.

    slots       0 1 2 3 4 5 6 7
    row 0       t h e   q u i c        all rows write the same slot next: a slice, whatever their lengths
    row 1       . . . . . . a          padded on the left; a mask hides what is not the row's own

A position is a slot less the row's padding.
"""

from __future__ import annotations

import torch
from torch import Tensor

from plait import spec


class Cache:
    """One batch's memory of a decoder. padding: empty slots before each row's first position; none when left out."""

    def __init__(
        self,
        model: spec.Model,
        rows: int,
        capacity: int,
        padding: list[int] | None = None,
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        shape = (model.layers, 2, rows, model.key_value_heads, capacity, model.head_width)
        self._values = torch.zeros(shape, dtype=dtype, device=device)
        self._padding_B1 = torch.tensor(padding, device=device)[:, None] if padding and any(padding) else None
        self.end = 0
        """slots in use"""

    def extend(self, length: int) -> tuple[Tensor, Tensor]:
        """Make room for `length` more positions a row. Returns positions_BL, and a mask [B, 1, L, keys]: what each may see; of one row
        where all are alike. What stands in padding sees itself, so that it is a number at least.

        Raises ValueError where the capacity does not do.
        """
        first, self.end = self.end, self.end + length
        if self.end > self._values.shape[4]:
            raise ValueError(f"{self.end} positions do not fit a cache of {self._values.shape[4]}")
        keys_K = torch.arange(self.end, device=self._values.device)
        slots_L1 = keys_K[first:, None]
        seen_LK = keys_K <= slots_L1
        if self._padding_B1 is None:
            return keys_K[None, first:], seen_LK[None, None]
        seen_BLK = seen_LK & ((keys_K >= self._padding_B1)[:, None] | (keys_K == slots_L1))
        return (keys_K[first:] - self._padding_B1).clamp_min(0), seen_BLK[:, None]

    def advance(self) -> None:
        """Make room for one more position a row. Raises ValueError where the capacity does not do."""
        self.end += 1
        if self.end > self._values.shape[4]:
            raise ValueError(f"{self.end} positions do not fit a cache of {self._values.shape[4]}")

    def write(self, layer: int, k_BGE: Tensor, v_BGE: Tensor) -> tuple[Tensor, Tensor]:
        """The newest position's keys and values of a layer; returns those of all."""
        keys, values = self._values[layer, 0, :, :, : self.end], self._values[layer, 1, :, :, : self.end]
        keys[:, :, -1], values[:, :, -1] = k_BGE, v_BGE
        return keys, values

    def seen(self) -> Tensor | None:
        """The keys that the newest position of each row sees, [B, 1, 1, keys]; None where it sees all."""
        if self._padding_B1 is None:
            return None
        return (torch.arange(self.end, device=self._values.device) >= self._padding_B1)[:, None, None]

    def newest(self) -> int | Tensor:
        """The position of the newest slot, or [B] where rows differ."""
        return self.end - 1 if self._padding_B1 is None else self.end - 1 - self._padding_B1[:, 0]

    def layer(self, index: int) -> LayerCache:
        """The memory of one layer, up to the last `extend`."""
        keys, values = self._values[index]
        return LayerCache(keys, values, self.end)

    def select(self, rows: list[int]) -> None:
        """Go on with these rows, some perhaps twice; of as many as there are, what stands in use is moved alone."""
        if len(rows) == self._values.shape[2]:
            self._values[..., : self.end, :] = self._values[:, :, rows, :, : self.end]
        else:
            self._values = self._values[:, :, rows]
        self._padding_B1 = None if self._padding_B1 is None else self._padding_B1[rows]


class LayerCache:
    """One layer's keys and values, [B, G, capacity, E], of which the first `end` are in use."""

    def __init__(self, keys: Tensor, values: Tensor, end: int) -> None:
        self._keys, self._values, self._end = keys, values, end

    def extend(self, k_BGLE: Tensor, v_BGLE: Tensor) -> tuple[Tensor, Tensor]:
        """Write the newest positions; returns the keys and values of all."""
        first = self._end - k_BGLE.shape[2]
        self._keys[:, :, first : self._end] = k_BGLE
        self._values[:, :, first : self._end] = v_BGLE
        return self._keys[:, :, : self._end], self._values[:, :, : self._end]
