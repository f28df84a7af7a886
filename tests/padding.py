"""Workers that compute rows otherwise than they should: with their padding, or without it and as if it had never been."""

from __future__ import annotations

from typing import Any

from plait.cluster import worker
from plait.data import dealing
from plait.replica import compute


def kept(values: dict[str, Any]) -> int:
    """Rows are computed whole, as they are where nothing is known of their lengths."""
    patched: Any = dealing
    patched.grain = lambda run: None
    return worker.main(values)


def forgotten(values: dict[str, Any]) -> int:
    """The mistake that padding invites: dropout is drawn by the length that is computed, which follows the other rows of a micro-batch."""
    cut_of, patched = compute.Compute._cut_of, compute.Compute
    patched._cut_of = lambda self, length, whole=0: cut_of(self, length)  # type: ignore[method-assign]
    return worker.main(values)
