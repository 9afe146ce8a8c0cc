"""‖x_i − y_j‖ and its gradient in shapes that the data do not change, for accelerators: nothing is read.

`pairwise/euclidean` looks which pairs are near and measures those by differences. How many they are follows
from the data, and an accelerator would be read to know it. Here each row has a fixed number of near columns:

1. *Small tables*, up to `Budget.difference_numbers`, are measured by differences throughout.
2. In *larger ones* the w columns of a row with the smallest squares by product are measured by differences,
   in the distance and in the gradient, and all others by products. w is the number of a row's positives,
   where the host knows it, and `Budget.near_columns` more. If w is so large that a table of differences costs
   less (`Budget.dense_share`), it is case 1.
3. A pair that is near and not among those w keeps the error of a product, at most 2·10⁻⁶ of ‖u‖² + ‖v‖² in
   the square. Below `indistinct`, where a product cannot tell two rows apart, they count as equal: distance
   and gradient are 0.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tercet.pairwise.budget import budget
from tercet.pairwise.differences import by_differences, squares_by_differences
from tercet.pairwise.euclidean import (
    CentredRows,
    add_table_differences,
    gather_rows,
    pair_weights,
    table_of_listed,
    weighted_differences,
)
from tercet.pairwise.torch_modes import full_precision, roundoff

__all__ = [
    "add_near_differences",
    "fixed_entries",
    "fixed_tile",
    "indistinct",
    "measure_near_columns_",
    "near_columns",
]


def near_columns(
    x: Float[Tensor, "a k"], y: Float[Tensor, "r k"], positives: int | None = None
) -> int | None:
    """How many columns of each row are measured by differences; None for all.

    Args:
        x: rows.
        y: columns.
        positives: how many positives a row has at most; None where the host does not know.

    Example:
        >>> x = torch.zeros(4096, 128)
        >>> near_columns(x, x, 3), near_columns(x, x), near_columns(x, x, 4000)
        (11, 32, None)
    """
    sizes = budget(x.device)
    if len(x) * y.numel() <= sizes.difference_numbers or roundoff(x) > 2.0**-24:
        return None
    count = sizes.near_columns_unknown if positives is None else positives + sizes.near_columns
    return None if count * sizes.dense_share > len(y) else count


def indistinct(both: CentredRows) -> Float[Tensor, " a"]:
    """The square below which a product cannot tell a row from a column: a few times its usual error, √k·u."""
    k = both.u.shape[1]
    return both.uu * (2 * math.sqrt(k) * torch.finfo(both.uu.dtype).eps)


def measure_near_columns_(
    squares: Float[Tensor, "a r"],
    x: Float[Tensor, "a k"],
    y: Float[Tensor, "r k"],
    least: Float[Tensor, " a"],
    count: int,
) -> Int[Tensor, "a w"]:
    """Overwrite the `count` smallest squares of each row by differences, and others below `least` by 0.

    Args:
        squares: by product; inf where nothing is to be measured.
        x: rows.
        y: columns.
        least: `indistinct` of these rows.
        count: w, at most r.

    Returns:
        The columns that were measured by differences.

    Example:
        >>> x, y = torch.tensor([[0.0]]), torch.tensor([[3.0], [1.0], [2.0]])
        >>> q = torch.tensor([[9.1, 1.1, 4.1]])
        >>> measure_near_columns_(q, x, y, torch.zeros(1), 2), q
        (tensor([[1, 2]]), tensor([[9.1000, 1.0000, 4.0000]]))
    """
    at = squares.topk(count, dim=1, largest=False).indices  # [a, w]
    squares.masked_fill_(squares <= least[:, None], 0.0)
    rows = _rows_at_once(x, count)
    parts = [_apart(a, y, b).square_().sum(2) for a, b in zip(x.split(rows), at.split(rows), strict=True)]
    squares.scatter_(1, at, parts[0] if len(parts) == 1 else torch.cat(parts))
    return at


def add_near_differences(
    weights: Float[Tensor, "a w"],
    x: Float[Tensor, "a k"],
    y: Float[Tensor, "r k"],
    at: Int[Tensor, "a w"],
    by_x: Float[Tensor, "a k"] | None,
    by_y: Float[Tensor, "r k"] | None,
) -> None:
    """Add Σ_j w_ij (x_i − y_j) over the listed columns to `by_x`, and subtract each term from `by_y`_j.

    Example:
        >>> x, y, by_x = torch.tensor([[1.0]]), torch.tensor([[0.0], [3.0]]), torch.zeros(1, 1)
        >>> add_near_differences(torch.tensor([[2.0]]), x, y, torch.tensor([[1]]), by_x, None)
        >>> by_x  # 2·(1 − 3)
        tensor([[-4.]])
    """
    height = _rows_at_once(x, at.shape[1])
    for start in range(0, len(x), height):
        rows = slice(start, start + height)
        part = _apart(x[rows], y, at[rows]).mul_(weights[rows, :, None])  # [c, w, k]
        if by_x is not None:
            by_x[rows] += part.sum(1)
        if by_y is not None:
            by_y.index_add_(0, at[rows].flatten(), part.flatten(0, 1), alpha=-1)


def _apart(
    x: Float[Tensor, "a k"], y: Float[Tensor, "r k"], at: Int[Tensor, "a w"]
) -> Float[Tensor, "a w k"]:
    return x[:, None] - y[at]


def _rows_at_once(x: Float[Tensor, "a k"], count: int) -> int:
    return max(1, budget(x.device).gathered_numbers // max(1, count * x.shape[1]))


def fixed_tile(x: Float[Tensor, "a k"], y: Float[Tensor, "r k"], root: bool) -> Float[Tensor, "a r"]:
    """‖x_i − y_j‖, or its square, with a graph; 0 for equal rows, where the gradient is 0 too."""
    with full_precision(x.device):
        return _Table.apply(x, y, root)


def fixed_entries(
    x: Float[Tensor, "a k"], y: Float[Tensor, "r k"], i: Int[Tensor, " t"], j: Int[Tensor, " t"], root: bool
) -> Float[Tensor, " t"]:
    """`fixed_tile(x, y, root)[i, j]`, whose gradient is that of a table.

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [3.0]])
        >>> fixed_entries(x, x, torch.tensor([0, 2]), torch.tensor([2, 1]), root=True)
        tensor([3., 2.])
    """
    return _Listed.apply(fixed_tile(x, y, root), i, j)


class _Table(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Any, y: Any, root: bool) -> Any:
        ctx.root, count = root, near_columns(x, y)
        if count is None:
            out = by_differences(x, y) if root else squares_by_differences(x, y)
            ctx.save_for_backward(x, y, out)
            return out
        both = CentredRows(x, y)
        out = both.squares()
        at = measure_near_columns_(out, x, y, indistinct(both), min(count, len(y)))
        out = out.sqrt_() if root else out
        ctx.save_for_backward(x, y, out, both.centre, at)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        x, y, out, *listed = ctx.saved_tensors
        weights = pair_weights(out if ctx.root else None, grad)  # [a, r]
        if torch.is_grad_enabled() and not listed:  # a graph of all a·r·k differences
            terms = weights[..., None] * (x[:, None] - y)
            return terms.sum(1), -terms.sum(0), None
        by_x, by_y = (torch.zeros_like(v) if n else None for v, n in _wanted(ctx, x, y))
        if not listed:
            add_table_differences(weights, x, y, by_x, by_y)
            return by_x, by_y, None
        centre, at = listed
        near, weights = weights.gather(1, at), weights.scatter(1, at, 0.0)
        u, v = x - centre, y - centre
        with full_precision(x.device):
            if by_x is not None:
                by_x = weighted_differences(weights, u, v)
            if by_y is not None:
                by_y = weighted_differences(weights.T, v, u)
        add_near_differences(near, x, y, at, by_x, by_y)
        return by_x, by_y, None


def _wanted(ctx: Any, x: Tensor, y: Tensor) -> Any:
    return zip((x, y), ctx.needs_input_grad, strict=False)  # and the root


class _Listed(torch.autograd.Function):
    """Entries of a table, whose gradient is summed in float64 and in a fixed order."""

    @staticmethod
    def forward(ctx: Any, table: Any, i: Any, j: Any) -> Any:
        ctx.save_for_backward(i, j)
        ctx.shape = table.shape
        return gather_rows(table.flatten(), i * table.shape[1] + j)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        return table_of_listed(grad, *ctx.saved_tensors, *ctx.shape), None, None
