"""Heads of the angles between unit vectors: tuplet margin."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import softplus

from tercet.core.checks import as_float
from tercet.losses.log_sums import log_sum
from tercet.losses.rowwise import ListwiseHead
from tercet.pairwise.accumulate import Masked
from tercet.pairwise.distances import Distance
from tercet.pairwise.masked import true_places
from tercet.pairwise.relations import Relation, SameLabel
from tercet.pairwise.tiles import Tile
from tercet.pairwise.torch_modes import has_fixed_shapes

__all__ = ["TupletMargin"]


class TupletMargin(ListwiseHead):
    """The tuplet margin loss: each positive pair, its angle less a margin, against the anchor's negatives.

    ℓ_ap = log(1 + Σ_n exp(s (cos θ_an − cos(θ_ap − β))))

    θ is the angle between two embeddings. The margin makes a positive that is nearer than β lose again, so
    classes do not collapse. cos(θ − β) is computed from differences of unit vectors: where the peers' arc
    cosine has an infinite slope, at two equal rows, the gradient here is 0, and that of near rows is precise.
    A pair whose anchor has no negative loses 0. From a list, each distinct pair counts once.

    Args:
        margin: β, from 0 to π/2, in radians; the paper takes 0.1, which is 5.73 degrees.
        scale: s, above 0.
        relation: which columns are positive and which negative for a row, by the labels: `SameLabel()`,
            `SharedLabel()`, `CrossGroup()`, `Graded(positive, negative)`, or a `Relation`.
        reduction: `"mean"` over the positive pairs, `"mean_active"` over those with ℓ > 0, `"sum"`, or
            `"none"` for one loss for each positive pair, by anchor and then by positive.
        tile_rows: the anchors compared at once, at least 1; None for as many as fit one table of distances.
            It changes the result by rounding alone.
        check_finite: when embeddings that are NaN, infinite or too large are refused. `"later"`: at once on a
            processor; an accelerator answers without being waited for, and the next call on it raises what
            was wrong. `"now"`: at once, and an accelerator is waited for. `"never"`: no check.

    Returns:
        From the call `head(embeddings, labels=None, mined=None, *, ids=None, ref=None)`, whose arguments
        `forward` lists: a scalar, 0 where there is nothing to compare; or [t] losses with `reduction="none"`.

    Raises:
        ValueError: an option out of range; when called, what `forward` lists.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> loss = TupletMargin(margin=0.0, scale=1.0)(x, torch.tensor([0, 0, 1]))  # log(1 + exp(0 − 1))
        >>> round(loss.item(), 4)
        0.3133

    Reference:
        Yu & Tao, "Deep metric learning with tuplet margin loss", 2019.
    """

    def __init__(
        self,
        margin: float = 0.1,
        scale: float = 64.0,
        *,
        relation: Relation = SameLabel(),  # noqa: B008
        reduction: str = "mean",
        tile_rows: int | None = None,
        check_finite: str = "later",
    ) -> None:
        super().__init__("cosine", relation, reduction, tile_rows, check_finite)
        self.margin = as_float("TupletMargin", "margin", margin, minimum=0, maximum=math.pi / 2)
        self.scale = as_float("TupletMargin", "scale", scale, above=0)

    @property
    def _measured(self) -> Distance:
        """1 − cos θ, precise where θ is small; a product has not the digits of its root."""
        return self.distance

    def _losses_of(self, tile: Tile) -> Float[Tensor, " u"] | Masked:
        """ℓ of each positive pair."""
        negatives = log_sum(tile.distance * -self.scale, tile.negative)  # of s (cos θ − 1)
        if self.reduction == "none" or not has_fixed_shapes(tile.distance):
            row, column = true_places(tile.positive)
            return softplus(negatives[row] - self.scale * self._relaxed(tile.distance[row, column]))
        losses = softplus(negatives[:, None] - self.scale * self._relaxed(tile.distance))
        return Masked(losses, tile.positive)

    def _relaxed(self, d: Float[Tensor, "*u"]) -> Float[Tensor, "*u"]:
        """cos(θ − β) − 1 of D = 1 − cos θ."""
        square = d * (2 - d)  # sin² θ, which has no root with a gradient at 0
        apart = square > 0
        sine = torch.where(apart, square, 1.0).sqrt() * apart
        return (math.cos(self.margin) - 1) - math.cos(self.margin) * d + math.sin(self.margin) * sine
