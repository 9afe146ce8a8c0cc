"""‖x_i − y_j‖ of every row with every column: fast as a matrix product, precise as differences.

With u = x − c and v = y − c about one centre c,

    ‖x − y‖² = ‖u‖² + ‖v‖² − 2 u·v,    ∂L/∂x_i = Σ_j w_ij (x_i − y_j) = (Σ_j w_ij) u_i − Σ_j w_ij v_j

are matrix products, but they lose the digits of a difference that is small beside u and v. So *near* pairs,
those below `NEAR` of ‖u‖² + ‖v‖², are computed by differences, in the distance and in the gradient. Normally
they are few; where they are many, the whole table is computed by differences.

`fast_tile` and `fast_entries` are functions with a graph, for a processor: which pairs are near is looked up
as they are computed (`pairwise/near_columns` is what an accelerator takes). Heads that stream over tiles
without a graph (`losses/distance_gradients`) are made of the same parts: `CentredRows` finds the near pairs,
and `weighted_differences` and `add_listed_differences` are the gradient.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tercet.pairwise.budget import budget
from tercet.pairwise.differences import by_differences, chunks, listed_squares, squares_by_differences
from tercet.pairwise.masked import true_places
from tercet.pairwise.torch_modes import full_precision, has_fixed_shapes, roundoff, with_float64

__all__ = [
    "CentredRows",
    "add_listed_differences",
    "add_table_differences",
    "centre_of",
    "distances_within",
    "fast_entries",
    "fast_tile",
    "gather_rows",
    "is_measured_by_differences",
    "lengths",
    "pair_weights",
    "table_of_listed",
    "weighted_differences",
]

# Below this share of ‖u‖² + ‖v‖² a square by the product may be off by more than 2·10⁻⁵ of itself.
NEAR = 0.1


class CentredRows:
    """Rows and columns about one centre, from which products measure ‖x_i − y_j‖².

    Args:
        x: rows [a, k].
        y: columns [r, k]; x itself where they are the rows.

    Attributes:
        x: the rows as they were given: near pairs take their differences.
        y: the columns as they were given.
        centre: [k], the mean of the columns, or a point of their grid (`centre_of`).
        u: [a, k], x − centre.
        v: [r, k], y − centre; u itself where y is x.
        uu: [a], ‖u_i‖².
        vv: [r], ‖v_j‖².

    Example:
        >>> both = CentredRows(torch.tensor([[0.0], [4.0]]), torch.tensor([[0.0], [1.0], [5.0]]))
        >>> q = both.squares()
        >>> both.near_places(q)
        (tensor([0, 1]), tensor([0, 2]))
    """

    def __init__(self, x: Float[Tensor, "a k"], y: Float[Tensor, "r k"]) -> None:
        self.x, self.y = x, y
        self.centre = centre_of(x, y)
        self.u = x - self.centre
        self.v = self.u if y is x else y - self.centre
        self.uu = self.u.square().sum(1)
        self.vv = self.uu if y is x else self.v.square().sum(1)

    @functools.cached_property
    def _near_limit(self) -> Float[Tensor, ""]:
        """No pair is near whose square is above this."""
        return NEAR * (self.uu.amax() + self.vv.amax())

    def squares(self, rows: slice = slice(None)) -> Float[Tensor, "a r"]:
        """‖u_i − v_j‖² of some rows with all columns, by one product."""
        return torch.addmm(self.vv, self.u[rows], self.v.T, alpha=-2).add_(self.uu[rows, None])

    def any_near(self, squares: Float[Tensor, "..."]) -> bool:
        """Whether a pair may be near: one pass over the squares, and one read of the device."""
        return squares.numel() > 0 and bool(squares.amin() <= self._near_limit)

    def near_places(
        self, squares: Float[Tensor, "a r"], rows: slice = slice(None)
    ) -> tuple[Int[Tensor, " t"], Int[Tensor, " t"]]:
        """(row, column) of the near pairs in a table of `squares(rows)`, by row and then by column."""
        return true_places(_is_near(squares, self.uu[rows, None], self.vv))

    def near_listed(
        self, squares: Float[Tensor, " t"], i: Int[Tensor, " t"], j: Int[Tensor, " t"]
    ) -> Int[Tensor, " s"]:
        """Which of some listed pairs are near, as places of the list."""
        if not self.any_near(squares):
            return i[:0]
        return _is_near(squares, gather_rows(self.uu, i), gather_rows(self.vv, j)).nonzero()[:, 0]


def _is_near(
    squares: Float[Tensor, "*p"], uu: Float[Tensor, "..."], vv: Float[Tensor, "..."]
) -> Bool[Tensor, "*p"]:
    return squares <= (uu + vv).mul_(NEAR)


def weighted_differences(
    weights: Float[Tensor, "a r"],
    u: Float[Tensor, "a k"],
    v: Float[Tensor, "r k"],
    total: Float[Tensor, "a k"] | None = None,
) -> Float[Tensor, "a k"]:
    """Σ_j w_ij (u_i − v_j) by one product, with a graph; added to `total` where it is given.

    The gradient by the columns is the same of the transposed weights: Σ_i w_ij (v_j − u_i).

    Example:
        >>> u, v = torch.tensor([[1.0]]), torch.tensor([[0.0], [3.0]])
        >>> weighted_differences(torch.tensor([[1.0, 10.0]]), u, v)  # 1·(1 − 0) + 10·(1 − 3)
        tensor([[-19.]])
    """
    sums = weights.sum(1, keepdim=True)  # [a, 1]
    # The two terms are added in another order to a total, in place, so the last bit may differ.
    if total is None:
        return (sums * u).addmm_(weights, v, alpha=-1)
    return total.addmm_(weights, v, alpha=-1).addcmul_(sums, u)


def add_listed_differences(
    weights: Float[Tensor, " t"],
    x: Float[Tensor, "a k"],
    y: Float[Tensor, "r k"],
    i: Int[Tensor, " t"],
    j: Int[Tensor, " t"],
    by_x: Float[Tensor, "a k"] | None,
    by_y: Float[Tensor, "r k"] | None,
) -> None:
    """Add w_t (x_i − y_j) of each listed pair to row i of `by_x`, and subtract it from row j of `by_y`.

    The differences are gathered in bounded memory.
    """
    for rows, columns, w in chunks(x, i, j, weights):
        part = w[:, None] * (x[rows] - y[columns])  # [c, k]
        if by_x is not None:
            by_x.index_add_(0, rows, part)
        if by_y is not None:
            by_y.index_add_(0, columns, part, alpha=-1)


def is_measured_by_differences(x: Float[Tensor, "a k"], y: Float[Tensor, "r k"]) -> bool:
    """Whether a table is so small that differences of all pairs take less time than a read of the device."""
    return len(x) * y.numel() <= budget(x.device).difference_numbers


def add_table_differences(
    weights: Float[Tensor, "a r"],
    x: Float[Tensor, "a k"],
    y: Float[Tensor, "r k"],
    by_x: Float[Tensor, "a k"] | None,
    by_y: Float[Tensor, "r k"] | None,
) -> None:
    """Add Σ_j w_ij (x_i − y_j) to `by_x` and Σ_i w_ij (y_j − x_i) to `by_y`, by differences of all pairs.

    They are made in bounded memory, `cdist`'s own backward on CUDA makes rows · columns · k numbers at once.

    Example:
        >>> x, by_x = torch.tensor([[1.0]]), torch.zeros(1, 1)
        >>> add_table_differences(torch.tensor([[1.0, 10.0]]), x, torch.tensor([[0.0], [3.0]]), by_x, None)
        >>> by_x  # 1·(1 − 0) + 10·(1 − 3)
        tensor([[-19.]])
    """
    sizes = budget(x.device)
    numbers, width = max(sizes.difference_numbers, sizes.summed_numbers), max(1, x.shape[1])
    step = max(1, numbers // width)
    for first in range(0, len(y), step):
        columns = slice(first, first + step)
        height = max(1, numbers // (width * len(y[columns])))
        for start in range(0, len(x), height):
            rows = slice(start, start + height)
            part = (x[rows, None] - y[columns]).mul_(weights[rows, columns, None])  # [c, s, k]
            if by_x is not None:
                by_x[rows] += part.sum(1)
            if by_y is not None:
                by_y[columns] -= part.sum(0)


def distances_within(x: Float[Tensor, "*b a k"]) -> Float[Tensor, "*b a a"]:
    """`by_differences(x, x)` with a second derivative, which `torch.cdist` lacks; both are 0 where D is 0.

    Example:
        >>> x = torch.tensor([[0.0, 0.0], [3.0, 4.0]], requires_grad=True)
        >>> (grad,) = torch.autograd.grad(distances_within(x).sum(), x, create_graph=True)
        >>> torch.autograd.grad(grad[0, 0], x)[0]
        tensor([[ 0.2560, -0.1920],
                [-0.2560,  0.1920]])
    """
    return _Within.apply(x)


def lengths(x: Float[Tensor, "t k"]) -> Float[Tensor, " t"]:
    """‖x_i‖ with a second derivative that is finite everywhere, as that of `vector_norm` is not at 0.

    Example:
        >>> lengths(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        tensor([5., 0.])
    """
    return _Lengths.apply(x)


def fast_tile(x: Float[Tensor, "a k"], y: Float[Tensor, "r k"], root: bool) -> Float[Tensor, "a r"]:
    """‖x_i − y_j‖, or its square, to 10⁻⁵ of itself; 0 for equal rows, where the gradient is 0 too."""
    with full_precision(x.device):
        return _Euclidean.apply(x, y, None, None, root)


def fast_entries(
    x: Float[Tensor, "a k"], y: Float[Tensor, "r k"], i: Int[Tensor, " t"], j: Int[Tensor, " t"], root: bool
) -> Float[Tensor, " t"]:
    """`fast_tile(x, y, root)[i, j]`: the whole table by a product, differences only of listed pairs.

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [3.0]])
        >>> fast_entries(x, x, torch.tensor([0, 2]), torch.tensor([2, 1]), root=True)
        tensor([3., 2.])
    """
    with full_precision(x.device):
        return _Euclidean.apply(x, y, i, j, root)


def gather_rows(x: Float[Tensor, "n *k"], rows: Int[Tensor, " t"]) -> Float[Tensor, "t *k"]:
    """x[rows]; on a CPU by the faster `index_select`, whose gradient on a GPU would add in no fixed order."""
    return x.index_select(0, rows) if x.device.type == "cpu" else x[rows]


def centre_of(x: Float[Tensor, "n k"], y: Float[Tensor, "r k"]) -> Float[Tensor, " k"]:
    """The mean of y, rounded to the grid of x and y if they stand on one so coarse that products are exact.

    On a grid, such as small whole numbers, ‖x − c‖² + ‖y − c‖² − 2(x − c)·(y − c) is then exactly the sum of
    squared differences. So a head, which decides by products, decides as a miner does by differences.

    Example:
        >>> centre_of(torch.zeros(1, 1), torch.tensor([[0.0], [1.0], [1.0]]))
        tensor([0.6670])
    """
    if not y.numel():
        return y.new_zeros(y.shape[1])
    centre, bits = y.mean(0), _exact_bits(y.shape[1], y.dtype)
    if not has_fixed_shapes(y):  # one number off the grid is enough, and the first nearly always is
        value, about = float(y.numpy()[0, 0]), float(centre.numpy()[0])
        grain = math.ldexp(1.0, math.frexp(value - about)[1] - bits)  # the grain of all numbers is no finer
        if value != about and (not grain or value % grain):
            return centre
    both = y if x is y else torch.cat([x, y])
    largest = (both - centre).abs().amax()
    grain = torch.ldexp(torch.ones_like(largest), torch.frexp(largest).exponent - bits)
    on_grid = ((both / grain).frac() == 0).all()
    return torch.where(on_grid, (centre / grain).round() * grain, centre)


def _exact_bits(k: int, dtype: torch.dtype) -> int:
    """How many bits numbers on a grid may have, and one more, so that 3·k squares of them add up exactly."""
    digits = 53 if dtype == torch.float64 else 24
    return int((digits - 2 - math.log2(3 * k)) // 2)


class _Euclidean(torch.autograd.Function):
    """‖x_i − y_j‖ or its square: of all pairs [a, r], or of listed places (i, j) of that table [t]."""

    @staticmethod
    def forward(ctx: Any, x: Any, y: Any, i: Any, j: Any, root: bool) -> Any:
        listed = i is not None
        ctx.root, ctx.listed = root, listed
        ctx.dense = not listed and (is_measured_by_differences(x, y) or roundoff(x) > 2.0**-24)
        if ctx.dense:
            out = by_differences(x, y) if root else squares_by_differences(x, y)
            ctx.save_for_backward(x, y, out)
            return out
        both = CentredRows(x, y)
        out = both.squares()  # [a, r]
        if listed:
            out = out.view(-1).index_select(0, i * len(y) + j)  # [t]
            near = both.near_listed(out, i, j)
            near_rows, near_columns = i[near], j[near]
        else:
            near = near_rows, near_columns = both.near_places(out)
            ctx.dense = budget(x.device).dense_share * len(near_rows) > out.numel()
            if ctx.dense:
                out = by_differences(x, y) if root else squares_by_differences(x, y)
                ctx.save_for_backward(x, y, out)
                return out
        out[near] = listed_squares(x, y, near_rows, near_columns)
        if root:
            out.sqrt_()
        kept = (i, j, near) if listed else ()
        ctx.save_for_backward(x, y, both.centre, out if root else None, near_rows, near_columns, *kept)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        if ctx.dense:
            x, y, out = ctx.saved_tensors
            by_x = _gradient_by_differences(x, y, out, grad, ctx.root)
            by_y = _gradient_by_differences(y, x, out.mT, grad.mT, ctx.root)
            return by_x, by_y, None, None, None
        x, y, centre, out, near_rows, near_columns, *places = ctx.saved_tensors
        weights = pair_weights(out, grad)  # [a, r] or [t]
        near = places[2] if ctx.listed else (near_rows, near_columns)
        near_weights = weights[near]
        weights[near] = 0.0
        if ctx.listed:
            weights = table_of_listed(weights, places[0], places[1], len(x), len(y))
        u, v = x - centre, y - centre
        by_x = by_y = None
        with full_precision(x.device):
            if ctx.needs_input_grad[0]:
                by_x = weighted_differences(weights, u, v)
            if ctx.needs_input_grad[1]:
                by_y = weighted_differences(weights.T, v, u)
        add_listed_differences(near_weights, x, y, near_rows, near_columns, by_x, by_y)
        return by_x, by_y, None, None, None


class _Lengths(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        out = torch.linalg.vector_norm(x, dim=1)
        ctx.save_for_backward(x, out)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        x, out = ctx.saved_tensors
        return pair_weights(out, grad)[:, None] * x


class _Within(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        out = by_differences(x, x)
        ctx.save_for_backward(x, out)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        x, out = ctx.saved_tensors
        grad = grad + grad.mT
        if x.device.type == "cpu" or torch.is_grad_enabled():
            return _gradient_by_differences(x, x, out, grad, root=True)
        tables, weights = x.flatten(0, -3), pair_weights(out, grad).flatten(0, -3)  # [b, a, k], [b, a, a]
        step = max(1, budget(x.device).difference_numbers // max(1, tables[0].numel() * x.shape[-2]))
        parts = zip(tables.split(step), weights.split(step), strict=True)
        sums = [((some[:, :, None] - some[:, None]).mul_(w[..., None])).sum(2) for some, w in parts]
        return torch.cat(sums).view_as(x)


# Every backward here consists of operations that have a derivative themselves, so `create_graph=True` gives
# second derivatives. `out` is then the saved output with its graph. It must not be divided by where it is 0:
# a mask put on afterwards would leave NaN in the second derivative.


def pair_weights(out: Tensor | None, grad: Tensor) -> Tensor:
    """w in ∂L/∂x = Σ w (x − y): grad / D for D = ‖x − y‖, 2·grad for its square, where `out` is None."""
    if out is None:
        return 2 * grad
    if torch.is_grad_enabled():
        return grad / out.masked_fill(out == 0, math.inf)
    return (grad / out).masked_fill_(out == 0, 0.0)


def table_of_listed(
    weights: Float[Tensor, " t"], i: Int[Tensor, " t"], j: Int[Tensor, " t"], rows: int, columns: int
) -> Float[Tensor, "rows columns"]:
    """The weights summed at their places (i, j); in float64, since a pair may be listed a million times."""

    def summed(weights: Tensor, place: Tensor) -> Tensor:
        table = weights.new_zeros(rows * columns, dtype=torch.float64)
        if table.device.type == "cpu":
            return table.index_add_(0, place, weights.double())
        # `index_add_` of a GPU adds in no fixed order
        return table.index_put_((place,), weights.double(), accumulate=True)

    return with_float64(summed, weights, i * columns + j).to(weights.dtype).view(rows, columns)


def _gradient_by_differences(x: Tensor, y: Tensor, out: Tensor, grad: Tensor, root: bool) -> Tensor:
    """Σ_j w_ij (x_i − y_j); with a graph of all a·r·k differences where one is recorded."""
    if torch.is_grad_enabled():
        weight = pair_weights(out if root else None, grad)
        return (weight[..., None] * (x[..., :, None, :] - y[..., None, :, :])).sum(-2)
    if not root:
        out = out.sqrt()
        grad = 2 * grad * out
    # The backward of `cdist` itself: through autograd the distances would be computed a second time.
    return torch.ops.aten._cdist_backward(grad.contiguous(), x, y, 2.0, out.contiguous())
