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

__all__ = ["compared", "extreme_keys", "fill_where", "first_places", "true_places"]

_SMALL = 2**19  # numbers


def _small(table: Tensor) -> bool:
    return table.device.type == "cpu" and table.numel() <= _SMALL


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
    row = torch.from_numpy(place // mask.shape[1])
    return row, torch.from_numpy(place).sub_(row, alpha=mask.shape[1])


def fill_where(mask: Bool[Tensor, "a r"], table: Float[Tensor, "a r"], value: float) -> Float[Tensor, "a r"]:
    """The table, with `value` written into it where the mask is true.

    Example:
        >>> fill_where(torch.tensor([[True, False]]), torch.zeros(1, 2), 7.0)
        tensor([[7., 0.]])
    """
    if not _small(table):
        return table.masked_fill_(mask, value)
    numbers = table.numpy()
    np.copyto(numbers, numbers.dtype.type(value), where=mask.numpy())
    return table


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
    both = np.full((2 * len(table), table.shape[1]), np.inf, dtype=table.numpy().dtype)
    np.negative(table.numpy(), out=both[: len(table)], where=positive.numpy())
    np.copyto(both[len(table) :], table.numpy(), where=negative.numpy())
    return torch.from_numpy(both)


def first_places(
    table: Float[Tensor, "a r"], slack: Float[Tensor, " a"]
) -> tuple[Int[Tensor, " a"], Float[Tensor, " a"], Int[Tensor, " u"]]:
    """Where the smallest number of each row is, and in which rows another is less than two slacks larger.

    Returns:
        The column, −1 where all are inf; up to which number another counts; the rows that have one.

    Example:
        >>> table = torch.tensor([[3.0, 1.0, 2.0], [1.1, 1.0, 9.0]])
        >>> [each.tolist() for each in first_places(table, torch.tensor([0.25, 0.25]))]
        [[1, 1], [1.5, 1.5], [1]]
    """
    if not _small(table):
        at = table.argmin(1, keepdim=True)
        least = table.gather(1, at)  # [a, 1]
        second = table.scatter_(1, at, math.inf).amin(1)
        table.scatter_(1, at, least)
        least, bound = least[:, 0], least[:, 0] + 2 * slack
        (unsure,) = ((second <= bound) & (second < math.inf)).nonzero(as_tuple=True)
        return at[:, 0].masked_fill(least == math.inf, -1), bound, unsure
    numbers, every = table.numpy(), np.arange(len(table))
    place = numbers.argmin(1)
    first = numbers[every, place]
    numbers[every, place] = np.inf
    following = numbers.min(1)
    numbers[every, place] = first
    place[first == np.inf] = -1
    limit = first + 2 * slack.numpy()
    rows = np.flatnonzero((following <= limit) & (following < np.inf))
    return torch.from_numpy(place), torch.from_numpy(limit), torch.from_numpy(rows)


def compared(
    table: Float[Tensor, "a r"], bound: Float[Tensor, " a"], slack: Float[Tensor, " a"]
) -> tuple[Bool[Tensor, "a r"], Bool[Tensor, "a r"]]:
    """Which numbers are less than the row's bound, and which are no more than the row's slack off it.

    Example:
        >>> table, one = torch.tensor([[0.0, 0.9, 2.0]]), torch.ones(1)
        >>> compared(table, one, 0.2 * one)
        (tensor([[ True,  True, False]]), tensor([[False,  True, False]]))
    """
    if not _small(table):
        excess = table - bound[:, None]
        return excess < 0, excess.abs_() <= slack[:, None]
    apart = table.numpy() - bound.numpy()[:, None]
    found = torch.from_numpy(apart < 0)
    return found, torch.from_numpy(np.abs(apart, out=apart) <= slack.numpy()[:, None])
