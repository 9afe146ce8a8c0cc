"""Rank keys of queries and of tiles of columns about one fixed centre, so that tiles can be compared.

`neighbors/keys` has the lemma. There the columns lie in memory and their own mean is the centre. Here they
come in tiles: the centre is the mean of a sample, and the error bound is that of the longest column of all.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from tercet.neighbors.keys import product_error, square_error
from tercet.pairwise.closed_forms import EuclideanForm, ProductForm
from tercet.pairwise.distances import Distance, form_of
from tercet.pairwise.torch_modes import full_precision, widest_float

__all__ = ["CollectionKeys", "Queries"]


class Queries(NamedTuple):
    """What of queries the keys are made of.

    Args:
        features: [a, k].
        error: [a], ε of each query against any column.
        constant: [a], c of each query; 0 where keys are distances.
    """

    features: Float[Tensor, "a k"]
    error: Float[Tensor, " a"]
    constant: Float[Tensor, " a"]


class CollectionKeys:
    """The rank keys of queries against tiles of columns under one distance.

    Args:
        distance: a `Distance`.
        sample: features [s, k] of some columns, whose mean is the centre.

    Attributes:
        is_square: whether the distance is one of differences, so that none is below 0.

    Example:
        >>> from tercet.pairwise.distances import euclidean
        >>> y = torch.tensor([[0.0], [1.0], [5.0]])
        >>> keys = CollectionKeys(euclidean, y)
        >>> keys.measure(y)
        >>> keys.settle()
        >>> queries = keys.queries(torch.tensor([[2.0]]))
        >>> keys.table(queries.features, keys.columns(y), torch.empty(1, 3)) + queries.constant
        tensor([[4., 1., 9.]])
    """

    def __init__(self, distance: Distance, sample: Float[Tensor, "s k"]) -> None:
        form = form_of(distance)
        self._distance = distance
        self._form = form if isinstance(form, EuclideanForm) else None
        self.is_square = self._form is not None
        self._by_product = isinstance(form, ProductForm)
        self._reach, self._low, self._high = 0.0, math.inf, 0.0
        space = sample if self._form is None else self._form.space(sample)
        self._equal, self._shift, self._spread = False, 0.0, 0.0
        self._centre = space.mean(0) if len(space) else space.new_zeros(space.shape[1])

    @property
    def is_product(self) -> bool:
        """Whether a key is a product alone, the same for a query and a column as the other way round."""
        return self._equal or self._by_product

    def _centred(self, features: Float[Tensor, "a k"]) -> Float[Tensor, "a s"]:
        if self._form is None:
            return features
        space = self._form.space(features)
        return (
            space if self._equal else space - self._centre
        )  # smaller norms, smaller error; the same differences

    def measure(self, features: Float[Tensor, "r k"]) -> None:
        """Let the error bound cover these columns too."""
        if not len(features) or not (self._form is not None or self._by_product):
            return
        if self._form is None:
            self._reach = max(self._reach, float(_lengths(features).amax()))
            return
        space = self._form.space(features)
        self._reach = max(self._reach, float(_lengths(space - self._centre).amax()))
        low, high = torch.aminmax(_lengths(space))
        self._low, self._high = min(self._low, float(low)), max(self._high, float(high))

    def settle(self) -> None:
        """Choose what the keys are made of, once all columns have been measured.

        Columns of one length, as after normalisation, need no squares: where these differ by less than a
        small share of the error bound, −2 x·y alone is the key. It saves a pass over each tile.
        """
        if self._form is None or not self._high:
            return
        spread = (self._high**2 - self._low**2) / 2
        one = self._centre[None]
        if spread <= square_error(torch.tensor([self._high], dtype=torch.float64), self._high, one)[0] / 16:
            self._shift, self._spread = (self._high**2 + self._low**2) / 2, spread * 1.01
            self._reach, self._equal = self._high, True
            self._centre = torch.zeros_like(self._centre)

    def queries(self, features: Float[Tensor, "a k"]) -> Queries:
        """The queries' side of the keys."""
        u = self._centred(features)
        zero = u.new_zeros(len(u))
        if self._form is None and not self._by_product:
            return Queries(u, zero, zero)
        lengths = _lengths(u)
        if self._by_product:
            return Queries(u, product_error(lengths, self._reach, u).to(u.dtype), zero)
        error = (square_error(lengths, self._reach, u) + self._spread).to(u.dtype)
        return Queries(u * -2.0, error, (lengths.square() + self._shift).to(u.dtype))

    def columns(
        self, features: Float[Tensor, "r k"]
    ) -> tuple[Float[Tensor, "r s"], Float[Tensor, " r"] | None]:
        """A tile's side of the keys: features, and ‖y‖² where the distance is Euclidean."""
        v = self._centred(features)
        if self._equal:  # what the space adds is 0 but for rows without a direction
            k = features.shape[1]
            return v if k == v.shape[1] or bool(v[:, k:].any()) else features, None
        return v, None if self._form is None else _lengths(v).square().to(v.dtype)

    def table(
        self,
        features: Float[Tensor, "a k"],
        columns: tuple[Float[Tensor, "r s"], Float[Tensor, " r"] | None],
        out: Float[Tensor, "a r"],
    ) -> Float[Tensor, "a r"]:
        """The keys of some queries to a tile of columns, written to `out`."""
        v, squares = columns
        with full_precision(v.device):
            if squares is not None:
                return torch.addmm(squares, features, v.T, out=out)
            if self._equal:
                return torch.mm(features[:, : v.shape[1]], v.T, out=out)
            if self._by_product:
                return torch.mm(features, v.T, out=out).neg_()
            return out.copy_(self._distance.tile(features, v))

    def of_distance(
        self, distance: Float[Tensor, " a"], constant: Float[Tensor, " a"]
    ) -> Float[Tensor, " a"]:
        """κ(b): the key of a distance b from each query."""
        return distance if self._form is None else self._form.to_square(distance.clamp(min=0)) - constant


def _lengths(features: Float[Tensor, "a k"]) -> Float[Tensor, " a"]:
    return torch.linalg.vector_norm(features, dim=1, dtype=widest_float(features.device))
