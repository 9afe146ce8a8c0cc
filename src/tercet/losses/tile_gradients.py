"""Losses over all pairs or triplets with their gradient: no graph of a tile, no list.

A loss that sees embeddings through their distances alone has the gradient Σ w_ij ∇D_ij, w_ij = ∂L/∂D_ij.
A head says what w is, a tile at a time; here it becomes one or two matrix products a tile.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from copy import copy
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tercet.neighbors.keys import square_bound
from tercet.pairwise.accumulate import summed, with_gradient
from tercet.pairwise.closed_forms import ProductForm, SquareForm, form_of
from tercet.pairwise.differences import listed_squares
from tercet.pairwise.distances import Distance, cosine, dot
from tercet.pairwise.euclidean import NEAR, centre_of
from tercet.pairwise.masked import true_places
from tercet.pairwise.tiles import Tile
from tercet.pairwise.torch_modes import full_precision, roundoff

__all__ = ["Compared", "NegativeCosine", "TileLoss", "differentiated", "sloped"]

# Many passes go over a tile; beyond the cache, or in memory fresh from the system, each takes several times
# as long.
_CACHED_NUMBERS = 2**20
_CHUNK = 2**20  # numbers gathered at once for single pairs


@runtime_checkable
class Compared(Protocol):
    """Rows against columns: `Pairwise`, or a list that is shown as such."""

    distance: Distance
    inputs: tuple[Tensor, ...]
    given_tile_rows: int | None
    tile_rows: int

    def spans(self) -> Iterator[slice]:
        """The rows in blocks of `tile_rows`."""
        ...

    def sides(self, rows: slice) -> tuple[Bool[Tensor, "a r"], Bool[Tensor, "a r"]]:
        """The positives and the negatives of each row."""
        ...


class TileLoss(NamedTuple):
    """The losses of one tile.

    Args:
        value: their sum, float64.
        count: how many of them the mean is over, int64.
        slopes: float [a, r], w = ∂value/∂D; None where no gradient is wanted.
    """

    value: Float[Tensor, ""]
    count: Int[Tensor, ""]
    slopes: Float[Tensor, "a r"] | None


class NegativeCosine:
    """D = −cos(x, y), the cosine distance less 1, by a matrix product: many times faster than by differences.

    It is not exactly −1 for equal rows: a similarity does without the digits that a small distance needs. A
    zero row has no direction: its similarity is 0, to itself too, where `cosine` takes two such for equal.
    """

    differentiable = True
    floats_only = True
    form = ProductForm()
    prepare = staticmethod(cosine.prepare)
    tile = staticmethod(dot.tile)
    paired = staticmethod(dot.paired)
    entries = staticmethod(dot.entries)  # type: ignore[attr-defined]

    def __repr__(self) -> str:
        return "cosine"


def sloped(
    caller: str,
    compared: Compared,
    reduction: str,
    loss_of: Callable[[Tile, bool], TileLoss],
    symmetric: bool = False,
    beside: tuple[Float[Tensor, "..."], Float[Tensor, "..."]] | None = None,
) -> Float[Tensor, ""]:
    """What `tiled_mean` gives, of losses whose derivative by each distance is known.

    Args:
        caller: the head that was called, for the sentence of refusal.
        compared: rows and columns.
        reduction: `"mean_active"`, `"mean"` or `"sum"`.
        loss_of: the losses of a tile, and whether slopes are wanted; called where no graph is recorded.
        symmetric: w_ij = w_ji, so that the columns' part of the gradient is the rows' part once more.
        beside: one more input, and its gradient, which `loss_of` fills in.

    Returns:
        The loss, with a graph.
    """
    columns = compared.inputs[-1]
    inputs = compared.inputs if beside is None else (*compared.inputs, beside[0])
    if compared.given_tile_rows is None and columns.device.type == "cpu":
        compared = copy(compared)  # the caller's keeps its height
        compared.tile_rows = min(compared.tile_rows, max(64, _CACHED_NUMBERS // max(1, len(columns))))
    sought = [torch.is_grad_enabled() and v.requires_grad for v in inputs]
    wanted = any(sought[: len(compared.inputs)])
    value = count = None
    with torch.no_grad(), full_precision(columns.device):
        kind = _kind_of(compared.distance, columns)
        # A distance of somebody else's may not be the same both ways.
        gradient = kind(compared, symmetric and kind is not _Tiles, wanted)
        for rows in compared.spans():
            d = gradient.measure(rows)
            tile = Tile(rows.start, d, *compared.sides(rows), *gradient.settling(rows))
            loss = loss_of(tile, any(sought))
            if value is None or count is None:
                value, count = loss.value, loss.count
            else:  # in place: a number kept of each tile would lie between their tables, and keep them apart
                value += loss.value
                count += loss.count
            if wanted and loss.slopes is not None:
                gradient.add(rows, loss.slopes)
        gradients = gradient.sums() if wanted else [None for _ in compared.inputs]
    if beside is not None:
        gradients = [*gradients, beside[1]]
    if value is None or count is None:
        value, count = columns.new_zeros((), dtype=torch.float64), columns.new_zeros((), dtype=torch.int64)
    return with_gradient(caller, reduction, value, count, gradients if any(sought) else [], inputs)


def differentiated(losses_of: Callable[[Tile], Tensor], reduction: str, tile: Tile, wanted: bool) -> TileLoss:
    """A `TileLoss` of the losses of a tile, by differentiating them."""
    if not wanted:
        return TileLoss(*summed(losses_of(tile), reduction), None)
    with torch.enable_grad():
        d = tile.distance.requires_grad_()
        value, count = summed(losses_of(tile._replace(distance=d)), reduction)
        slopes = torch.autograd.grad(value, d)[0] if value.requires_grad else None
    d.requires_grad_(False)
    return TileLoss(value.detach(), count, slopes)


def _kind_of(distance: Distance, columns: Tensor) -> type[_Products] | type[_Squares] | type[_Tiles]:
    form = form_of(distance)
    if isinstance(form, ProductForm):
        return _Products
    # A product of lowered precision is no way to a distance.
    return _Squares if form is not None and roundoff(columns) <= 2.0**-24 else _Tiles


class _Gradient(ABC):
    """The distances of some rows to all columns, and then Σ w_ij ∇D_ij of them."""

    def __init__(self, compared: Compared, spaces: tuple[Tensor, ...], symmetric: bool, wanted: bool) -> None:
        self.distance, self.wanted = compared.distance, wanted
        self.x, self.y = spaces[0], spaces[-1]
        self.own = len(spaces) == 1
        self.once = symmetric and self.own
        self.totals = [
            torch.zeros_like(v) if given.requires_grad else None for v, given in zip(spaces, compared.inputs)
        ]

    @abstractmethod
    def measure(self, rows: slice) -> Float[Tensor, "a r"]:
        """D of each of `rows` to every column, to be left as it is until `add`."""

    @abstractmethod
    def add(self, rows: slice, slopes: Float[Tensor, "a r"]) -> None:
        """Take in w of the rows that were measured last."""

    def settling(self, rows: slice) -> tuple[Tensor | None, Callable[[Tensor, Tensor], Tensor] | None]:
        """`error` and `exact` of the rows' tile, where its distances may not be those that miners see."""
        return None, None

    def sums(self) -> list[Tensor | None]:
        """The gradient by each input."""
        if self.once and self.totals[0] is not None:
            self.totals[0].mul_(2)
        return self.totals


