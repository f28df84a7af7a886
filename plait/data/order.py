"""Order: a keyed permutation with random access, in memory that does not grow with its length.

Numbers below 2^bits are split in two halves that scramble each other, round by round (a Feistel network: a permutation
whatever the function f is). Where the length is less than 2^bits, a result beyond it is sent through again until it falls
inside ("cycle walking", Black and Rogaway 2002): fewer than two passes on average, since 2^bits < 2 * length.

    left  right            x ->  pass -> 11 (beyond 9) -> pass -> 4
       \\  /  \\
        xor <- f(right, round key)
       /        (halves change places)
"""

from __future__ import annotations

import hashlib
from typing import overload

import numpy as np

ROUNDS = 8
LONGEST = 1 << 62
_GOLDEN = 0x9E3779B97F4A7C15
_U64 = (1 << 64) - 1


class Permutation:
    """The numbers below `length` in an order told by `key`; any place of it in microseconds."""

    def __init__(self, length: int, key: int) -> None:
        self._length = length
        self._key = key

    @overload
    def __call__(self, index: int) -> int: ...
    @overload
    def __call__(self, index: np.ndarray) -> np.ndarray: ...
    def __call__(self, index: int | np.ndarray) -> int | np.ndarray:
        places = permute(np.atleast_1d(np.asarray(index)), self._length, self._key)
        return places if isinstance(index, np.ndarray) else int(places[0])


def permute(index: np.ndarray, length: int, key: int | np.ndarray) -> np.ndarray:
    """Where each index (any shape, in [0, length)) goes, int64; `key` may differ from one index to the next."""
    assert 1 <= length <= LONGEST, length
    keys = np.broadcast_to(np.asarray(key, dtype=np.uint64), index.shape)
    bits = max(2, (length - 1).bit_length())
    places = _scramble(index.astype(np.uint64), bits, keys)
    while (beyond := places >= length).any():
        places[beyond] = _scramble(places[beyond], bits, keys[beyond])
    return places.astype(np.int64)


def key_of(*parts: object) -> int:
    """A key of 64 bits: equal on every machine for parts that print alike."""
    text = "\x1f".join(map(str, parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def keys_of(key: int, numbers: np.ndarray) -> np.ndarray:
    """One key for each number (an epoch, a block), uint64."""
    return _mix(numbers.astype(np.uint64) * np.uint64(_GOLDEN) ^ _mix(np.array([key], dtype=np.uint64)))


def draws(keys: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """64 bits for each pair of a key and a number, uint64; the two are broadcast."""
    return _mix(keys + numbers.astype(np.uint64) * np.uint64(_GOLDEN))


def _scramble(index: np.ndarray, bits: int, keys: np.ndarray) -> np.ndarray:
    """One pass. The halves are of unequal width where bits is odd, and an even number of rounds puts them back."""
    right_bits, left_bits = bits // 2, bits - bits // 2
    left, right = index >> np.uint64(right_bits), index & np.uint64((1 << right_bits) - 1)
    for number in range(1, ROUNDS + 1):
        round_keys = keys + np.uint64(number * _GOLDEN & _U64)
        left, right = right, left ^ (_mix(right ^ _mix(round_keys)) & np.uint64((1 << left_bits) - 1))
        left_bits, right_bits = right_bits, left_bits
    mixed: np.ndarray = left << np.uint64(right_bits) | right
    return mixed


def _mix(x: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser (Steele, Lea and Flood 2014): every bit of the result hangs on every bit of x."""
    with np.errstate(over="ignore"):  # a single number warns where an array wraps silently
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = x ^ (x >> np.uint64(31))
    return mixed
