"""The distances of some rows to all columns, and the gradient Σ_ij w_ij ∇D_ij, for each kind of distance.

| distance                                | gradient of a tile                              |
|-----------------------------------------|-------------------------------------------------|
| −x·y (`dot`, `negative_cosine`)         | products of w with the features                 |
| ‖u − v‖ or its square (`EuclideanForm`) | products of w, and differences of near pairs    |
| the same on an accelerator              | the same, of a fixed number of columns a row    |
| the same, small tables                  | differences of all pairs                        |
| any other, or a tile full of near pairs | autograd through `Distance.tile`                |
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol, TypeAlias, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tercet.neighbors.keys import square_bound
from tercet.pairwise.budget import budget
from tercet.pairwise.closed_forms import EuclideanForm, ProductForm
from tercet.pairwise.differences import listed_squares
from tercet.pairwise.distances import Distance, form_of
from tercet.pairwise.euclidean import (
    CentredRows,
    add_listed_differences,
    add_table_differences,
    weighted_differences,
)
from tercet.pairwise.near_columns import (
    add_near_differences,
    indistinct,
    measure_near_columns_,
    near_columns,
)
from tercet.pairwise.torch_modes import roundoff

__all__ = ["Compared", "DistanceGradient", "Resolution", "kind_of"]


@runtime_checkable
class Compared(Protocol):
    """Rows against columns: `Pairwise`, or `MinedPairs`, which shows a list in the same form."""

    distance: Distance
    inputs: tuple[Tensor, ...]
    given_tile_rows: int | None
    tile_rows: int

    @property
    def most_positives(self) -> int | None:
        """A number that no row has more positives than; None where the host does not know."""
        ...

    def spans(self) -> Iterator[slice]:
        """The rows in blocks of `tile_rows`."""
        ...

    def sides(self, rows: slice) -> tuple[Bool[Tensor, "a r"], Bool[Tensor, "a r"]]:
        """Which columns are positive and which negative for each row."""
        ...


class Resolution(NamedTuple):
    """How far a tile's distances may be from those of miners, and how those are had; all None where not.

    Args:
        error: float [a, 1].
        exact: D by differences, of listed places (row of the tile, column).
        places: how many places of a row are looked at; None for as many as there are.
    """

    error: Float[Tensor, "a 1"] | None = None
    exact: Callable[[Tensor, Tensor], Tensor] | None = None
    places: int | None = None


def kind_of(compared: Compared) -> type[DistanceGradient]:
    """The way that is right for a distance, a device and a size."""
    form, x, y = form_of(compared.distance), compared.inputs[0], compared.inputs[-1]
    if isinstance(form, ProductForm):
        return _ProductGradient
    if form is None:
        return _TileGradient
    if x.device.type != "cpu":
        few = near_columns(x, y, compared.most_positives)
        return _DifferenceGradient if few is None else _NearColumnsGradient
    # A product of lowered precision has not the digits of a distance.
    lowered = roundoff(y) > 2.0**-24
    small = len(x) * y.numel() <= budget(x.device).difference_numbers
    return _TileGradient if lowered else _DifferenceGradient if small else _EuclideanGradient


class _Gradient(ABC):
    """The distances of some rows to all columns, and then the gradient Σ w_ij ∇D_ij, added up over tiles."""

    def __init__(self, compared: Compared, spaces: tuple[Tensor, ...], symmetric: bool, wanted: bool) -> None:
        self.distance, self.wanted = compared.distance, wanted
        self.x, self.y = spaces[0], spaces[-1]
        self.own = len(spaces) == 1  # the columns are the rows
        self.rows_only = symmetric and self.own
        self.totals = [
            torch.zeros_like(v) if given.requires_grad else None
            for v, given in zip(spaces, compared.inputs, strict=True)
        ]

    @abstractmethod
    def measure(self, rows: slice) -> Float[Tensor, "a r"]:
        """D of each of `rows` to every column; the caller may change it only through `Tile`, until `add`."""

    @abstractmethod
    def add(self, rows: slice, pair_gradients: Float[Tensor, "a r"]) -> None:
        """Add the gradient of the rows that were measured last."""

    def resolution(self, rows: slice) -> Resolution:
        """What resolves the rows' tile, where its distances may differ from those of miners."""
        return Resolution()

    def by_inputs(self) -> list[Tensor | None]:
        """The gradient by each input."""
        if self.rows_only and self.totals[0] is not None:
            self.totals[0].mul_(2)
        return self.totals

    @property
    def _by_columns(self) -> Tensor | None:
        """Where the gradient by the columns is added up; None where it is not wanted by itself."""
        return None if self.rows_only else self.totals[-1]


