"""Losses over all pairs or triplets with their gradient: no graph of a tile, no list.

A loss that sees embeddings through their distances alone has the gradient Σ w_ij ∇D_ij, w_ij = ∂L/∂D_ij.
A head says what w is, a tile at a time; here it becomes two matrix products a tile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tercet.distances import Distance, Mahalanobis, cosine, dot, euclidean, squared_euclidean
from tercet.pairwise import Pairwise, Tile, tiled_mean

__all__ = ["TileLoss", "sloped_mean"]

# Many passes go over a tile; beyond the cache, or in memory fresh from the system, each takes several times
# as long.
_CACHED_NUMBERS = 2**17


class TileLoss(NamedTuple):
    """The losses of one tile.

    Args:
        value: their sum, float64.
        count: how many of them the mean is over, int64.
        slopes: float [a, r], w = ∂value/∂D.
    """

    value: Float[Tensor, ""]
    count: Int[Tensor, ""]
    slopes: Float[Tensor, "a r"]


def sloped_mean(
    pairwise: Pairwise, reduction: str, loss_of: Callable[[Tile], TileLoss], tile_rows: int | None = None
) -> Float[Tensor, ""]:
    """What `tiled_mean` gives, of losses whose derivative by each distance is known.

    Args:
        pairwise: rows and columns.
        reduction: `"mean_active"`, `"mean"` or `"sum"`.
        loss_of: the losses of a tile, called where no graph is recorded.
        tile_rows: rows computed at once; None for as many as stay in a processor's cache.

    Returns:
        The loss, with a graph.
    """

    columns = pairwise.inputs[-1]
    if tile_rows is None and columns.device.type == "cpu":
        pairwise.tile_rows = min(pairwise.tile_rows, max(64, _CACHED_NUMBERS // max(1, len(columns))))

    def terms(*inputs: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        value = torch.zeros((), dtype=torch.float64, device=inputs[0].device)
        count = torch.zeros((), dtype=torch.int64, device=inputs[0].device)
        with torch.no_grad():
            gradient = _kind_of(pairwise.distance)(pairwise.distance, inputs)
            for tile in pairwise.tiles(*(v.detach() for v in inputs)):
                loss = loss_of(tile)
                value += loss.value
                count += loss.count
                gradient.add(tile, loss.slopes)
            gradients = gradient.sums()
        for v, sums in zip(inputs, gradients):
            if v.requires_grad:
                linear = (v * sums).sum()  # 0 to the loss, `sums` to the gradient
                value = value + (linear - linear.detach())
        yield value, count

    return tiled_mean(reduction, terms, *pairwise.inputs)


def _kind_of(distance: Distance) -> type[_Products] | type[_Tiles]:
    closed = (euclidean, squared_euclidean, cosine, dot)
    return _Products if isinstance(distance, Mahalanobis) or distance in closed else _Tiles


class _Products:
    """Σ w_ij ∇D_ij by matrix products, where ∇D(x, y) is c·(x − y), or −y for `dot`.

    Σ_j c_ij (x_i − y_j) = (Σ_j c_ij)·x_i − Σ_j c_ij y_j: both sums come from one product with [y, 1]. It is
    taken in float64, or near duplicates would lose the direction that they differ in.
    """

    def __init__(self, distance: Distance, inputs: tuple[Tensor, ...]) -> None:
        self.distance = distance
        self.inputs = inputs
        self.wide = [torch.cat([v, torch.ones_like(v[:, :1])], dim=1).double() for v in inputs]  # [n, k + 1]
        self.products = [torch.zeros_like(v) for v in self.wide]
        self.no_zero = [v.any(1) for v in inputs]

    def add(self, tile: Tile, slopes: Float[Tensor, "a r"]) -> None:
        """Take in a tile."""
        rows = slice(tile.start, tile.start + len(slopes))
        c = self._coefficients(tile, slopes, rows).double()  # [a, r]
        if self.inputs[0].requires_grad:
            self.products[0][rows].addmm_(c, self.wide[-1])
        if self.inputs[-1].requires_grad:
            self.products[-1].addmm_(c.T, self.wide[0][rows])

    def sums(self) -> list[Tensor]:
        """The gradient by each input."""
        sums = []
        for v, wide, product in zip(self.inputs, self.wide, self.products):
            total = product[:, :-1].neg_()
            if self.distance is not dot:
                total.addcmul_(product[:, -1:], wide[:, :-1])
            sums.append(total.to(v.dtype))
        return sums

    def _coefficients(self, tile: Tile, slopes: Tensor, rows: slice) -> Float[Tensor, "a r"]:
        if self.distance is dot:
            return slopes
        if self.distance is squared_euclidean:
            return slopes * 2
        if self.distance is cosine:  # which is 1 wherever one of two is zero
            return slopes * self.no_zero[0][rows, None] * self.no_zero[-1]
        d = tile.distance.double()  # or w/D·(x − y) would be rounded before the terms cancel
        return slopes.double() / d.masked_fill_(d == 0, torch.inf)


class _Tiles:
    """Σ w_ij ∇D_ij of any other distance, by differentiating `tile`."""

    def __init__(self, distance: Distance, inputs: tuple[Tensor, ...]) -> None:
        self.distance = distance
        self.inputs = inputs
        self.totals = [torch.zeros_like(v, dtype=torch.float64) for v in inputs]

    def add(self, tile: Tile, slopes: Float[Tensor, "a r"]) -> None:
        """Take in a tile."""
        if not any(v.requires_grad for v in self.inputs):
            return
        rows = slice(tile.start, tile.start + len(slopes))
        x = self.inputs[0][rows].detach().requires_grad_()
        y = self.inputs[-1].detach().requires_grad_()
        with torch.enable_grad():
            d = self.distance.tile(x, y)
        by_x, by_y = torch.autograd.grad(d, (x, y), slopes)
        self.totals[0][rows] += by_x
        self.totals[-1] += by_y

    def sums(self) -> list[Tensor]:
        """The gradient by each input."""
        return [total.to(v.dtype) for v, total in zip(self.inputs, self.totals)]
