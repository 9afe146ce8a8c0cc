"""Masked row-wise minimum, arg-minimum and threshold of tables; numpy where call overhead dominates.

Each operation has two forms of one contract: `…_numpy` for small tables of a CPU, where a call of numpy costs
a fifth of torch's, and `…_torch` for the rest, which uses all of torch's threads. The operation itself
chooses by `Budget.numpy_numbers`. Masks become ±inf floats: arithmetic with them is free of branches, and so
of the cost of mispredicted ones.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tercet.pairwise.budget import budget

__all__ = [
    "Places",
    "below_bound",
    "flat_places",
    "kept_above",
    "kept_where",
    "row_argmin",
    "signed_keys",
    "true_places",
]

_NONE = np.zeros(0, np.int64)

Places: TypeAlias = tuple[Int[Tensor, " t"], Int[Tensor, " t"]]
"""(row, column) of each of t entries of a table, row by row."""


def _is_small(table: Tensor) -> bool:
    return table.numel() <= budget(table.device).numpy_numbers


def true_places(mask: Bool[Tensor, "a r"]) -> Places:
    """(row, column) of each true entry, row by row: `mask.nonzero(as_tuple=True)`.

    Example:
        >>> true_places(torch.tensor([[False, True], [True, True]]))
        (tensor([0, 1, 1]), tensor([1, 0, 1]))
    """
    if mask.device.type != "cpu" or not mask.numel():
        row, column = mask.nonzero(as_tuple=True)
        return row, column
    row, column = flat_places(mask.numpy())
    return torch.from_numpy(row), torch.from_numpy(column)


def flat_places(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`mask.nonzero()` of a table, by places of the flat table, which is faster at any size.

    Example:
        >>> [numbers.tolist() for numbers in flat_places(np.array([[False, True], [True, True]]))]
        [[0, 1, 1], [1, 0, 1]]
    """
    place = np.flatnonzero(mask)
    row = place // mask.shape[1]
    place -= row * mask.shape[1]
    return row, place


def kept_where(
    mask: Bool[Tensor, "a r"], table: Float[Tensor, "a r"], inplace: bool = False
) -> Float[Tensor, "a r"]:
    """The table with inf where the mask is false.

    Args:
        mask: [a, r].
        table: [a, r].
        inplace: change and return the table itself instead of a new one.

    Example:
        >>> kept_where(torch.tensor([[True, False]]), torch.zeros(1, 2))
        tensor([[0., inf]])
    """
    return (kept_where_numpy if _is_small(table) else kept_where_torch)(mask, table, inplace)


def kept_where_numpy(mask: Tensor, table: Tensor, inplace: bool) -> Tensor:
    """`kept_where` by numpy."""
    kept = table if inplace else torch.empty_like(table)
    np.maximum(table.numpy(), _walls(mask, table.numpy().dtype), out=kept.numpy())
    return kept