class _ProductGradient(_Gradient):
    """D = −x·y, whose gradient by x is −y."""

    def __init__(self, compared: Compared, symmetric: bool, wanted: bool) -> None:
        super().__init__(compared, tuple(v.detach() for v in compared.inputs), symmetric, wanted)
        self.minus = self.y.neg()  # fewer numbers than the table has

    def measure(self, rows: slice) -> Float[Tensor, "a r"]:
        return self.x[rows] @ self.minus.T

    def add(self, rows: slice, pair_gradients: Float[Tensor, "a r"]) -> None:
        by_x, by_y = self.totals[0], self._by_columns
        if by_x is not None:
            by_x[rows].addmm_(pair_gradients, self.minus)
        if by_y is not None:
            by_y.addmm_(pair_gradients.T, self.x[rows], alpha=-1)


class _EuclideanGradient(_Gradient):
    """D = ‖u − v‖ or a multiple of its square, with ∇D = c (u − v).

    Products where pairs are not near, differences where they are, as in `pairwise/euclidean`. A tile crowded
    with near pairs is left to `_TileGradient`.
    """

    places: int | None = None

    def __init__(self, compared: Compared, symmetric: bool, wanted: bool) -> None:
        form = form_of(compared.distance)
        assert isinstance(form, EuclideanForm)
        self.form = form
        super().__init__(compared, tuple(form.space(v.detach()) for v in compared.inputs), symmetric, wanted)
        self.both = CentredRows(self.x, self.y)
        # A root is not resolved: it would cost the hinge a pass a positive, and on a grid products are exact.
        self.error = None
        if not form.root:
            self.error = square_bound(self.both.u, self.both.v)[0][:, None] * form.scale  # [n, 1]
        self.compared, self.symmetric = compared, symmetric
        self.crowded: _TileGradient | None = None
        # The tile measured last and its near pairs; None where `crowded` has measured it.
        self.state: tuple[Tensor, tuple[Tensor, Tensor] | None] | None = None

    def measure(self, rows: slice) -> Float[Tensor, "a r"]:
        d = self.both.squares(rows)  # [a, r]
        if self.own:
            d.diagonal(rows.start).fill_(torch.inf)  # a row and itself: near, and known to be 0
        near, known = None, len(d) if self.own else 0
        share = budget(d.device).dense_share
        if share * known > d.numel() or self.both.any_near(d):
            i, j = self.both.near_places(d, rows)
            if share * (known + len(i)) > d.numel():
                self.crowded = self.crowded or _TileGradient(self.compared, self.symmetric, self.wanted)
                self.state = None
                d = self.crowded.measure(rows)
                return d if self.error is None else d.clone()  # resolved in place, apart from its graph
            if len(i):
                near = i, j
                d[i, j] = listed_squares(self.x[rows], self.y, i, j)
        if self.own:
            d.diagonal(rows.start).fill_(0.0)
        self.form.from_squares_(d)
        self.state = d, near
        return d

    def resolution(self, rows: slice) -> Resolution:
        if self.error is None:
            return Resolution()
        x, scale = self.x[rows], self.form.scale
        return Resolution(self.error[rows], lambda i, j: listed_squares(x, self.y, i, j) * scale, self.places)

    def add(self, rows: slice, pair_gradients: Float[Tensor, "a r"]) -> None:
        if self.state is None:
            assert self.crowded is not None
            self.crowded.add(rows, pair_gradients)
            return
        d, near = self.state
        by_x, by_y = self.totals[0], self._by_columns
        by_x = None if by_x is None else by_x[rows]
        # c of ∇D = c (u − v), written into d, which is not read again: w / D of a root, 2 w of a square. A
        # root has no derivative at 0, and 0 is its smallest subgradient.
        equal = pair_gradients.new_zeros(0) if near is None else d[near] == 0
        if self.form.root:
            if self.own:
                d.diagonal(rows.start).fill_(torch.inf)
            c = torch.div(pair_gradients, d, out=d)  # [a, r]
        else:
            factor = 2 * self.form.scale
            c = pair_gradients if factor == 1 else torch.mul(pair_gradients, factor, out=d)
        if near is not None:
            c = c.contiguous()
            weights = c[near].masked_fill_(equal, 0.0)
            c[near] = 0.0
            add_listed_differences(weights, self.x[rows], self.y, *near, by_x, by_y)
        u, v = self.both.u[rows], self.both.v
        if by_x is not None:
            weighted_differences(c, u, v, by_x)
        if by_y is not None:
            weighted_differences(c.T, v, u, by_y)

    def by_inputs(self) -> list[Tensor | None]:
        totals = _narrowed(super().by_inputs(), self.compared.inputs)
        if self.crowded is not None:
            parts = zip(totals, self.crowded.by_inputs(), strict=True)
            totals = [total if total is None or more is None else total + more for total, more in parts]
        return totals


