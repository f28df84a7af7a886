"""Splits: where each document goes, told by its content, by a field of its row, or in exact shares of each label.

content      hash of the text                          the same text is never in two splits; a growing corpus keeps its splits
by           hash of the field's value                 one author, site or source is never in two splits
by + from    the field's value, compared               later is held back
by + values  the field's value, looked up
stratify     place in its label's order of hashes      shares hold for each label, to a document
together     the hash of its cluster's first           what is nearly the same is never in two splits
"""

from __future__ import annotations

from typing import Any

import numpy as np

from plait import spec
from plait.data import order
from plait.spec.split import SOURCE

SPLITS = ("train", "validation", "test")
TRAIN, VALIDATION, TEST = range(3)
UNTOLD = -1
"""Of a document that is compared with others first."""


def of(content: int, source: str, fields: dict[str, Any], splits: spec.Splits) -> int:
    """The number of a document's split. content: the hash of its text."""
    if splits.by is None:
        return by_hash(content, splits)
    value = source if splits.by == SOURCE else fields[splits.by]
    if not splits.fixed:
        return by_hash(order.key_of("split", value), splits)
    if str(value) in splits.test_values or _from(value, splits.test_from):
        return TEST
    return VALIDATION if str(value) in splits.validation_values or _from(value, splits.validation_from) else TRAIN


def _from(value: Any, first: Any) -> bool:
    return first is not None and bool(value >= first)


def by_hash(content: int, splits: spec.Splits) -> int:
    place = content / 2**64
    if place < splits.validation:
        return VALIDATION
    return TEST if place < splits.validation + splits.test else TRAIN


def stratified(hashes: np.ndarray, labels: np.ndarray, splits: spec.Splits) -> np.ndarray:
    """A split for each document, int8: of each label's documents the first shares in the order of their hashes, rounded."""
    along = np.lexsort((np.arange(len(hashes)), hashes, labels))
    _, first, counts = np.unique(labels[along], return_index=True, return_counts=True)
    places = np.arange(len(hashes)) - np.repeat(first, counts)
    held = np.rint(counts * splits.validation)
    tested = np.rint(counts * (splits.validation + splits.test))
    homes = np.full(len(hashes), TRAIN, dtype=np.int8)
    homes[along[places < np.repeat(tested, counts)]] = TEST
    homes[along[places < np.repeat(held, counts)]] = VALIDATION
    return homes
