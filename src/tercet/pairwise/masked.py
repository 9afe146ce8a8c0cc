"""Questions to a table of numbers or a mask, put to numpy where the table is small.

In a batch of a hundred the price of a step is the number of calls: numpy's cost a fifth of torch's, and its
arg-minima and true places are found in vectors. Large tables have all of torch's threads.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tercet.pairwise.budget import budget

__all__ = [
    "compared",
    "extreme_keys",
    "first_places",
    "kept_above",
    "kept_where",
    "true_places",
]

_NONE = np.zeros(0, np.int64)


def _small(table: Tensor) -> bool:
    return table.numel() <= budget(table.device).numpy_numbers


def true_places(mask: Bool[Tensor, "a r"]) -> tuple[Int[Tensor, " t"], Int[Tensor, " t"]]:
    """(row, column) of each true entry, row by row: `mask.nonzero(as_tuple=True)`.

    Example:
        >>> true_places(torch.tensor([[False, True], [True, True]]))
        (tensor([0, 1, 1]), tensor([1, 0, 1]))
    """
    if mask.device.type != "cpu" or not mask.numel():
        row, column = mask.nonzero(as_tuple=True)
        return row, column
    place = np.flatnonzero(mask.numpy())  # faster at any size
    row = place // mask.shape[1]
    place -= row * mask.shape[1]
    return torch.from_numpy(row), torch.from_numpy(place)


def kept_where(
    mask: Bool[Tensor, "a r"], table: Float[Tensor, "a r"], inplace: bool = False
) -> Float[Tensor, "a r"]:
    """The same numbers, inf where the mask is false: a new table, or the table itself.

    Example:
        >>> kept_where(torch.tensor([[True, False]]), torch.zeros(1, 2))
        tensor([[0., inf]])
    """
    kept = table if inplace else torch.empty_like(table)
    if _small(table):
        np.maximum(table.numpy(), _walls(mask, table.numpy().dtype), out=kept.numpy())
        return kept
    return (kept if inplace else kept.copy_(table)).masked_fill_(~mask, math.inf)


def kept_above(
    bound: Float[Tensor, " a"], table: Float[Tensor, "a r"], inplace: bool = False
) -> Float[Tensor, "a r"]:
    """The same numbers, inf where they are not above the row's bound: a new table, or the table itself.

    By arithmetic, since nobody can foresee such a mask: a fifth of the time of `masked_fill`. Large tables
    are done in parts that a processor's cache holds.

    Example:
        >>> kept_above(torch.tensor([1.0]), torch.tensor([[0.0, 1.0, 2.0]]))
        tensor([[inf, inf, 2.]])
    """
    bound = bound.clamp(max=torch.finfo(table.dtype).max)  # ∞ − ∞ is no number
    if _small(table):
        numbers = table.numpy()
        walls = np.subtract(bound.numpy()[:, None], numbers)
        np.copysign(np.inf, walls, out=walls)
        return torch.from_numpy(np.maximum(numbers, walls, out=numbers if inplace else walls))
    kept = table if inplace else torch.empty_like(table)
    rows = max(1, budget(table.device).masked_numbers // max(1, table.shape[1]))
    infinite = table.new_full((), math.inf)
    for edge, part, out in zip(bound.split(rows), table.split(rows), kept.split(rows)):
        walls = edge[:, None] - part
        torch.maximum(part, torch.copysign(infinite, walls, out=walls), out=out)
    return kept


def _walls(mask: Bool[Tensor, "a r"], dtype: np.dtype) -> np.ndarray:
    """−inf where the mask is true, inf where not: arithmetic does not mind whether one can foresee a mask."""
    walls = np.subtract(dtype.type(0.5), mask.numpy(), dtype=dtype)
    walls *= np.inf
    return walls


def extreme_keys(
    table: Float[Tensor, "a r"], positive: Bool[Tensor, "a r"], negative: Bool[Tensor, "a r"]
) -> Float[Tensor, "b r"]:
    """[2a, r]: the positives negated, above the negatives; inf elsewhere.

    Example:
        >>> side = torch.tensor([[True, False]])
        >>> extreme_keys(torch.tensor([[1.0, 2.0]]), side, ~side)
        tensor([[-1., inf],
                [inf, 2.]])
    """
    if not _small(table):
        above, below = (-table).masked_fill_(~positive, math.inf), table.masked_fill(~negative, math.inf)
        return torch.cat([above, below])
    numbers, above = table.numpy(), table.shape[0]
    both = np.empty((2 * above, table.shape[1]), numbers.dtype)
    np.maximum(-numbers, _walls(positive, numbers.dtype), out=both[:above])
    np.maximum(numbers, _walls(negative, numbers.dtype), out=both[above:])
    return torch.from_numpy(both)


def first_places(
    table: Float[Tensor, "a r"], slack: Float[Tensor, " a"], bound: Float[Tensor, " a"] | None = None
) -> tuple[Int[Tensor, " a"], tuple[Int[Tensor, " t"], Int[Tensor, " t"]], Int[Tensor, " u"]]:
    """Where the smallest number of each row is, of those above its bound, and where that is not sure.

    Two numbers may be in either order when they are no more than two slacks apart, a number on either side
    of the bound when it is no more than one slack off it.

    Returns:
        The column, −1 where there is no number but inf; (row, column) of all that may be the smallest of a
        row, where they are several; the rows where the one that is told may not be above the bound.

    Example:
        >>> table, slack = torch.tensor([[3.0, 1.0, 2.0], [1.1, 1.0, 9.0]]), torch.tensor([0.25, 0.25])
        >>> at, (row, column), doubtful = first_places(table, slack)
        >>> at.tolist(), row.tolist(), column.tolist(), doubtful.tolist()
        ([1, 1], [1, 1], [0, 1], [])
        >>> at, _, doubtful = first_places(table, slack, torch.tensor([1.5, 1.05]))
        >>> at.tolist(), doubtful.tolist()
        ([2, 1], [1])
    """
    if not _small(table):
        if bound is not None:
            table = kept_above(bound - slack, table)
        at = table.argmin(1, keepdim=True)
        least = table.gather(1, at)  # [a, 1]
        second = table.scatter(1, at, math.inf).amin(1)
        least, at = least[:, 0], at[:, 0].masked_fill(least[:, 0] == math.inf, -1)
        limit = least + 2 * slack
        early = torch.zeros_like(at, dtype=torch.bool)
        if bound is not None:
            early = (least <= bound + slack) & (at >= 0)
        (some,) = ((second <= limit) & (second < math.inf) & ~early).nonzero(as_tuple=True)
        i, j = true_places(table[some] <= limit[some, None])
        return at, (some[i], j), early.nonzero()[:, 0]
    numbers, width, every = table.numpy(), slack.numpy(), np.arange(table.shape[0])
    if bound is not None:
        numbers = kept_above(bound - slack, table).numpy()
    place = numbers.argmin(1)
    first = numbers[every, place]
    numbers[every, place] = np.inf
    second = numbers[every, numbers.argmin(1)]  # an arg-minimum is found in vectors, a minimum is not
    numbers[every, place] = first
    limit = first + 2 * width
    place[first == np.inf] = -1
    several, doubtful = (second <= limit) & (second < np.inf), _NONE
    if bound is not None:
        early = first <= np.minimum(bound.numpy() + width, np.finfo(first.dtype).max)
        several &= ~early
        (doubtful,) = early.nonzero()
    (some,) = several.nonzero()
    row, column = _NONE, _NONE
    if some.size:
        row, column = (numbers[some] <= limit[some, None]).nonzero()
        row = some[row]
    places = torch.from_numpy(row), torch.from_numpy(column)
    return torch.from_numpy(place), places, torch.from_numpy(doubtful)


def compared(
    table: Float[Tensor, "a r"],
    bound: Float[Tensor, " a"],
    slack: Float[Tensor, " a"],
    among: Bool[Tensor, "a r"] | None = None,
) -> tuple[Bool[Tensor, "a r"], tuple[Int[Tensor, " t"], Int[Tensor, " t"]]]:
    """Which numbers lie more than the row's slack below its bound; the places of those within the slack.

    `among` says which are asked for at all, and inf never is.

    Example:
        >>> table, one = torch.tensor([[0.0, 0.9, 2.0]]), torch.ones(1)
        >>> compared(table, one, 0.2 * one)
        (tensor([[ True, False, False]]), (tensor([0]), tensor([1])))
    """
    largest = torch.finfo(table.dtype).max
    if not _small(table):
        below, near = table < (bound - slack)[:, None], table <= (bound + slack).clamp(max=largest)[:, None]
        if among is not None:
            below, near = below & among, near & among
        return below, true_places(near & ~below)
    numbers, middle, width = table.numpy(), bound.numpy(), slack.numpy()
    below, near = numbers < (middle - width)[:, None], numbers <= np.minimum(middle + width, largest)[:, None]
    if among is not None:
        below &= among.numpy()
        near &= among.numpy()
    if np.count_nonzero(near) > np.count_nonzero(below):
        places = true_places(torch.from_numpy(near & ~below))
    else:
        places = torch.from_numpy(_NONE), torch.from_numpy(_NONE)
    return torch.from_numpy(below), places