class _NearColumnsGradient(_EuclideanGradient):
    """The same in shapes that the data do not change: a fixed number of columns a row, `near_columns`."""

    def __init__(self, compared: Compared, symmetric: bool, wanted: bool) -> None:
        super().__init__(compared, symmetric, wanted)
        others = len(self.y) - 1 if self.own else len(self.y)
        self.count = min(near_columns(self.x, self.y, compared.most_positives) or 0, others)
        self.places = min(budget(self.x.device).near_columns, len(self.y))
        self.least = indistinct(self.both)

    def measure(self, rows: slice) -> Float[Tensor, "a r"]:
        d = self.both.squares(rows)  # [a, r]
        if self.own:  # a row and itself: known to be 0, and not one of the few
            d.diagonal(rows.start).fill_(torch.inf)
        self.at = measure_near_columns_(d, self.x[rows], self.y, self.least[rows], self.count)
        if self.own:
            d.diagonal(rows.start).fill_(0.0)
        self.d = self.form.from_squares_(d)
        return self.d

    def add(self, rows: slice, pair_gradients: Float[Tensor, "a r"]) -> None:
        by_x, by_y = self.totals[0], self._by_columns
        by_x = None if by_x is None else by_x[rows]
        if self.form.root:
            c = (pair_gradients / self.d).masked_fill_(self.d == 0, 0.0)
        else:
            c = pair_gradients * (2 * self.form.scale)
        near = c.gather(1, self.at)  # [a, w]
        c.scatter_(1, self.at, 0.0)
        add_near_differences(near, self.x[rows], self.y, self.at, by_x, by_y)
        u, v = self.both.u[rows], self.both.v
        if by_x is not None:
            weighted_differences(c, u, v, by_x)
        if by_y is not None:
            weighted_differences(c.T, v, u, by_y)


def _narrowed(totals: list[Tensor | None], inputs: tuple[Tensor, ...]) -> list[Tensor | None]:
    """Gradients in a space, without the columns that it adds to the inputs."""
    return [None if v is None else v[:, : u.shape[1]] for v, u in zip(totals, inputs, strict=True)]


class _DifferenceGradient(_Gradient):
    """D = ‖u − v‖ or a multiple of its square, by differences of all pairs.

    Distances are the numbers of a miner, so nothing is resolved, and no shape depends on the data.
    """

    def __init__(self, compared: Compared, symmetric: bool, wanted: bool) -> None:
        form = form_of(compared.distance)
        assert isinstance(form, EuclideanForm)
        self.form, self.inputs = form, compared.inputs
        super().__init__(compared, tuple(form.space(v.detach()) for v in compared.inputs), symmetric, wanted)

    def measure(self, rows: slice) -> Float[Tensor, "a r"]:
        self.d = self.form.exact_in_space(self.x[rows], self.y)
        return self.d

    def add(self, rows: slice, pair_gradients: Float[Tensor, "a r"]) -> None:
        if self.form.root:
            # A root has no derivative at 0, and 0 is its smallest subgradient.
            c = (pair_gradients / self.d).masked_fill_(self.d == 0, 0.0)
        else:
            c = pair_gradients * (2 * self.form.scale)
        by_x = self.totals[0]
        by_x = None if by_x is None else by_x[rows]
        add_table_differences(c, self.x[rows], self.y, by_x, self._by_columns)

    def by_inputs(self) -> list[Tensor | None]:
        return _narrowed(super().by_inputs(), self.inputs)


class _TileGradient(_Gradient):
    """Any other distance, by differentiating `tile`."""

    def __init__(self, compared: Compared, symmetric: bool, wanted: bool) -> None:
        # A distance that is only known by its `tile` may not be the same in both directions.
        symmetric = symmetric and form_of(compared.distance) is not None
        super().__init__(compared, tuple(v.detach() for v in compared.inputs), symmetric, wanted)

    def measure(self, rows: slice) -> Float[Tensor, "a r"]:
        if not self.wanted:
            return self.distance.tile(self.x[rows], self.y)
        self.leaves = self.x[rows].detach().requires_grad_(), self.y.detach().requires_grad_()
        with torch.enable_grad():
            self.d = self.distance.tile(*self.leaves)
        return self.d.detach()

    def add(self, rows: slice, pair_gradients: Float[Tensor, "a r"]) -> None:
        by_x, by_y = torch.autograd.grad(self.d, self.leaves, pair_gradients)
        if self.totals[0] is not None:
            self.totals[0][rows] += by_x
        if (total := self._by_columns) is not None:
            total += by_y


DistanceGradient: TypeAlias = _ProductGradient | _EuclideanGradient | _DifferenceGradient | _TileGradient
