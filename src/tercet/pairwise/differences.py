"""Sums of squared differences, each a function of its two rows alone, whatever table or batch they stand in.

A matrix product adds up in an order that depends on the shape of the whole product. So the same pair of rows
may differ in its last bit between two tables. Ties and bounds are decided by the numbers of this file.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import avg_pool2d, mse_loss

from tercet.pairwise.budget import budget

__all__ = [
    "by_differences",
    "chunks",
    "listed_squares",
    "mapped_rows",
    "pair_squares",
    "row_sums",
    "squares_by_differences",
]


def by_differences(x: Float[Tensor, "*b a k"], y: Float[Tensor, "*b r k"]) -> Float[Tensor, "*b a r"]:
    """‖x_i − y_j‖ for each pair by itself: differences, squares, their sum, its root."""
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def pair_squares(x: Float[Tensor, "t k"], y: Float[Tensor, "t k"]) -> Float[Tensor, " t"]:
    """Σ (x_i − y_i)² for each i: exact for whole numbers, which the square of `by_differences` is not.

    √2 rounded and squared is not 2.
    """
    return row_sums((x - y).square())


def squares_by_differences(x: Float[Tensor, "a k"], y: Float[Tensor, "r k"]) -> Float[Tensor, "a r"]:
    """`pair_squares` of every row with every column, in bounded memory; without a gradient."""
    width = max(1, x.shape[1])
    numbers = budget(x.device).summed_numbers
    if len(x) * len(y) * width <= numbers:
        shape = len(x), len(y), x.shape[1]
        squares = mse_loss(x[:, None].expand(shape), y.expand(shape), reduction="none")  # (x − y)² at once
        return row_sums(squares.flatten(0, 1)).view(shape[:2])
    out = x.new_empty(len(x), len(y))
    step = max(1, numbers // width)
    for first in range(0, len(y), step):
        columns = y[first : first + step]
        height = max(1, numbers // (width * len(columns)))
        for start in range(0, len(x), height):
            apart = (x[start : start + height, None] - columns).square_()  # [c, s, k]
            table = row_sums(apart.flatten(0, 1)).view(apart.shape[:2])
            out[start : start + height, first : first + step] = table
    return out


def listed_squares(
    x: Float[Tensor, "a k"], y: Float[Tensor, "r k"], i: Int[Tensor, " t"], j: Int[Tensor, " t"]
) -> Float[Tensor, " t"]:
    """`pair_squares` of x_i and y_j for each listed pair, in bounded memory; without a gradient."""
    parts = [row_sums((x[a] - y[b]).square_()) for a, b in chunks(x, i, j)]
    return torch.cat(parts) if parts else x.new_zeros(0)


def mapped_rows(x: Float[Tensor, "n d"], L: Float[Tensor, "d k"]) -> Float[Tensor, "n k"]:
    """xL with a graph, each row by itself: equal rows give equal rows, also in different batches.

    Example:
        >>> mapped_rows(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 0.0], [3.0, 1.0]]))
        tensor([[7., 2.]])
    """
    return _Mapped.apply(x, L)  # type: ignore[return-value]


class _Mapped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Any, L: Any) -> Any:
        ctx.save_for_backward(x, L)
        columns = L.T.contiguous()  # [k, d]
        height = max(1, budget(x.device).summed_numbers // max(1, columns.numel()))
        parts = [row_sums((some[:, None] * columns).flatten(0, 1)) for some in x.split(height)]
        return torch.cat(parts).view(len(x), len(columns))

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        x, L = ctx.saved_tensors  # operations with a derivative, so a second derivative is right too
        by_x, by_l = ctx.needs_input_grad
        return grad @ L.T if by_x else None, x.T @ grad if by_l else None


def row_sums(numbers: Float[Tensor, "t k"]) -> Float[Tensor, " t"]:
    """Each row's sum, in an order that the number of rows does not change."""
    k = numbers.shape[1]
    if numbers.device.type == "cpu" or k == 0:
        return numbers.sum(1)
    # An accelerator's own sum takes another order for few rows than for many. Pooling adds up a window in
    # order: windows of √k numbers, then the windows. So at most 2√k additions follow each other.
    if k == 1:
        return numbers[:, 0]
    windows = _window_sums(numbers[:, None, None], math.isqrt(k - 1) + 1)
    return _window_sums(windows, windows.shape[-1])[:, 0, 0, 0]


def _window_sums(numbers: Float[Tensor, "t 1 1 k"], width: int) -> Float[Tensor, "t 1 1 s"]:
    """The sums of windows that do not overlap; the last one may be shorter."""
    return avg_pool2d(numbers, (1, width), ceil_mode=True, divisor_override=1)


def chunks(x: Float[Tensor, "n k"], *columns: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Tensors [t] of one length, split so that a row of x for each entry fits `Budget.gathered_numbers`."""
    step = max(1, budget(x.device).gathered_numbers // max(1, x.shape[1]))
    return zip(*(column.split(step) for column in columns), strict=True)
