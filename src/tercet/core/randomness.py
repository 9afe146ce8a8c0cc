"""Randomness as a function: bits, numbers and permutations keyed by (seed, epoch, index).

Everything here is arithmetic on unsigned 64-bit integers, written out, so that a key gives the same
numbers on every machine and under every version of numpy. There is no generator state, and global
generators are neither read nor written.

The mixing function is the output step of SplitMix64 (Steele, Lea & Flood, "Fast splittable
pseudorandom number generators", OOPSLA 2014) with the constants of Stafford's variant 13.
"""

from __future__ import annotations

import hashlib
import operator
from typing import Any, SupportsIndex

import numpy as np

__all__ = ["KeyedRow", "derive_key", "keyed_bits", "keyed_integers", "keyed_uniform", "permute"]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MUL1 = np.uint64(0xBF58476D1CE4E5B9)
_MUL2 = np.uint64(0x94D049BB133111EB)
_S27, _S30, _S31, _S32 = (np.uint64(s) for s in (27, 30, 31, 32))
_LOW32 = np.uint64(0xFFFFFFFF)
_LARGEST = np.uint64(1 << 62)
# A chi-square test over all n! orders (n = 6) detects 12 rounds in 50,000 keys, and not 20 in 500,000.
ROUNDS = 20
_STARTS = np.arange(1, ROUNDS + 1, dtype=np.uint64) * _GOLDEN
_STRIDE = _STARTS[-1]  # value v in round r hashes (v · 20 + r + 1) · golden: no two alike


class KeyedRow(int):
    """A row number together with its epoch and view: how often the row was drawn before in that epoch.

    It is an int. Samplers yield it so that a dataset can key the augmentation of sample n by
    (seed, epoch, n, view) in any worker, without shared state.

    Args:
        row: the row number.
        epoch: the epoch it is drawn in.
        view: how often the row was drawn before in that epoch.

    Example:
        >>> row = KeyedRow(7, epoch=2, view=1)
        >>> row + 1, row.epoch, row.view
        (8, 2, 1)
        >>> (row - 5).epoch
        2
    """

    epoch: int
    view: int

    def __new__(cls, row: int, epoch: int = 0, view: int = 0) -> KeyedRow:
        self = super().__new__(cls, row)
        self.epoch = epoch
        self.view = view
        return self

    def __sub__(self, offset: Any) -> Any:
        """The row minus an offset, in the same epoch and view: a `ConcatDataset` indexes its parts so."""
        row = super().__sub__(offset)
        return row if row is NotImplemented else KeyedRow(row, self.epoch, self.view)


def derive_key(*words: SupportsIndex | str) -> int:
    """A 64-bit key from whole numbers and names; a different list gives an unrelated key.

    Args:
        words: ints of any size and strings, for instance a purpose, a seed and an epoch.

    Returns:
        An int in [0, 2⁶⁴), the same on every machine.

    Raises:
        TypeError: a word is neither a whole number nor a string.

    Example:
        >>> derive_key("sampler", 0, 1) == derive_key("sampler", 0, 1) != derive_key("sampler", 1, 0)
        True
    """
    state = hashlib.blake2b(digest_size=8)
    for word in words:
        text = f"s{word}" if isinstance(word, str) else f"i{operator.index(word)}"
        data = text.encode(errors="surrogatepass")  # file names that are not UTF-8 contain surrogates
        state.update(f"{len(data)}:".encode() + data)
    return int.from_bytes(state.digest(), "little")


def _words(values: Any) -> np.ndarray:
    """`values` as a new or borrowed uint64 array; negative ints wrap as two's complement."""
    if isinstance(values, int):
        return np.asarray([values & 0xFFFFFFFFFFFFFFFF], dtype=np.uint64)
    array = np.asarray(values)
    if array.dtype.kind not in "iub" and array.size:
        raise TypeError(f"expected whole numbers, got an array of {array.dtype}")
    return np.atleast_1d(array if array.dtype == np.uint64 else array.astype(np.int64).view(np.uint64))


def _mix(z: np.ndarray) -> np.ndarray:
    """Stafford's variant 13, in place: a bijection of 64-bit words; each bit affects every other."""
    z ^= z >> _S30
    z *= _MUL1
    z ^= z >> _S27
    z *= _MUL2
    z ^= z >> _S31
    return z


def keyed_bits(key: Any, *indices: Any) -> np.ndarray:
    """64 random bits for each combination of key and indices.

    Args:
        key: an int from `derive_key`, or uint64 [n] from an earlier call.
        indices: ints or int arrays that broadcast with `key`, hashed one after the other.

    Returns:
        uint64 [n], at least one-dimensional.

    Example:
        >>> keyed_bits(derive_key("doc", 0), np.arange(3)).shape
        (3,)
    """
    bits = _words(key)
    for index in indices:
        bits = _mix(bits + (_words(index) + np.uint64(1)) * _GOLDEN)
    return bits


