"""Sums that depend on their own rows alone, not on the table or the batch around them.

Matrix products add up in an order that follows from the shape of the whole, so equal rows of two batches, and
one pair in two tables, may differ in the last bit. What ties and bounds are decided by is computed here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = [
    "by_differences",
    "chunks",
    "listed_squares",
    "mapped_rows",
    "pair_squares",
    "row_sums",
    "squares_by_differences",
]

_CHUNK = 2**20  # numbers gathered at once for single pairs
_CACHED = 2**18  # terms of sums made at once by a processor; a card makes `_CHUNK` times four


def by_differences(x: Float[Tensor, "*b a k"], y: Float[Tensor, "*b r k"]) -> Float[Tensor, "*b a r"]:
    """‖x_i − y_j‖: differences, squares, sum, root, for each pair by itself."""
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def pair_squares(x: Float[Tensor, "t k"], y: Float[Tensor, "t k"]) -> Float[Tensor, " t"]:
    """Σ (x_i − y_i)² for each i: of whole numbers exact, and a function of the two rows alone.

    The square of `by_differences` is neither: √2 squared is not 2.
    """
    return row_sums((x - y).square())


def squares_by_differences(x: Float[Tensor, "a k"], y: Float[Tensor, "r k"]) -> Float[Tensor, "a r"]:
    """`pair_squares` of every row with every column, in bounded memory; without a gradient."""
    out, width = x.new_empty(len(x), len(y)), max(1, x.shape[1])
    numbers = _at_once(x)
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
    parts = [row_sums((x[a] - y[b]).square_()) for a, b in chunks(x.shape[1], i, j)]
    return torch.cat(parts) if parts else x.new_zeros(0)


def mapped_rows(x: Float[Tensor, "n d"], L: Float[Tensor, "d k"]) -> Float[Tensor, "n k"]:
    """xL, each row by itself, with a graph: equal rows of any two batches give equal rows.

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
        height = max(1, _at_once(x) // max(1, columns.numel()))
        parts = [row_sums((some[:, None] * columns).flatten(0, 1)) for some in x.split(height)]
        return torch.cat(parts).view(len(x), len(columns))

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        x, L = ctx.saved_tensors  # operations with a derivative: a second one is right too
        by_x, by_l = ctx.needs_input_grad
        return grad @ L.T if by_x else None, x.T @ grad if by_l else None


def row_sums(numbers: Float[Tensor, "t k"]) -> Float[Tensor, " t"]:
    """Each row's sum, in an order that the number of rows does not change."""
    if numbers.device.type == "cpu":
        return numbers.sum(1)
    while numbers.shape[1] > 1:  # a card's own sum takes another order for few rows than for many
        half = numbers.shape[1] // 2
        rest = numbers[:, 2 * half :]
        numbers = torch.cat([numbers[:, :half] + numbers[:, half : 2 * half], rest], dim=1)
    return numbers.sum(1)


def chunks(width: int, *columns: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Equally long tensors side by side, a bounded number of rows of `width` at a time."""
    return zip(*(column.split(max(1, _CHUNK // max(1, width))) for column in columns))


def _at_once(x: Tensor) -> int:
    return _CACHED if x.device.type == "cpu" else 4 * _CHUNK
