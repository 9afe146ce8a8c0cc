"""The closed forms that a distance may have: D = ‖u − v‖, a multiple of ‖u − v‖², or −x·y.

A distance that has one is computed by matrix products where these are precise enough, and by sums of squared
differences where a comparison depends on the last digits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tercet.pairwise.differences import by_differences, pair_squares, squares_by_differences
from tercet.pairwise.euclidean import fast_entries, fast_tile, gather_rows, lengths
from tercet.pairwise.near_columns import fixed_entries, fixed_tile
from tercet.pairwise.torch_modes import full_precision

__all__ = ["EuclideanForm", "ProductForm", "products"]


def _same(x: Tensor) -> Tensor:
    return x


@dataclass(frozen=True)
class EuclideanForm:
    """D = √q or D = scale · q, of q = ‖u − v‖² with u = space(x).

    Args:
        root: take the root.
        scale: of q where there is no root: a power of two, so that it rounds nothing.
        space: u of features x; it may only add columns without gradient behind those of x.

    Example:
        >>> import torch
        >>> x = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
        >>> EuclideanForm(scale=0.5).exact(x, x)
        tensor([[0., 1.],
                [1., 0.]])
    """

    root: bool = False
    scale: float = 1.0
    space: Callable[[Tensor], Tensor] = _same

    def tile(self, x: Float[Tensor, "a k"], y: Float[Tensor, "r k"]) -> Float[Tensor, "a r"]:
        """D(x_i, y_j), to 10⁻⁵ of itself and with a gradient."""
        measure = fast_tile if x.device.type == "cpu" else fixed_tile
        return self._scaled(measure(self.space(x), self.space(y), self.root))

    def paired(self, x: Float[Tensor, "t k"], y: Float[Tensor, "t k"]) -> Float[Tensor, " t"]:
        """D(x_i, y_i) by differences, with a gradient."""
        x, y = self.space(x), self.space(y)
        return lengths(x - y) if self.root else self._scaled(pair_squares(x, y))

    def entries(
        self, x: Float[Tensor, "a k"], y: Float[Tensor, "r k"], i: Int[Tensor, " t"], j: Int[Tensor, " t"]
    ) -> Float[Tensor, " t"]:
        """`tile(x, y)[i, j]`: the distances of listed pairs of rows.

        Args:
            x: [a, k], the features of the rows.
            y: [r, k], the features of the columns.
            i, j: int64 [t], the row and the column of each pair.

        Returns:
            Floats [t], with a gradient.
        """
        measure = fast_entries if x.device.type == "cpu" else fixed_entries
        return self._scaled(measure(self.space(x), self.space(y), i, j, self.root))

    def exact(self, x: Float[Tensor, "a k"], y: Float[Tensor, "r k"]) -> Float[Tensor, "a r"]:
        """D(x_i, y_j) by differences, each by its two rows alone; without a gradient."""
        return self.exact_in_space(self.space(x), self.space(y))

    def exact_in_space(self, u: Float[Tensor, "a k"], v: Float[Tensor, "r k"]) -> Float[Tensor, "a r"]:
        """`exact` of rows that are in `space` already."""
        return by_differences(u, v) if self.root else self._scaled(squares_by_differences(u, v))

    def exact_pairs_in_space(self, u: Float[Tensor, "t k"], v: Float[Tensor, "t k"]) -> Float[Tensor, " t"]:
        """The numbers of `exact_in_space`, pair by pair."""
        if self.root:
            return by_differences(u[:, None], v[:, None])[:, 0, 0]
        return self._scaled(pair_squares(u, v))

    def to_square(self, distance: Float[Tensor, " t"]) -> Float[Tensor, " t"]:
        """q of D."""
        return distance.square() if self.root else distance / self.scale

    def from_squares_(self, squares: Float[Tensor, "*p"]) -> Float[Tensor, "*p"]:
        """D of q, written over q."""
        if self.root:
            return squares.sqrt_()
        return squares if self.scale == 1 else squares.mul_(self.scale)

    def _scaled(self, squares: Tensor) -> Tensor:
        return squares if self.scale == 1 else squares * self.scale


@dataclass(frozen=True)
class ProductForm:
    """D = −x·y. It has no differences: its last bit may depend on how a table is cut into tiles.

    Example:
        >>> import torch
        >>> x = torch.tensor([[0.0, 1.0], [2.0, 1.0]])
        >>> ProductForm().tile(x, x)
        tensor([[-1., -1.],
                [-1., -5.]])
    """

    def tile(self, x: Float[Tensor, "a k"], y: Float[Tensor, "r k"]) -> Float[Tensor, "a r"]:
        """D(x_i, y_j), with a gradient."""
        return -products(x, y)

    def paired(self, x: Float[Tensor, "t k"], y: Float[Tensor, "t k"]) -> Float[Tensor, " t"]:
        """D(x_i, y_i), with a gradient."""
        return -(x * y).sum(1)

    def entries(
        self, x: Float[Tensor, "a k"], y: Float[Tensor, "r k"], i: Int[Tensor, " t"], j: Int[Tensor, " t"]
    ) -> Float[Tensor, " t"]:
        """`tile(x, y)[i, j]`."""
        return gather_rows(self.tile(x, y).flatten(), i * len(y) + j)


class _Product(torch.autograd.Function):
    """x yᵀ, whose gradient keeps the precision of x even where `backward` is called under autocast."""

    @staticmethod
    def forward(ctx: Any, x: Any, y: Any) -> Any:
        ctx.save_for_backward(x, y)
        return x @ y.T

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        x, y = ctx.saved_tensors
        with full_precision(grad.device):
            return grad @ y, grad.T @ x


def products(x: Float[Tensor, "a k"], y: Float[Tensor, "r k"]) -> Float[Tensor, "a r"]:
    """x_i·y_j of every row with every column, outside autocast."""
    with full_precision(x.device):
        return _Product.apply(x, y)