def keyed_uniform(key: Any, *indices: Any) -> np.ndarray:
    """Random numbers in [0, 1), 53 bits each.

    Args:
        key: an int from `derive_key`, or uint64 [n] from `keyed_bits`.
        indices: ints or int arrays that broadcast with `key`.

    Returns:
        float64 [n].

    Example:
        >>> u = keyed_uniform(derive_key("doc", 0), np.arange(1000))
        >>> bool(0 <= u.min() and u.max() < 1 and abs(u.mean() - 0.5) < 0.05)
        True
    """
    return (keyed_bits(key, *indices) >> np.uint64(11)) * 2.0**-53


def _below(bits: np.ndarray, high: np.ndarray) -> np.ndarray:
    """⌊bits · high / 2⁶⁴⌋ for high ≤ 2³²: uniform to within high / 2⁶⁴."""
    return ((bits >> _S32) * high + (((bits & _LOW32) * high) >> _S32)) >> _S32


def keyed_integers(key: Any, *indices: Any, high: Any) -> np.ndarray:
    """Random whole numbers in [0, high), by the high word of a product: no rejection, no state.

    Args:
        key: an int from `derive_key`, or uint64 [n] from `keyed_bits`.
        indices: ints or int arrays that broadcast with `key`.
        high: int or int array, each in [1, 2³²]; the bias is below high / 2⁶⁴.

    Returns:
        int64 [n].

    Raises:
        ValueError: a `high` out of range.

    Example:
        >>> sorted(set(keyed_integers(derive_key("doc", 0), np.arange(100), high=3).tolist()))
        [0, 1, 2]
    """
    bounds = _words(high)
    if ((bounds - np.uint64(1)) >> _S32).any():  # 0 wraps, so one shift finds both ends
        raise ValueError("keyed_integers: expected every high in [1, 2³²]")
    return _below(keyed_bits(key, *indices), bounds).view(np.int64)


def permute(index: Any, n: Any, key: Any) -> np.ndarray:
    """π(index), where π is the permutation of [0, n) that `key` names; O(1) memory, any single value.

    An alternating Feistel network on Z_a × Z_b, where a is √n rounded up to an even number and a·b the
    next multiple of it: few values leave [0, n), and those are mapped again until they are inside (cycle
    walking: Black & Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002).

    Args:
        index: int or int array, each in [0, n).
        n: int or int array, each in [1, 2⁶²].
        key: an int from `derive_key`, or uint64 array from `keyed_bits`: one permutation for each.

    Returns:
        int64 [m], the broadcast shape, at least one-dimensional.

    Raises:
        ValueError: an index or an n out of range.

    Example:
        >>> sorted(permute(np.arange(10), 10, derive_key("doc", 0)).tolist()) == list(range(10))
        True
    """
    size = _words(n)
    if (size - np.uint64(1) >= _LARGEST).any():  # 0 wraps, so one comparison finds both ends
        raise ValueError("permute: expected every n in [1, 2⁶²]")
    # a is even: with a and b both odd every shift is an even permutation, so half of all π are unreachable.
    a = (np.ceil(np.sqrt(size) / 2) * 2).astype(np.uint64)
    b = (size + a - np.uint64(1)) // a
    grid = np.broadcast_arrays(_words(index), size, a, b, _words(key))
    x, size, a, b, keys = (values.ravel() for values in grid)
    if (x >= size).any():
        raise ValueError("permute: expected every index in [0, n)")
    out = _feistel(x, a, b, keys)
    astray = np.flatnonzero(out >= size)
    while astray.size:  # cycle walking: π restricted to [0, n) stays a bijection
        out[astray] = _feistel(out[astray], a[astray], b[astray], keys[astray])
        astray = astray[out[astray] >= size[astray]]
    return out.view(np.int64).reshape(grid[0].shape)


def _feistel(x: np.ndarray, a: np.ndarray, b: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """One pass of the network over x in [0, a·b): each half is shifted by a hash of the other."""
    left = x // b  # in Z_a
    right = x - left * b  # in Z_b
    for r in range(ROUNDS):
        source, target, size = (right, left, a) if r % 2 == 0 else (left, right, b)
        bits = source * _STRIDE
        bits += _STARTS[r]
        bits ^= keys
        bits = _mix(bits) >> _S32
        bits *= size
        bits >>= _S32
        target += bits
        np.minimum(target, target - size, out=target)  # below 0 wraps: the smaller is target mod size
    return left * b + right