class _Products(_Gradient):
    """D = −x·y, whose gradient by x is −y."""

    def __init__(self, compared: Compared, symmetric: bool, wanted: bool) -> None:
        super().__init__(compared, tuple(v.detach() for v in compared.inputs), symmetric, wanted)
        self.minus = self.y.neg()  # fewer numbers than the product

    def measure(self, rows: slice) -> Float[Tensor, "a r"]:
        return self.x[rows] @ self.minus.T

    def add(self, rows: slice, slopes: Float[Tensor, "a r"]) -> None:
        by_x, by_y = self.totals[0], self.totals[-1]
        if by_x is not None:
            by_x[rows].addmm_(slopes, self.minus)
        if by_y is not None and not self.once:
            by_y.addmm_(slopes.T, self.x[rows], alpha=-1)


class _Squares(_Gradient):
    """D a function of ‖x − y‖², with ∇D = c·(x − y): by products what is not near, by differences what is.

    Σ_j c_ij (x_i − y_j) = (Σ_j c_ij)·x_i − Σ_j c_ij y_j loses the digits of an x_i − y_j that is small beside
    x_i. So x and y are taken about the columns' centre, and near pairs, normally few, are added one by one;
    a tile that has many of them is differentiated instead.
    """

    def __init__(self, compared: Compared, symmetric: bool, wanted: bool) -> None:
        form = form_of(compared.distance)
        assert isinstance(form, SquareForm)
        self.form = form
        super().__init__(compared, tuple(form.space(v.detach()) for v in compared.inputs), symmetric, wanted)
        centre = centre_of(self.x, self.y)
        self.u = self.x - centre
        self.v = self.u if self.own else self.y - centre
        self.uu = self.u.square().sum(1)
        self.vv = self.uu if self.own else self.v.square().sum(1)
        self.reach = (self.uu.amax() + self.vv.amax()) * NEAR if len(self.uu) and len(self.vv) else 0.0
        # A root is not settled: that costs the hinge a pass a positive, and on grids products are exact.
        self.error = None if form.root else square_bound(self.u, self.v)[0][:, None] * form.scale
        self.compared, self.symmetric = compared, symmetric
        self.many: _Tiles | None = None
        self.state: tuple[Tensor, tuple[Tensor, Tensor] | None] | None = None

    def measure(self, rows: slice) -> Float[Tensor, "a r"]:
        d = torch.addmm(self.vv, self.u[rows], self.v.T, alpha=-2).add_(self.uu[rows, None])  # [a, r]
        if self.own:
            d.diagonal(rows.start).fill_(torch.inf)  # a row and itself are near, and 0 apart
        near, known = None, len(d) if self.own else 0
        if 8 * known > d.numel() or bool(d.amin() <= self.reach):
            i, j = true_places(d <= (self.uu[rows, None] + self.vv) * NEAR)
            if 8 * (known + len(i)) > d.numel():
                self.many = self.many or _Tiles(self.compared, self.symmetric, self.wanted)
                self.state = None
                d = self.many.measure(rows)
                return d if self.error is None else d.clone()  # to be settled apart from its graph
            if len(i):
                near = i, j
                d[i, j] = listed_squares(self.x[rows], self.y, i, j)
        if self.own:
            d.diagonal(rows.start).fill_(0.0)
        if self.form.root:
            d.sqrt_()
        elif self.form.scale != 1:
            d.mul_(self.form.scale)
        self.state = d, near
        return d

    def settling(self, rows: slice) -> tuple[Tensor | None, Callable[[Tensor, Tensor], Tensor] | None]:
        if self.error is None:
            return None, None
        return self.error[rows], lambda i, j: listed_squares(self.x[rows], self.y, i, j) * self.form.scale

    def add(self, rows: slice, slopes: Float[Tensor, "a r"]) -> None:
        if self.state is None:
            assert self.many is not None
            self.many.add(rows, slopes)
            return
        d, near = self.state
        equal = slopes.new_zeros(0) if near is None else d[near] == 0
        if self.form.root:
            if self.own:
                d.diagonal(rows.start).fill_(torch.inf)
            c = torch.div(slopes, d, out=d)  # [a, r]
        else:
            factor = 2 * self.form.scale
            c = slopes if factor == 1 else torch.mul(slopes, factor, out=d)
        if near is not None:
            c = c.contiguous()
            weights = c[near].masked_fill_(equal, 0.0)  # where the root has no slope
            c[near] = 0.0
            self._add_apart(rows, *near, weights)
        by_x, by_y = self.totals[0], self.totals[-1]
        if by_x is not None:
            by_x[rows].addmm_(c, self.v, alpha=-1).addcmul_(c.sum(1, keepdim=True), self.u[rows])
        if by_y is not None and not self.once:
            by_y.addmm_(c.T, self.u[rows], alpha=-1).addcmul_(c.sum(0)[:, None], self.v)

    def sums(self) -> list[Tensor | None]:
        totals = super().sums()
        given = self.compared.inputs  # narrower than a space that adds columns
        totals = [None if v is None else v[:, : u.shape[1]] for v, u in zip(totals, given)]
        if self.many is not None:
            parts = zip(totals, self.many.sums())
            totals = [total if total is None or more is None else total + more for total, more in parts]
        return totals

    def _add_apart(self, rows: slice, i: Tensor, j: Tensor, weights: Float[Tensor, " t"]) -> None:
        by_x, by_y = self.totals[0], self.totals[-1]
        step, x = max(1, _CHUNK // self.x.shape[1]), self.x[rows]
        for a, b, weight in zip(*(each.split(step) for each in (i, j, weights))):
            apart = (x[a] - self.y[b]).mul_(weight[:, None])
            if by_x is not None:
                by_x[rows].index_add_(0, a, apart)
            if by_y is not None and not self.once:
                by_y.index_add_(0, b, apart, alpha=-1)


class _Tiles(_Gradient):
    """Any other distance, by differentiating `tile`."""

    def __init__(self, compared: Compared, symmetric: bool, wanted: bool) -> None:
        super().__init__(compared, tuple(v.detach() for v in compared.inputs), symmetric, wanted)

    def measure(self, rows: slice) -> Float[Tensor, "a r"]:
        if not self.wanted:
            return self.distance.tile(self.x[rows], self.y)
        self.leaves = self.x[rows].detach().requires_grad_(), self.y.detach().requires_grad_()
        with torch.enable_grad():
            self.d = self.distance.tile(*self.leaves)
        return self.d.detach()

    def add(self, rows: slice, slopes: Float[Tensor, "a r"]) -> None:
        by_x, by_y = torch.autograd.grad(self.d, self.leaves, slopes)
        if self.totals[0] is not None:
            self.totals[0][rows] += by_x
        if self.totals[-1] is not None and not self.once:
            self.totals[-1] += by_y
