"""Rank keys: numbers by a matrix product that order the columns of a row almost as their distances do.

Let D_j be the distance of a row x to column j as differences give it, which is what decides. Each distance
has an increasing f, and the row a constant c, such that

    T_j = f(D_j) − c

is the number that a product computes: for the Euclidean distance f(D) = D² and c = ‖x‖², hence
T_j = ‖y_j‖² − 2 x·y_j. The *rank key* k_j is that number as the product rounds it, and the key of a bound b
is κ(b) = f(b) − c. Each is off by at most the row's *error bound* ε: |k_j − T_j| ≤ ε.

Lemma.
    1. If k_i − k_j > 2ε, then D_i > D_j.
    2. If k_j − κ(b) > ε, then D_j > b; if κ(b) − k_j > ε, then D_j < b.

Proof.
    1. T_i ≥ k_i − ε > k_j + ε ≥ T_j, hence f(D_i) > f(D_j), and f is increasing.
    2. T_j ≥ k_j − ε > κ(b), hence f(D_j) > f(b); the other half is the same with signs reversed. κ(b) is
       rounded too, three times by at most u·(f(b) + c). As far as a column can be, f(b) ≤ (‖x‖ + ‖y‖)², and ε
       has room for that (`square_bound`); rounding keeps the order, so a larger b stays beyond every column.
       ∎

So keys decide whatever is further apart, and only *ambiguous* entries, the few others, need differences.
Negated keys order a row from its farthest column to its nearest; the lemma holds for −k and −T alike.

The dot product has f(D) = D and no differences: ε is twice the error of a product, since tiles and listed
pairs are both products. Hamming distances and those of one's own are their own keys, with ε = 0.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from tercet.core.checks import promised
from tercet.pairwise.budget import budget
from tercet.pairwise.closed_forms import EuclideanForm, ProductForm
from tercet.pairwise.distances import Distance, exact, exact_pairs, form_of
from tercet.pairwise.products import product_plus, product_side
from tercet.pairwise.tiles import Pairwise
from tercet.pairwise.torch_modes import full_precision, roundoff, widest_float

__all__ = [
    "ExactDistances",
    "RankKeys",
    "class_keys",
    "first_above",
    "product_error",
    "square_bound",
    "square_error",
    "square_share",
]


class RankKeys:
    """The rank keys of rows against columns under one distance.

    Args:
        distance: a `Distance`.
        x: features [n, k] of the rows, in the space of the distance's closed form where it has one.
        y: features [r, k] of the columns; x itself where they are the rows.
        order: (row numbers [n], column numbers [r]): the order of the rows and columns of `table`.

    Attributes:
        error: [n], the error bound ε of each row, by row number.

    Example:
        >>> from tercet.pairwise.distances import euclidean
        >>> x = torch.tensor([[0.0], [1.0], [3.0]])
        >>> keys = RankKeys(euclidean, x, x)
        >>> keys.table().argsort(1)
        tensor([[0, 1, 2],
                [1, 0, 2],
                [2, 1, 0]])
    """

    def __init__(
        self,
        distance: Distance,
        x: Float[Tensor, "n k"],
        y: Float[Tensor, "r k"],
        order: tuple[Int[Tensor, " n"], Int[Tensor, " r"]] | None = None,
    ) -> None:
        form = form_of(distance)
        self._distance = distance
        self._form = form if isinstance(form, EuclideanForm) else None
        if self._form is not None:
            centre = y.mean(0) if y.shape[0] else 0.0  # smaller norms, smaller error; the same differences
            self._u = x - centre
            self._v = self._u if y is x else y - centre
            self.error, self._constant, self._squares = square_bound(self._u, self._v)
        else:
            self._u, self._v = x, y
            self.error = x.new_zeros(len(x))
            if isinstance(form, ProductForm) and len(y):
                lengths = [torch.linalg.vector_norm(v, dim=1) for v in ((x,) if y is x else (x, y))]
                self.error = product_error(lengths[0], lengths[-1].max(), x)
        if order is not None:
            same = self._v is self._u and order[0] is order[1]
            self._u = self._u[order[0]]
            self._v = self._u if same else self._v[order[1]]
            if self._form is not None:
                self._squares = self._squares[order[1]]

    def table(
        self, places: slice | Int[Tensor, " a"] | None = None, out: Tensor | None = None
    ) -> Float[Tensor, "a r"]:
        """The keys of the rows at these places of the order, or of all, to every column, in order."""
        u = self._u if places is None else self._u[places]
        with full_precision(u.device):
            if self._form is not None:
                return torch.addmm(self._squares, u, self._v.T, alpha=-2, out=out)
            tile = self._distance.tile(u, self._v)
            return tile.clone() if out is None else out.copy_(tile)

    def side(self, places: slice) -> Tensor:
        """The rows at these places of the order, as `tile` takes them."""
        u = self._u[places]
        return u if self._form is None else product_side(u * -2.0)

    def columns(
        self, places: slice | Int[Tensor, " c"]
    ) -> tuple[Float[Tensor, "c s"], Float[Tensor, " c"] | None]:
        """The columns at these places of the order, as `tile` takes them."""
        return self._v[places], None if self._form is None else self._squares[places]

    def tile(
        self, side: Tensor, columns: tuple[Float[Tensor, "c s"], Float[Tensor, " c"] | None], out: Tensor
    ) -> Float[Tensor, "a c"]:
        """The keys of a `side` to `columns`, in memory of its own or in `out`, which has room for them."""
        v, squares = columns
        with full_precision(v.device):
            return self._distance.tile(side, v) if squares is None else product_plus(side, v, squares, out)

    def of_distance(
        self, distance: Float[Tensor, " a"], rows: Int[Tensor, " a"] | None = None
    ) -> Float[Tensor, " a"]:
        """κ(b) of a distance b from each of `rows`, or from each row."""
        if self._form is None:
            return distance
        constant = self._constant if rows is None else self._constant[rows]
        return self._form.to_square(distance.clamp(min=0)) - constant


class ExactDistances:
    """The distances that decide: differences where the distance has them, each by its two rows alone.

    Args:
        distance: a `Distance`.
        inputs: features [n, k] of the rows and [r, k] of the columns, or one tensor that is both.

    Attributes:
        x: [n, s], the rows in the space of the distance's closed form; their differences are the distances.
        y: [r, s], the columns; x itself where they are the rows.

    Example:
        >>> from tercet.pairwise.distances import euclidean
        >>> exact = ExactDistances(euclidean, torch.tensor([[0.0], [1.0], [3.0]]))
        >>> exact.pairs(torch.tensor([0, 2]), torch.tensor([2, 1]))
        tensor([3., 2.])
    """

    def __init__(self, distance: Distance, *inputs: Float[Tensor, "_ k"]) -> None:
        form = form_of(distance)
        self._distance = distance
        self._form = form if isinstance(form, EuclideanForm) else None
        self._by_product = isinstance(form, ProductForm)
        spaces = inputs if self._form is None else [self._form.space(v) for v in inputs]
        self.x, self.y = spaces[0], spaces[-1]

    def pairs(self, rows: Int[Tensor, " t"], columns: Int[Tensor, " t"]) -> Float[Tensor, " t"]:
        """The distance of each row to its column, [t]."""
        step = max(1, budget(rows.device).gathered_numbers // max(1, self.x.shape[1]))
        if rows.shape[0] > step:
            parts = zip(rows.split(step), columns.split(step), strict=True)
            return torch.cat([self.pairs(*part) for part in parts])
        if not rows.shape[0]:
            return self.x.new_empty(0)
        x, y = self.x.index_select(0, rows), self.y.index_select(0, columns)
        if self._form is None:
            return exact_pairs(self._distance, x, y)
        return self._form.exact_pairs_in_space(x, y)

    def table(self, rows: Int[Tensor, " c"], columns: Int[Tensor, " w"]) -> Float[Tensor, "c w"]:
        """The distance of each row to every column, [c, w]; a row that is repeated is measured once."""
        once, again = torch.unique_consecutive(rows, return_inverse=True)
        return self.table_of_different(once, columns)[again]

    def table_of_different(self, rows: Int[Tensor, " c"], columns: Int[Tensor, " w"]) -> Float[Tensor, "c w"]:
        """`table` of rows without repetition, whose shape the host then knows."""
        if self._by_product:  # the products of a table depend on its shape
            i, j = torch.cartesian_prod(rows, columns).T
            return self.pairs(i, j).view(len(rows), len(columns))
        x, y = self.x[rows], self.y[columns]
        if self._form is None:
            return exact(self._distance, x, y)
        return self._form.exact_in_space(x, y)


def square_bound(
    x: Float[Tensor, "n k"], y: Float[Tensor, "r k"]
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"], Float[Tensor, " r"]]:
    """The error bound ε of ‖y_j‖² − 2x_i·y_j + ‖x_i‖² against the square that differences give.

    That square is `pair_squares`, or `by_differences` squared. A sum of k products is off by at most
    k·u·‖x‖‖y‖ in any order of summation, u the unit roundoff (`_product_share` has the case of lowered
    precision); a sum of k squares of differences by (k/8 + 2)·u of itself, eight lanes at a time, or on an
    accelerator by (2√k + 2)·u (`row_sums`). Both are shares of (‖x‖ + ‖y‖)², which is at least 4‖x‖‖y‖, the
    products at most u·k/2 of it.
    The bound holds where nothing overflows, 2(‖x‖² + ‖y‖²) below the largest number. Distances below the root
    of the smallest normal number, about 10⁻¹⁹, are not told apart.

    Returns:
        ε of each row against any column [n], ‖x_i‖² [n] and ‖y_j‖² [r].

    Reference:
        Higham, "Accuracy and stability of numerical algorithms", 2002, chapters 3 and 4.
    """
    wide = widest_float(x.device)
    lengths: Any = torch.linalg.vector_norm(x, dim=1, dtype=wide)
    others: Any = lengths if y is x else torch.linalg.vector_norm(y, dim=1, dtype=wide)
    on_cpu = x.device.type == "cpu"
    if on_cpu:  # the same arithmetic, where a call of numpy costs a fifth of torch's
        lengths, others = lengths.numpy(), others.numpy()
    error = square_error(lengths, others.max() if others.shape[0] else 0.0, x)
    found = [error, lengths * lengths] if y is x else [error, lengths * lengths, others * others]
    if on_cpu:
        kind = np.float32 if x.dtype == torch.float32 else np.float64
        found = [torch.from_numpy(v.astype(kind, copy=False)) for v in found]
    else:
        found = [v.to(x.dtype) for v in found]
    return found[0], found[1], found[-1]


def square_error(lengths: Any, reach: Any, x: Tensor) -> Any:
    """ε of `square_bound` for rows like x of these lengths, against columns of at most `reach`.

    Args:
        lengths: [n], ‖x_i‖ in `widest_float`: a tensor or an array.
        reach: the length of the longest column.
        x: [_, k], for the number of features, the dtype and the device.

    Returns:
        [n], of the kind of `lengths`.
    """
    share, tiny = square_share(x, lengths.dtype)
    error = lengths + reach
    error *= error
    error *= share
    error += tiny
    return error


def product_error(lengths: Any, reach: Any, x: Tensor) -> Any:
    """ε of the dot product, arguments as for `square_error`: twice what a product may be off by."""
    return lengths * reach * (2 * _product_share(x.shape[1] + 8, x))


def square_share(x: Float[Tensor, "n k"], wide: Any) -> tuple[float, float]:
    """The share of (‖x‖ + ‖y‖)² in `square_bound`, and what may underflow beside it, as torch is set now.

    Args:
        x: [n, k], for the number of features, the dtype and the device.
        wide: the dtype that lengths are taken in, of torch or numpy.
    """
    k = x.shape[1]
    share, tiny = _shares(k, x.dtype, _product_share(k, x))
    if wide.itemsize < 8:  # then lengths and squares are off by (k + 6)u of themselves, and ε too
        room = (k + 8) * torch.finfo(torch.float32).eps / 2
        share = (share + room) * (1 + 2 * room)
    return share, tiny


def _product_share(k: int, x: Tensor) -> float:
    """The share of ‖x‖‖y‖ by which a product of such rows of k numbers may be off, as torch is set now.

    In full precision k·u. Where torch lets products lower float32 (TF32, u = 2⁻¹¹; bfloat16, u = 2⁻⁸), only
    the factors are rounded, or cut off, each by at most 2u of itself, so a term is off by 4u + 4u² of itself;
    the sum is still taken in float32, whose every addition is off by at most 2⁻²³, even where it is cut off.
    So such a product proposes nearly as well as a full one, and differences decide.
    """
    u, full = roundoff(x), torch.finfo(x.dtype).eps
    return k * u if u <= full / 2 else 4 * u * (1 + u) + k * full


@functools.cache
def _shares(k: int, dtype: torch.dtype, product: float) -> tuple[float, float]:
    """The share of (‖x‖ + ‖y‖)² in `square_bound`, and what may underflow beside it.

    The key has twice the product, and ‖x‖‖y‖ is at most a quarter of (‖x‖ + ‖y‖)²: half of the product's
    share. Full precision takes the whole, as room for the sums of squares.
    """
    limits = torch.finfo(dtype)
    u = limits.eps / 2
    if product > k * u * 1.5:
        return product / 2 + limits.eps * (k / 8 + 24), (4 * k + 16) * limits.tiny
    return max(u * (k + 8), u * 8 + limits.eps * (k / 8 + 16)), (4 * k + 16) * limits.tiny


def class_keys(pairwise: Pairwise) -> tuple[Int[Tensor, " n"], Int[Tensor, " r"]] | None:
    """The relation's class numbers of rows and of columns: in their order, positives lie in a class block.

    Returns:
        None where the relation has none, or where one image bears two: then a row and the same image would
        lie in different blocks.
    """
    key = promised(pairwise.relation, "key", "sides")
    rows, columns = (key and key(each) for each in (pairwise.labels, pairwise.column_labels))
    if rows is None or columns is None:
        return None
    if not pairwise.own_column and pairwise.ids is not None and pairwise.column_ids is not None:
        ids, image = torch.cat([pairwise.ids, pairwise.column_ids]).unique(return_inverse=True)
        both = torch.cat([rows, columns])
        one = both.new_empty(len(ids)).scatter_(0, image, both)
        if not bool((one[image] == both).all()):
            return None
    return rows, columns


def first_above(
    keys: Float[Tensor, "a w"], at: Int[Tensor, " t"], bound: Float[Tensor, " t"], error: Float[Tensor, " t"]
) -> tuple[Int[Tensor, " t"], Bool[Tensor, " t"]]:
    """The place of the smallest key above each bound, −1 where there is none, and whether that is ambiguous.

    Every row is sorted once, and its bounds are found by bisection.

    Args:
        keys: [a, w]; inf is no key.
        at: the row of each bound, in rising order.
        bound: keys of distances.
        error: the error bound of each bound's row.

    Example:
        >>> keys, at = torch.tensor([[4.0, 1.0, 3.9, 2.0]]), torch.tensor([0, 0, 0, 0])
        >>> first_above(keys, at, torch.tensor([0.0, 1.05, 3.0, 5.0]), torch.full((4,), 0.1))
        (tensor([ 1,  3,  2, -1]), tensor([False,  True,  True, False]))
    """
    values, order = pad(keys, (0, 2), value=math.inf).sort(dim=1)  # [a, w + 2]
    first = torch.searchsorted(at, torch.arange(len(keys), device=at.device))
    place = torch.arange(len(at), device=at.device) - first[at]  # of each bound among those of its row
    marks = keys.new_full((2, len(keys), int(place.max()) + 1), math.inf)  # [2, a, q]
    marks[0, at, place], marks[1, at, place] = bound - error, bound + error
    low = torch.searchsorted(values, marks[0])[at, place]
    high = torch.searchsorted(values, marks[1], right=True)[at, place].clamp_(max=keys.shape[1])
    key, following = values[at, high], values[at, high + 1]
    missing = key == math.inf
    apart = (following - key > 2 * error) | (following == math.inf)
    return order[at, high].masked_fill(missing, -1), (low != high) | ~(missing | apart)