def kept_where_torch(mask: Tensor, table: Tensor, inplace: bool) -> Tensor:
    """`kept_where` by torch, on a processor in parts that its cache holds."""
    kept = table if inplace else torch.empty_like(table)
    if table.device.type != "cpu":
        return (kept if inplace else kept.copy_(table)).masked_fill_(~mask, math.inf)
    rows = max(1, budget(table.device).masked_numbers // max(1, table.shape[1]))
    walls = table.new_empty(min(rows, len(table)), table.shape[1])
    for wanted, part, out in zip(mask.split(rows), table.split(rows), kept.split(rows), strict=True):
        wall = walls[: len(part)].copy_(wanted.view(torch.uint8))  # bools are converted one by one
        wall.sub_(0.5).mul_(-math.inf)  # −inf where the mask is true, inf where not
        torch.maximum(part, wall, out=out)
    return kept


def kept_above(
    bound: Float[Tensor, " a"], table: Float[Tensor, "a r"], inplace: bool = False
) -> Float[Tensor, "a r"]:
    """The table with inf where it is not above the row's bound.

    Args:
        bound: [a].
        table: [a, r].
        inplace: change and return the table itself instead of a new one.

    Example:
        >>> kept_above(torch.tensor([1.0]), torch.tensor([[0.0, 1.0, 2.0]]))
        tensor([[inf, inf, 2.]])
    """
    return (kept_above_numpy if _is_small(table) else kept_above_torch)(bound, table, inplace)


def kept_above_numpy(bound: Tensor, table: Tensor, inplace: bool) -> Tensor:
    """`kept_above` by numpy."""
    numbers = table.numpy()
    edge = np.minimum(bound.numpy(), np.finfo(numbers.dtype).max)  # ∞ − ∞ is no number
    walls = np.subtract(edge[:, None], numbers)
    np.copysign(np.inf, walls, out=walls)  # inf where the number is not above the bound, else −inf
    return torch.from_numpy(np.maximum(numbers, walls, out=numbers if inplace else walls))


def kept_above_torch(bound: Tensor, table: Tensor, inplace: bool) -> Tensor:
    """`kept_above` by torch, in parts that a processor's cache holds."""
    kept = table if inplace else torch.empty_like(table)
    rows = max(1, budget(table.device).masked_numbers // max(1, table.shape[1]))
    infinite = table.new_full((), math.inf)
    bound = bound.clamp(max=torch.finfo(table.dtype).max)  # ∞ − ∞ is no number
    for edge, part, out in zip(bound.split(rows), table.split(rows), kept.split(rows), strict=True):
        walls = edge[:, None] - part
        torch.maximum(part, torch.copysign(infinite, walls, out=walls), out=out)
    return kept


def _walls(mask: Bool[Tensor, "a r"], dtype: np.dtype) -> np.ndarray:
    """−inf where the mask is true, inf where not."""
    walls = np.subtract(dtype.type(0.5), mask.numpy(), dtype=dtype)
    walls *= np.inf
    return walls


def signed_keys(
    table: Float[Tensor, "a r"], positive: Bool[Tensor, "a r"], negative: Bool[Tensor, "a r"]
) -> Float[Tensor, "b r"]:
    """[2a, r]: the table negated where `positive`, above the table where `negative`; inf elsewhere.

    Example:
        >>> side = torch.tensor([[True, False]])
        >>> signed_keys(torch.tensor([[1.0, 2.0]]), side, ~side)
        tensor([[-1., inf],
                [inf, 2.]])
    """
    return (signed_keys_numpy if _is_small(table) else signed_keys_torch)(table, positive, negative)


def signed_keys_numpy(table: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """`signed_keys` by numpy."""
    numbers, above = table.numpy(), table.shape[0]
    both = np.empty((2 * above, table.shape[1]), numbers.dtype)
    np.maximum(-numbers, _walls(positive, numbers.dtype), out=both[:above])
    np.maximum(numbers, _walls(negative, numbers.dtype), out=both[above:])
    return torch.from_numpy(both)


def signed_keys_torch(table: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """`signed_keys` by torch."""
    above, below = (-table).masked_fill_(~positive, math.inf), table.masked_fill(~negative, math.inf)
    return torch.cat([above, below])


def row_argmin(table: Float[Tensor, "a r"], error: Float[Tensor, " a"]) -> tuple[Int[Tensor, " a"], Places]:
    """The column of each row's smallest number, and where that is ambiguous.

    The numbers of a row are off by at most its error: two of them may be in either order up to twice the
    error apart.

    Args:
        table: [a, r].
        error: [a].

    Returns:
        [a], the column, −1 where all numbers are inf; (row, column) of all that may be the smallest of a row,
        where they are several.

    Example:
        >>> table, error = torch.tensor([[3.0, 1.0, 2.0], [1.1, 1.0, 9.0]]), torch.tensor([0.25, 0.25])
        >>> at, (row, column) = row_argmin(table, error)
        >>> at.tolist(), row.tolist(), column.tolist()
        ([1, 1], [1, 1], [0, 1])
    """
    return (row_argmin_numpy if _is_small(table) else row_argmin_torch)(table, error)


def row_argmin_numpy(table: Tensor, error: Tensor) -> tuple[Tensor, Places]:
    """`row_argmin` by numpy."""
    numbers = table.numpy()
    place = numbers.argmin(1)
    first = numbers[np.arange(place.shape[0]), place]
    limit = first + 2 * error.numpy()
    missing = first == np.inf
    none = np.count_nonzero(missing)
    if none:
        place[missing], limit[missing] = -1, -np.inf
    row, column = _NONE, _NONE
    # Of few numbers, mostly a count says that no row has another, which is a third of the look for them.
    few = numbers.size <= budget(table.device).counted_numbers
    if not few or np.count_nonzero(numbers <= limit[:, None]) > place.shape[0] - none:
        several = _rows_of_several(numbers, place, limit)
        if len(several):
            row, column = flat_places(numbers[several] <= limit[several, None])
            row = several[row]
    return torch.from_numpy(place), (torch.from_numpy(row), torch.from_numpy(column))


def _rows_of_several(numbers: np.ndarray, place: np.ndarray, limit: np.ndarray) -> np.ndarray:
    """The rows that have a number up to the limit beside the one at `place`, by another look without it."""
    rows = np.arange(len(numbers))
    first = numbers[rows, place]
    numbers[rows, place] = np.inf
    second = numbers[rows, numbers.argmin(1)]
    numbers[rows, place] = first
    return np.flatnonzero(second <= limit)


def row_argmin_torch(table: Tensor, error: Tensor) -> tuple[Tensor, Places]:
    """`row_argmin` by torch."""
    at = table.argmin(1, keepdim=True)
    least = table.gather(1, at)  # [a, 1]
    second = table.scatter(1, at, math.inf).amin(1)
    least, at = least[:, 0], at[:, 0].masked_fill(least[:, 0] == math.inf, -1)
    limit = least + 2 * error
    (some,) = ((second <= limit) & (second < math.inf)).nonzero(as_tuple=True)
    i, j = true_places(table[some] <= limit[some, None])
    return at, (some[i], j)


def below_bound(
    table: Float[Tensor, "a r"],
    bound: Float[Tensor, " a"],
    error: Float[Tensor, " a"],
    among: Bool[Tensor, "a r"] | None = None,
) -> tuple[Bool[Tensor, "a r"], Places]:
    """Which numbers lie more than the row's error below its bound, and the places within the error of it.

    Args:
        table: [a, r]; inf is never below.
        bound: [a].
        error: [a].
        among: [a, r], which numbers are asked for; None for all.

    Example:
        >>> table, one = torch.tensor([[0.0, 0.9, 2.0]]), torch.ones(1)
        >>> below_bound(table, one, 0.2 * one)
        (tensor([[ True, False, False]]), (tensor([0]), tensor([1])))
    """
    return (below_bound_numpy if _is_small(table) else below_bound_torch)(table, bound, error, among)


def below_bound_numpy(
    table: Tensor, bound: Tensor, error: Tensor, among: Tensor | None = None
) -> tuple[Tensor, Places]:
    """`below_bound` by numpy."""
    numbers, middle, width = table.numpy(), bound.numpy(), error.numpy()
    upper = np.minimum(middle + width, np.finfo(numbers.dtype).max)
    below, near = numbers < (middle - width)[:, None], numbers <= upper[:, None]
    if among is not None:
        wanted = among.numpy()
        below &= wanted
        near &= wanted
    if np.count_nonzero(near) > np.count_nonzero(below):
        places = true_places(torch.from_numpy(near & ~below))
    else:
        places = torch.from_numpy(_NONE), torch.from_numpy(_NONE)
    return torch.from_numpy(below), places


def below_bound_torch(
    table: Tensor, bound: Tensor, error: Tensor, among: Tensor | None = None
) -> tuple[Tensor, Places]:
    """`below_bound` by torch."""
    largest = torch.finfo(table.dtype).max
    below, near = table < (bound - error)[:, None], table <= (bound + error).clamp(max=largest)[:, None]
    if among is not None:
        below, near = below & among, near & among
    return below, true_places(near & ~below)
