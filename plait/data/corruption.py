"""Corruption that a model learns to undo: masked tokens (BERT) and masked spans (T5), as pure functions of keys.

How many tokens are masked hangs on the row's length alone, never on what was drawn: so the divisor of the loss and the width of
T5's two sequences are known from arithmetic.

    tokens   Thank you for inviting me to your party last week         length 10, rate 0.2, mean span 1
    noise     .     .   .     x    .  .   .     .    x   .             2 tokens in 2 spans
    inputs   Thank you for  <0>   me to your  party <1> week
    targets  <0> inviting <1> last <2>
"""

from __future__ import annotations

import numpy as np

from plait.data import chance

KEPT, MASKED = 0.1, 0.8
"""Of the tokens that a model shall tell: so many are masked, so many stay, the rest are exchanged (Devlin et al. 2019, 3.1)."""


def masked_count(lengths: np.ndarray | int, rate: float) -> np.ndarray:
    """Tokens to tell in rows of so many: the nearest number to rate * length, at least one of a row that has any."""
    lengths = np.asarray(lengths)
    count: np.ndarray = np.minimum(np.maximum(np.rint(lengths * rate).astype(np.int64), 1), lengths)
    return count


def mask(
    tokens_BL: np.ndarray,
    lengths_B: np.ndarray,
    keys_B: np.ndarray,
    rate: float,
    mask_token: int,
    vocabulary: int,
    words_BL: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Masked language modelling (BERT): the rows with masked_count(length) tokens corrupted each, and which they are, bool [B, L].

    Of those 80% become mask_token, 10% a random token below `vocabulary`, 10% stay. words_BL: numbers of words in the row, which are
    masked as a whole; of the last one that is chosen no more than fits.
    """
    most = tokens_BL.shape[1]
    told_BL = chance.chosen(keys_B, most, masked_count(lengths_B, rate), lengths_B, words_BL)
    fate_BL = chance.uniform(keys_B, most, first=most)
    exchanged_BL = (chance.uniform(keys_B, most, first=2 * most) * vocabulary).astype(tokens_BL.dtype)
    corrupted_BL = np.where(told_BL & (fate_BL < MASKED), mask_token, tokens_BL)
    return np.where(told_BL & (fate_BL >= MASKED + KEPT), exchanged_BL, corrupted_BL), told_BL


def span_counts(length: int, rate: float, mean_span: float) -> tuple[int, int]:
    """Noise tokens, and spans of them, in a row: at least one of each, and a token that is no noise before each span."""
    noise = min(max(round(length * rate), 1), length - 1)
    spans = min(max(round(noise / mean_span), 1), noise, length - noise)
    return noise, spans


def span_widths(length: int, rate: float, mean_span: float) -> tuple[int, int]:
    """Tokens of T5's inputs and targets out of a row of so many: what is left and a sentinel a span; the spans, each behind its sentinel,
    and a last sentinel."""
    noise, spans = span_counts(length, rate, mean_span)
    return length - noise + spans, noise + spans + 1


def spans(keys_B: np.ndarray, length: int, rate: float, mean_span: float) -> np.ndarray:
    """Which tokens are noise, bool [B, length]: kept and noise spans in turn, each kind cut at random (Raffel et al. 2020, 3.1.4)."""
    noise, count = span_counts(length, rate, mean_span)
    kept_BS = _cut(keys_B, length - noise, count, first=0)
    noise_BS = _cut(keys_B, noise, count, first=length)
    edges_BE = np.stack([kept_BS, noise_BS], axis=2).reshape(len(keys_B), 2 * count).cumsum(axis=1)
    begins_BL = np.zeros((len(keys_B), length + 1), dtype=np.int64)
    np.put_along_axis(begins_BL, edges_BE, 1, axis=1)
    odd: np.ndarray = begins_BL[:, :length].cumsum(axis=1) % 2 == 1
    return odd


def collapse(tokens_BL: np.ndarray, noise_BL: np.ndarray, first_sentinel: int) -> tuple[np.ndarray, np.ndarray]:
    """T5's inputs and targets, of `span_widths`; sentinels are first_sentinel, first_sentinel - 1, ... as in T5's vocabulary.

    tokens_BL, noise_BL: rows of equal numbers of noise tokens and spans, as `spans` draws them.
    """
    begins_BL = noise_BL & ~np.pad(noise_BL, ((0, 0), (1, 0)))[:, :-1]
    sentinels_BL = first_sentinel - (begins_BL.cumsum(axis=1) - 1)
    rows = len(tokens_BL)
    inputs_BI = np.where(begins_BL, sentinels_BL, tokens_BL)[~noise_BL | begins_BL].reshape(rows, -1)
    pairs_BL2 = np.stack([sentinels_BL, tokens_BL], axis=2)
    targets_BT = pairs_BL2[np.stack([begins_BL, noise_BL], axis=2)].reshape(rows, -1)
    last_B1 = np.full((rows, 1), first_sentinel - int(begins_BL[:1].sum()), dtype=tokens_BL.dtype)
    return inputs_BI.astype(tokens_BL.dtype), np.concatenate([targets_BT.astype(tokens_BL.dtype), last_B1], axis=1)


def _cut(keys_B: np.ndarray, items: int, parts: int, first: int) -> np.ndarray:
    """`items` cut into `parts` of at least one each, all ways alike: int64 [B, parts]."""
    ones_B = np.ones(len(keys_B), dtype=np.int64)
    drawn_BI = chance.uniform(keys_B, items - 1, first)
    cuts_BI = drawn_BI.argsort(axis=1, kind="stable")[:, : parts - 1] + 1
    edges_BE = np.concatenate([0 * ones_B[:, None], np.sort(cuts_BI, axis=1), items * ones_B[:, None]], axis=1)
    return np.diff(edges_BE, axis=1)
