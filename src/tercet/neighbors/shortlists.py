"""The least keys of each row, without sorting rows or looking at most keys twice.

| how | passes over the keys |
|---|---|
| by groups | one for the least key of each group of columns, of which few can hold a wanted key |
| by a sample | one comparison with a limit, below which every eighth key of the row promises enough |

A limit that was promised wrongly is noticed, since it leaves too few keys: such a row is searched by groups.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

from tercet.pairwise.budget import budget
from tercet.pairwise.masked import flat_places

__all__ = ["least_keys", "shortlist"]

_NONE = np.iinfo(np.int64).max
_COLUMN_BITS = 32
_SIZE_BITS = np.int32(0x7FFFFFFF)  # of a float32, all but its sign


def least_keys(keys: Float[Tensor, "a w"], count: int) -> tuple[Float[Tensor, "a s"], Int[Tensor, "a s"]]:
    """The `count` smallest keys of each row in rising order, inf where there are fewer, and their places.

    Args:
        keys: [a, w]; inf is no key.
        count: how many.

    Example:
        >>> least_keys(torch.tensor([[4.0, 1.0, 3.0, 2.0]]), 2)
        (tensor([[1., 2.]]), tensor([[1, 3]]))
    """
    width, share = keys.shape[1], budget(keys.device).sampled_share
    if keys.dtype == torch.float32 and share and 2 * count <= width and _rank(count, share) * share < width:
        return _below_a_limit(keys, count, share)
    return _by_groups(keys, count)


def shortlist(
    keys: Float[Tensor, "a w"], count: int, group: int
) -> tuple[Float[Tensor, "a s"], Int[Tensor, "a s"]]:
    """`least_keys` by groups of columns.

    They lie in those `count` groups whose least key is smallest, so one pass for the minima of groups is all
    that reads every key.

    Args:
        keys: [a, w].
        count: how many.
        group: columns in a group, a divisor of w; another number means 1.

    Example:
        >>> shortlist(torch.tensor([[4.0, 1.0, 3.0, 2.0]]), 2, group=2)
        (tensor([[1., 2.]]), tensor([[1, 3]]))
    """
    a, w = keys.shape
    if w % group:
        group = 1
    groups = w // group
    # Group g is the columns g, g + groups, …: then the minimum runs over whole lines of memory.
    least = keys.view(a, group, groups).amin(1) if group > 1 else keys  # [a, groups]
    found = least.topk(min(count, groups), dim=1, largest=False).indices
    inside = torch.arange(group, device=keys.device) * groups
    at = (found[:, :, None] + inside).view(a, -1)  # [a, count · group]
    values = keys.gather(1, at)
    values, order = values.topk(min(count, at.shape[1]), dim=1, largest=False)
    missing = count - values.shape[1]
    return pad(values, (0, missing), value=math.inf), pad(at.gather(1, order), (0, missing))


def _by_groups(keys: Float[Tensor, "a w"], count: int) -> tuple[Float[Tensor, "a s"], Int[Tensor, "a s"]]:
    """`least_keys` by groups of √(width / count) columns: then as many groups are read as members of some."""
    width = keys.shape[1]
    group = 2 ** max(0, round(math.log2(width / count) / 2))
    while width % group:
        group //= 2
    if group > 1:
        return shortlist(keys, count, group)
    values, at = keys.topk(min(count, width), dim=1, largest=False)
    missing = count - values.shape[1]
    return pad(values, (0, missing), value=math.inf), pad(at, (0, missing))


def _rank(count: int, share: int) -> int:
    """Which key of a sample of one in `share` has `count` keys of all below it, but for a few rows.

    Of the `count` least, a sample has count / share on average, and the root of that is its deviation.
    """
    expected = count / share
    return int(expected + 3 * math.sqrt(expected)) + 3


def _below_a_limit(
    keys: Float[Tensor, "a w"], count: int, share: int
) -> tuple[Float[Tensor, "a s"], Int[Tensor, "a s"]]:
    """`least_keys` by a sample of one column in `share`."""
    numbers, rank = keys.numpy(), _rank(count, share)
    limit = np.partition(numbers[:, ::share], rank - 1, axis=1)[:, rank - 1]
    largest = np.finfo(np.float32).max
    limit = np.minimum(limit, largest)
    row, column = flat_places(numbers <= limit[:, None])
    if share * len(row) > 2 * rank * share * len(numbers) + numbers.size:  # as where all keys are equal
        return _by_groups(keys, count)
    held = np.bincount(row, minlength=len(numbers))
    words = np.full((len(numbers), max(count, int(held.max(initial=0)))), _NONE)
    words[row, np.arange(len(row)) - (held.cumsum() - held)[row]] = _words(numbers[row, column], column)
    words.sort(axis=1)
    found = words[:, :count]
    missing = found == _NONE
    values, at = _numbers(found), found & (2**_COLUMN_BITS - 1)
    values[missing], at[missing] = np.inf, 0
    values, at = torch.from_numpy(values), torch.from_numpy(at)
    (short,) = ((held < count) & (limit < largest)).nonzero()
    if len(short):
        some = torch.from_numpy(short)
        values[some], at[some] = _by_groups(keys[some], count)
    return values, at


def _words(values: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Integers in the order of float32 values and then of columns: numpy sorts them many at once."""
    bits = values.view(np.int32)
    bits ^= (bits >> 31) & _SIZE_BITS  # a float's bits rise with its size; of those below 0 they are turned
    return (bits.astype(np.int64) << _COLUMN_BITS) | columns


def _numbers(words: np.ndarray) -> np.ndarray:
    """The values of `_words`."""
    bits = (words >> _COLUMN_BITS).astype(np.int32)
    bits ^= (bits >> 31) & _SIZE_BITS
    return bits.view(np.float32)
