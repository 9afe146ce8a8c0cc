"""The least rank key above each of several bounds of a row, and the first by distance where keys cannot tell.

k − e of the least number e above a bound is not negative exactly where the key k is above the bound. The bits
of a float without sign rise with it, and a sign is the highest bit: so read as whole numbers, the differences
rise with the keys above the bound, and all others come after them. One subtraction and one arg-minimum find
the least, without a mask.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

from tercet.neighbors.blocks import Candidates
from tercet.neighbors.keys import ExactDistances
from tercet.pairwise.masked import Places, flat_places

__all__ = ["first_of_rows", "first_of_table", "least_above", "write_least"]


def least_above(
    keys: Float[Tensor, "a w"],
    at: Int[Tensor, " b"],
    bounds: Float[Tensor, " b"],
    error: Float[Tensor, " a"],
    numbers: int,
) -> tuple[Int[Tensor, " b"], Places]:
    """The column of the smallest key above each bound, and what it may be where keys cannot tell.

    A key is off by at most the row's error: two keys may be in either order up to twice the error apart, a
    key may be on either side of a bound up to the error off it.

    Args:
        keys: [a, w]; inf is no key.
        at: [b], the row of each bound, in rising order.
        bounds: [b], above which is looked for; inf for nothing.
        error: [a].
        numbers: differences that are made at once, in memory that is used again.

    Returns:
        [b], the column, −1 where no key is above the bound; (bound, column) of all that may be the smallest,
        by bound, where they are several or the only one may not be above the bound.

    Example:
        >>> keys, error = torch.tensor([[3.0, 1.0, 2.0], [1.1, 1.0, 9.0]]), torch.tensor([0.25, 0.25])
        >>> at = torch.tensor([0, 1])
        >>> least, (bound, column) = least_above(keys, at, torch.tensor([1.5, 1.05]), error, 2**10)
        >>> least.tolist(), bound.tolist(), column.tolist()
        ([2, 1], [1, 1, 1], [0, 1, 2])
    """
    (a, w), row = keys.shape, at.numpy()
    values, middle, width = keys.numpy(), bounds.numpy(), error.numpy()[row]
    start = _least_number_above(middle - width)
    # A table of them, [a, q], so that the keys of a row are read once for all.
    rank = np.arange(len(row)) - np.searchsorted(row, row)
    table = np.full((a, int(rank.max(initial=-1)) + 1), np.finfo(values.dtype).max, values.dtype)
    table[row, rank] = start
    least, second = (found[row, rank] for found in _two_least(keys, torch.from_numpy(table), numbers))
    largest, first = np.finfo(values.dtype).max, values[row, least]
    missing = (first < start) | (first == np.inf)
    least[missing] = -1
    beyond = np.minimum(middle + width, largest)
    early = first <= beyond  # the least may not be above the bound
    several = second <= _bits(_reach(first + 2 * width, start))
    (some,) = ((several | early) & ~missing).nonzero()
    places, columns = [some[:0]], [some[:0]]
    step = max(1, numbers // max(1, w))
    for place in (some[i : i + step] for i in range(0, len(some), step)):
        # All up to the first that is above the bound for sure.
        begin, every = start[place], np.arange(len(place))
        apart = values[row[place]] - begin[:, None]  # [c, w]
        sure = _least_number_above(beyond[place] - begin)
        following = _bits(apart - sure[:, None]).argmin(1)
        found = values[row[place], following]
        found[(apart[every, following] < sure) | (found == np.inf)] = largest
        limit = np.where(early[place], found, first[place]) + 2 * width[place]
        which, column = flat_places(_bits(apart) <= _bits(_reach(limit, begin))[:, None])
        places.append(place[which])
        columns.append(column)
    listed = torch.from_numpy(np.concatenate(places)), torch.from_numpy(np.concatenate(columns))
    return torch.from_numpy(least), listed


def write_least(
    chosen: Int[Tensor, " t"],
    items: Int[Tensor, " u"],
    columns: Int[Tensor, " u"],
    distances: Float[Tensor, " u"],
    limit: Float[Tensor, " t"] | None,
) -> None:
    """Write the column of each listed item's least distance into `chosen`; of equal ones the lower column.

    Args:
        chosen: written over where items are listed.
        items: places in `chosen`.
        columns: what may be chosen for them.
        distances: how far those are.
        limit: [t], only larger distances count, and −1 is written where there is none; None for no limit.

    Example:
        >>> chosen, items, columns = torch.tensor([9, 9]), torch.tensor([1, 1, 1]), torch.tensor([7, 6, 5])
        >>> write_least(chosen, items, columns, torch.tensor([2.0, 2.0, 1.0]), torch.tensor([0.0, 1.0]))
        >>> chosen.tolist()
        [9, 6]
    """
    out, item, column, d = chosen.numpy(), items.numpy(), columns.numpy(), distances.numpy()
    if limit is not None:
        out[item] = -1
        (beyond,) = (d > limit.numpy()[item]).nonzero()
        item, column, d = item[beyond], column[beyond], d[beyond]
    order = np.lexsort((column, d, item))
    item, column = item[order], column[order]
    leads = np.ones(len(item), dtype=bool)
    np.not_equal(item[1:], item[:-1], out=leads[1:])
    out[item[leads]] = column[leads]


def first_of_table(distances: Float[Tensor, "u c"], columns: Int[Tensor, " c"], k: int) -> Int[Tensor, "u k"]:
    """The columns of each row's k least distances, −1 where they are inf; of equal ones the first column.

    Example:
        >>> first_of_table(torch.tensor([[2.0, 1.0, 1.0]]), torch.tensor([5, 6, 7]), 1)
        tensor([[6]])
    """
    if k == 1:  # `min` may name any of several equal columns
        least = distances.amin(1, keepdim=True)
        place = torch.arange(len(columns), device=distances.device).expand_as(distances)
        best = place.masked_fill(distances != least, len(columns) - 1).amin(1, keepdim=True)
        return columns[best].masked_fill_(least == math.inf, -1)
    d, order = distances.sort(dim=1, stable=True)
    best = columns[order[:, :k]].masked_fill_(d[:, :k] == math.inf, -1)
    return pad(best, (0, k - best.shape[1]), value=-1)


def first_of_rows(
    exact: ExactDistances,
    candidates: Candidates,
    some: Int[Tensor, " u"],
    k: int,
    limit: Float[Tensor, " a"] | None,
) -> Int[Tensor, "u k"]:
    """The first k of all candidates of some rows, by differences; −1 where there are fewer.

    Args:
        exact: the distances.
        candidates: [a] rows and what may be chosen.
        some: places in `candidates.rows`.
        k: how many.
        limit: [a], distances times the row's sign that a column must be beyond; None for none.
    """
    columns, order = candidates.columns.sort()
    d = exact.table(candidates.rows[some], columns)
    d *= candidates.sign[some, None]
    d.masked_fill_(candidates.keys[some][:, order] == math.inf, math.inf)
    if limit is not None:
        d.masked_fill_(d <= limit[some, None], math.inf)
    return first_of_table(d, columns, k)


def _two_least(keys: Tensor, start: Tensor, numbers: int) -> tuple[np.ndarray, np.ndarray]:
    """The column of the least difference of each row and start, and the bits of the second least, [a, q]."""
    (a, w), q = keys.shape, start.shape[1]
    height, many = max(1, numbers // max(1, q * w)), max(1, min(q, numbers // max(1, w)))
    room = keys.new_empty(height * many * w)
    at, second = np.empty((a, q), np.int64), np.empty((a, q), f"u{keys.itemsize}")
    for above in range(0, a, height):
        rows = slice(above, above + height)
        for left in range(0, q, many):
            some = slice(left, left + many)
            steps = start[rows, some, None]
            shape = (*steps.shape[:2], w)
            apart = torch.sub(keys[rows, None], steps, out=room[: math.prod(shape)].view(shape))
            order = _bits(apart.numpy().reshape(-1, w))
            least = order.argmin(1)
            every = np.arange(len(least))
            order[every, least] = np.iinfo(order.dtype).max
            at[rows, some] = least.reshape(shape[:2])
            second[rows, some] = order[every, order.argmin(1)].reshape(shape[:2])
    return at, second


def _least_number_above(bound: np.ndarray) -> np.ndarray:
    """e, finite."""
    largest = np.finfo(bound.dtype).max
    above = np.nextafter(bound, bound.dtype.type(np.inf)).clip(-largest / 2, largest)  # ∞ − ∞ is no number
    above[above == 0] = -0.0  # −0 − 0 has a sign, −0 − −0 has none
    return above


def _reach(limit: np.ndarray, start: np.ndarray) -> np.ndarray:
    """The difference up to which keys are not above the limit: subtraction rounds, but keeps their order."""
    largest = np.finfo(limit.dtype).max
    return (np.minimum(limit, largest) - start).clip(0, largest)


def _bits(numbers: np.ndarray) -> np.ndarray:
    return numbers.view(f"u{numbers.dtype.itemsize}")
