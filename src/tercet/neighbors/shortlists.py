"""The least keys of each row, without sorting rows or looking at most keys twice.

| how | passes over the keys |
|---|---|
| by groups | one for the least key of each group of columns, of which few can hold a wanted key |
| by a sample | one comparison with a limit, below which some keys of the row promise enough |

A limit that was promised wrongly is noticed, since it leaves too few keys: such a row is searched by groups.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from tercet.pairwise.budget import budget
from tercet.pairwise.masked import flat_places

__all__ = ["first_listed", "least_keys", "most_promised", "promised_limit", "promises", "shortlist"]

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
    if keys.dtype == torch.float32 and share and promises(count, width // share, width):
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


def promises(count: int, sampled: int, width: int) -> bool:
    """Whether a sample of so many of `width` keys can promise a limit that leaves few more than `count`."""
    return 2 * count <= width and _rank(count, sampled, width) < sampled


def promised_limit(sample: np.ndarray, count: int, width: int) -> np.ndarray:
    """A number that at least `count` of the `width` keys of a row are not above, but for a few rows.

    Args:
        sample: float32 [a, m], some of the keys; inf is no key.
        count: how many.
        width: keys of a row.

    Returns:
        float32 [a], finite.

    Example:
        >>> promised_limit(np.arange(100, dtype=np.float32)[None, ::4], 4, 100)
        array([24.], dtype=float32)
    """
    rank = _rank(count, sample.shape[1], width)
    limit = np.partition(sample, rank - 1, axis=1)[:, rank - 1]
    return np.minimum(limit, np.finfo(np.float32).max)


def most_promised(count: int, sampled: int, width: int) -> int:
    """How many keys of a row are below a limit, where those of most rows are told apart by the sample."""
    return 2 * _rank(count, sampled, width) * width // sampled


def _rank(count: int, sampled: int, width: int) -> int:
    """Which key of a sample has `count` keys of all below it, but for a few rows.

    Of the `count` least, so many are in the sample on average, and the root of that is their deviation.
    """
    expected = count * sampled / width
    return int(expected + 3 * math.sqrt(expected)) + 3


def _below_a_limit(
    keys: Float[Tensor, "a w"], count: int, share: int
) -> tuple[Float[Tensor, "a s"], Int[Tensor, "a s"]]:
    """`least_keys` by a sample of one column in `share`."""
    numbers = keys.numpy()
    (a, width), sample = numbers.shape, numbers[:, ::share]
    limit = promised_limit(sample, count, width)
    row, column = flat_places(numbers <= limit[:, None])
    if len(row) > a * most_promised(count, sample.shape[1], width):  # as where all keys are equal
        return _by_groups(keys, count)
    values, at, short = first_listed(row, column, numbers[row, column], limit, count)
    if len(some := short.nonzero()[:, 0]):
        values[some], at[some] = _by_groups(keys[some], count)
    return values, at


def first_listed(
    row: np.ndarray, column: np.ndarray, keys: np.ndarray, limit: np.ndarray, count: int
) -> tuple[Float[Tensor, "a s"], Int[Tensor, "a s"], Bool[Tensor, " a"]]:
    """The `count` least of listed keys of each row, as `least_keys` gives them.

    Args:
        row: int64 [t], the row of each key, rising.
        column: int64 [t], below 2³².
        keys: float32 [t].
        limit: [a], up to which the keys of each row are listed.
        count: how many.

    Returns:
        Keys, columns, and the rows that have fewer than `count` while there may be more above the limit.

    Example:
        >>> row, column, keys = np.array([0, 0, 1]), np.array([4, 7, 9]), np.array([3, 1, 2], np.float32)
        >>> first_listed(row, column, keys, np.array([3, 2], np.float32), 2)
        (tensor([[1., 3.],
                [2., inf]]), tensor([[7, 4],
                [9, 0]]), tensor([False,  True]))
    """
    held = np.bincount(row, minlength=len(limit))
    words = np.full((len(limit), max(count, int(held.max(initial=0)))), _NONE)
    words[row, np.arange(len(row)) - (held.cumsum() - held)[row]] = _words(keys, column)
    words.sort(axis=1)
    found = words[:, :count]
    missing = found == _NONE
    values, at = _numbers(found), found & (2**_COLUMN_BITS - 1)
    values[missing], at[missing] = np.inf, 0
    short = (held < count) & (limit < np.finfo(np.float32).max)
    return torch.from_numpy(values), torch.from_numpy(at), torch.from_numpy(short)


def _words(values: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Integers in the order of float32 values and then of columns: numpy sorts them many at once."""
    bits = values.view(np.int32).copy()
    bits ^= (bits >> 31) & _SIZE_BITS  # a float's bits rise with its size; of those below 0 they are turned
    return (bits.astype(np.int64) << _COLUMN_BITS) | columns


def _numbers(words: np.ndarray) -> np.ndarray:
    """The values of `_words`."""
    bits = (words >> _COLUMN_BITS).astype(np.int32)
    bits ^= (bits >> 31) & _SIZE_BITS
    return bits.view(np.float32)
