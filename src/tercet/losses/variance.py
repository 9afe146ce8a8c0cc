"""Heads of variances: that of similarities within each side, and VICReg's of the coordinates."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tercet.core.checks import as_float
from tercet.losses.base import Head
from tercet.losses.rowwise import MinedPairs
from tercet.losses.tile_gradients import TileLoss, is_one_tile, loss_from_pair_gradients
from tercet.pairwise.accumulate import tiled_mean
from tercet.pairwise.closed_forms import products
from tercet.pairwise.distances import negative_cosine, squared_euclidean
from tercet.pairwise.euclidean import gather_rows
from tercet.pairwise.masked import true_places
from tercet.pairwise.relations import Relation, SameLabel
from tercet.pairwise.tiles import Pairwise, Tile
from tercet.pairwise.torch_modes import widest_float

__all__ = ["IntraPairVariance", "VICReg"]


class IntraPairVariance(Head):
    """The intra-pair variance loss: how far similarities of each side lie on the wrong side of their mean.

    L = mean_p h((1 − ε⁺) μ⁺ − s_ap)² + mean_n h(s_an − (1 + ε⁻) μ⁻)², h(z) = max(0, z)

    s is the cosine similarity, μ⁺ and μ⁻ are its means over all positive and over all negative pairs. The
    means have a gradient too. It is meant beside another head, such as `TupletMargin`: `Sum` adds them. The
    means need all pairs, so columns from `gather` are refused. From a list, each distinct pair counts once.

    Args:
        pos_epsilon: ε⁺, at least 0, a share of μ⁺.
        neg_epsilon: ε⁻, at least 0, a share of μ⁻.
        relation: which columns are positive and which negative for a row, by the labels: `SameLabel()`,
            `SharedLabel()`, `CrossGroup()`, `Graded(positive, negative)`, or a `Relation`.
        tile_rows: the anchors compared at once, at least 1; None for as many as fit one table of distances.
            It changes the result by rounding alone.
        check_finite: when embeddings that are NaN, infinite or too large are refused. `"later"`: at once on a
            processor; an accelerator answers without being waited for, and the next call on it raises what
            was wrong. `"now"`: at once, and an accelerator is waited for. `"never"`: no check.

    Returns:
        From the call `head(embeddings, labels=None, mined=None, *, ids=None, ref=None)`, whose arguments
        `forward` lists: a scalar, 0 where there is nothing to compare.

    Raises:
        ValueError: an option out of range; when called, what `forward` lists.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        >>> head = IntraPairVariance(0.0, 0.0)  # s⁺ are 1 and 0.7071, s⁻ are 0 and 0.7071
        >>> round(head(x, torch.tensor([0, 0, 1, 1])).item(), 4)  # half of 0.1464², and half of 0.3536²
        0.0732

    Reference:
        Yu & Tao, "Deep metric learning with tuplet margin loss", 2019.
    """

    _sums_over_anchors = False

    def __init__(
        self,
        pos_epsilon: float = 0.01,
        neg_epsilon: float = 0.01,
        *,
        relation: Relation = SameLabel(),  # noqa: B008
        tile_rows: int | None = None,
        check_finite: str = "later",
    ) -> None:
        super().__init__(negative_cosine, relation, "mean", tile_rows, check_finite)
        self.pos_epsilon = as_float("IntraPairVariance", "pos_epsilon", pos_epsilon, minimum=0)
        self.neg_epsilon = as_float("IntraPairVariance", "neg_epsilon", neg_epsilon, minimum=0)

    def _of_all(self, pairwise: Pairwise) -> Float[Tensor, ""]:
        """The loss of all pairs."""
        return self._of_tiles(pairwise, pairwise.is_symmetric)

    def _of_mined(self, inputs: tuple[Tensor, ...], labels: Tensor | None, mined: Any) -> Float[Tensor, ""]:
        """The loss of listed pairs."""
        return self._of_tiles(MinedPairs(inputs, self._listed(inputs, mined), self.distance, self.tile_rows))

    def _of_tiles(self, compared: Pairwise | MinedPairs, symmetric: bool = False) -> Float[Tensor, ""]:
        """The loss of rows against columns: of several tiles, in two more walks, of means and of excesses."""
        found = None
        if not is_one_tile(compared):
            bare = [v.detach() for v in compared.inputs]
            with torch.no_grad():
                bounds = self._bounds(compared.tiles(*bare))
                found = *bounds, self._pulls(compared.tiles(*bare), *bounds)
        loss_of = partial(self._loss_of, found)
        return loss_from_pair_gradients("IntraPairVariance", compared, "sum", loss_of, symmetric=symmetric)

    def _loss_of(self, found: tuple[Tensor, Tensor, Tensor] | None, tile: Tile, wanted: bool) -> TileLoss:
        """The loss of a tile; `found` are bounds, counts and pulls, of the tile itself where it is all."""
        if found is None:
            bounds = self._bounds([tile])
            found = *bounds, self._pulls([tile], *bounds)
        bound, count, pull = found
        weights, value = torch.zeros_like(tile.distance), 0.0
        for side, (excess, mask, sign) in enumerate(self._excesses(tile, bound)):
            value = value + excess.square().sum(dtype=pull.dtype) / count[side]
            # ∂/∂D = −∂/∂s: of the pair itself, and of the mean that all pairs of the side have a share in.
            weights += excess.mul_(2 * sign / count[side].to(pull.dtype))
            weights -= mask * (pull[side] * sign).to(weights.dtype)
        return TileLoss(value, torch.ones_like(count[0]), weights if wanted else None)  # type: ignore[arg-type]

    def _bounds(self, tiles: Iterable[Tile]) -> tuple[Float[Tensor, " 2"], Int[Tensor, " 2"]]:
        """(1 − ε⁺) μ⁺ and (1 + ε⁻) μ⁻, and how many pairs each side has, 1 for none."""
        sums = counts = None
        for tile in tiles:
            sides = tile.positive.view(torch.uint8), tile.negative.view(torch.uint8)
            wide = widest_float(tile.distance.device)
            more = torch.stack([(-tile.distance * side).sum(dtype=wide) for side in sides])
            pairs = torch.stack([side.sum() for side in sides])
            sums = more if sums is None else sums + more
            counts = pairs if counts is None else counts + pairs
        if sums is None or counts is None:  # no tile at all
            return torch.zeros(2), torch.ones(2, dtype=torch.int64)
        counts = counts.clamp(min=1)
        return self._scaled(sums) / counts, counts

    def _pulls(
        self, tiles: Iterable[Tile], bounds: Float[Tensor, " 2"], counts: Int[Tensor, " 2"]
    ) -> Float[Tensor, " 2"]:
        """By how much each pair pulls on the loss through the mean of its side."""
        total = torch.zeros_like(bounds)
        for tile in tiles:
            total += torch.stack([each[0].sum(dtype=bounds.dtype) for each in self._excesses(tile, bounds)])
        return self._scaled(2 * total / counts) / counts

    def _scaled(self, means: Float[Tensor, " 2"]) -> Float[Tensor, " 2"]:
        """(1 − ε⁺) of the first and (1 + ε⁻) of the second."""
        return torch.stack([means[0] * (1 - self.pos_epsilon), means[1] * (1 + self.neg_epsilon)])

    def _excesses(self, tile: Tile, bounds: Float[Tensor, " 2"]) -> Iterator[tuple[Tensor, Tensor, int]]:
        """h of each side, 0 for all other pairs; the side; and whether it rises or falls with D."""
        bound = bounds.to(tile.distance.dtype)
        # As bytes: a product with bools takes four times as long.
        positive, negative = tile.positive.view(torch.uint8), tile.negative.view(torch.uint8)
        yield (tile.distance + bound[0]).relu_() * positive, positive, 1
        yield (-tile.distance - bound[1]).relu_() * negative, negative, -1

    def _traced_sum(self, tile: Tile, labels: Tensor, x: Tensor) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
        """The loss of all pairs."""
        bounds, counts = self._bounds([tile])
        sides = self._excesses(tile, bounds)
        total = sum(
            each[0].square().sum(dtype=bounds.dtype) / count
            for each, count in zip(sides, counts, strict=True)
        )
        return total, counts.new_ones(())  # type: ignore[return-value]


class VICReg(Head):
    """VICReg: positives near each other, each coordinate spread, and no two coordinates alike.

    L = λ s + μ (v(Z) + v(Z'))/2 + ν (c(Z) + c(Z')), s = mean_p ‖z_a − z'_p‖²/d,
    v(Z) = (1/d) Σ_k h(1 − √(var(z_k) + ε)), c(Z) = (1/d) Σ_{k≠l} C_kl², h(z) = max(0, z)

    C is the covariance matrix of Z, n − 1 below the line. Z are the embeddings, Z' the references; without
    references both are the embeddings, and the positives are the other views in the batch. No negatives are
    used: spread and covariance keep embeddings from collapsing. The two views of an image are rows with the
    image's number as label. Embeddings are not normalised. Columns from `gather` are refused, since spread
    and covariance are no sums over anchors.

    Args:
        invariance: λ, at least 0.
        variance: μ, at least 0.
        covariance: ν, at least 0.
        epsilon: ε, above 0, so that the root has a gradient where all rows are equal.
        relation: which columns are positive for a row, by the labels: `SameLabel()`,
            `SharedLabel()`, `CrossGroup()`, `Graded(positive, negative)`, or a `Relation`.
        tile_rows: the anchors compared at once, at least 1; None for as many as fit one table of distances.
            It changes the result by rounding alone.
        check_finite: when embeddings that are NaN, infinite or too large are refused. `"later"`: at once on a
            processor; an accelerator answers without being waited for, and the next call on it raises what
            was wrong. `"now"`: at once, and an accelerator is waited for. `"never"`: no check.

    Returns:
        From the call `head(embeddings, labels=None, mined=None, *, ids=None, ref=None)`, whose arguments
        `forward` lists: a scalar, 0 where there is nothing to compare.

    Raises:
        ValueError: an option out of range; when called, what `forward` lists.

    Example:
        >>> x = torch.tensor([[3.0, 0.0], [1.0, 0.0], [-2.0, 1.0], [-2.0, -1.0]])
        >>> head = VICReg(invariance=1.0, variance=0.0, covariance=0.0)
        >>> head(x, torch.tensor([0, 0, 1, 1])).item()  # 2² / 2, of both pairs
        2.0

    Reference:
        Bardes, Ponce & LeCun, "VICReg: variance-invariance-covariance regularization for self-supervised
        learning", 2022.
    """

    _sums_over_anchors = False

    def __init__(
        self,
        invariance: float = 25.0,
        variance: float = 25.0,
        covariance: float = 1.0,
        *,
        epsilon: float = 1e-4,
        relation: Relation = SameLabel(),  # noqa: B008
        tile_rows: int | None = None,
        check_finite: str = "later",
    ) -> None:
        super().__init__(squared_euclidean, relation, "mean", tile_rows, check_finite)
        self.invariance = as_float("VICReg", "invariance", invariance, minimum=0)
        self.variance = as_float("VICReg", "variance", variance, minimum=0)
        self.covariance = as_float("VICReg", "covariance", covariance, minimum=0)
        self.epsilon = as_float("VICReg", "epsilon", epsilon, above=0)

    def _of_all(self, pairwise: Pairwise) -> Float[Tensor, ""]:
        """The loss of all positive pairs."""
        return self._of_pairs(pairwise)

    def _of_mined(self, inputs: tuple[Tensor, ...], labels: Tensor | None, mined: Any) -> Float[Tensor, ""]:
        """The loss of the listed positive pairs."""
        return self._of_pairs(MinedPairs(inputs, self._listed(inputs, mined), self.distance, self.tile_rows))

    def _of_pairs(self, compared: Pairwise | MinedPairs) -> Float[Tensor, ""]:
        """The mean over positive pairs, and the spread of both sets."""

        def terms(*inputs: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
            x, y = inputs[0], inputs[-1]
            for rows in compared.spans():
                positive, _ = compared.sides(rows)
                if x.device.type == "cpu":  # few: their places take less time than a table of distances
                    i, j = true_places(positive)
                    d = self.distance.paired(gather_rows(x[rows], i), gather_rows(y, j))
                else:
                    d = self.distance.tile(x[rows], y) * positive
                yield d.sum(dtype=widest_float(x.device)) / max(1, x.shape[1]), positive.sum()

        near = tiled_mean("VICReg", "mean", terms, *compared.inputs)
        spread = sum(self._spread(v) for v in compared.inputs)
        return self.invariance * near + spread * (2 / len(compared.inputs))

    def _spread(self, z: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
        """μ v(Z)/2 + ν c(Z)."""
        n, d = z.shape
        if not z.numel():
            return z.sum()
        centred = z - z.mean(0)
        covariance = products(centred.T, centred.T) / max(1, n - 1)  # [d, d]
        variance = covariance.diagonal()
        apart = torch.relu(1 - (variance + self.epsilon).sqrt()).sum()
        alike = (covariance - variance.diag_embed()).square().sum()
        return (self.variance / 2 * apart + self.covariance * alike) / d

    def _traced_sum(self, tile: Tile, labels: Tensor, x: Tensor) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
        """The loss of all positive pairs."""
        near = (tile.distance * tile.positive).sum() / x.shape[1] / tile.positive.sum().clamp(min=1)
        return self.invariance * near + 2 * self._spread(x), torch.ones_like(tile.positive.sum())
