"""Heads of the angles between unit vectors: the angular loss and the tuplet margin loss."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import softplus

from tercet.core.checks import as_float
from tercet.losses.base import Head, reduced
from tercet.losses.log_sums import log_sum
from tercet.losses.rowwise import ListwiseHead, MinedPairs, PositivePlaces
from tercet.pairwise.accumulate import Masked, summed
from tercet.pairwise.budget import budget
from tercet.pairwise.closed_forms import products
from tercet.pairwise.distances import Distance, negative_cosine
from tercet.pairwise.masked import true_places
from tercet.pairwise.relations import Relation, SameLabel
from tercet.pairwise.tiles import Pairwise, Tile
from tercet.pairwise.torch_modes import has_fixed_shapes

__all__ = ["Angular", "TupletMargin"]


class Angular(Head):
    """The angular loss: the angle at a negative of the triangle that it makes with each positive pair.

    ℓ_ap = log(1 + Σ_n exp(f_apn)), f_apn = 4 tan² α (x_a + x_p)ᵀx_n − 2 (1 + tan² α) x_aᵀx_p

    The x are embeddings divided by their length. The angle at the negative is bounded by α, which does not
    depend on the size of the triangle as a margin does. A positive pair is compared with every negative of
    its anchor, so a batch takes positive pairs × columns products, a part at a time. A pair whose anchor has
    no negative loses 0. From a list, each distinct pair counts once.

    Args:
        alpha: α, from 0 to 1.4, in radians; the paper takes 0.63 to 0.79, which is 36 to 45 degrees.
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
        >>> loss = Angular(alpha=0.0)(x, torch.tensor([0, 0, 1]))  # log(1 + exp(0 − 2))
        >>> round(loss.item(), 4)
        0.1269

    Reference:
        Wang, Zhou, Wen, Liu & Lin, "Deep metric learning with angular loss", 2017.
    """

    def __init__(
        self,
        alpha: float = 0.7,
        *,
        relation: Relation = SameLabel(),  # noqa: B008
        reduction: str = "mean",
        tile_rows: int | None = None,
        check_finite: str = "later",
    ) -> None:
        super().__init__(negative_cosine, relation, reduction, tile_rows, check_finite)
        self.alpha = as_float("Angular", "alpha", alpha, minimum=0, maximum=1.4)

    def _of_all(self, pairwise: Pairwise) -> Float[Tensor, "..."]:
        """The loss of all positive pairs."""
        return self._of_tiles(pairwise)

    def _of_mined(
        self, inputs: tuple[Tensor, ...], labels: Tensor | None, mined: Any
    ) -> Float[Tensor, "..."]:
        """The loss of the listed positive pairs against the listed negatives of their anchors."""
        return self._of_tiles(MinedPairs(inputs, self._listed(inputs, mined), self.distance, self.tile_rows))

    def _of_tiles(self, compared: Pairwise | MinedPairs) -> Float[Tensor, "..."]:
        """The loss of rows against columns, some positive pairs at a time."""

        def losses(*inputs: Tensor) -> Iterator[Tensor | Masked]:
            x, y = inputs[0], inputs[-1]
            for rows in compared.spans():
                positive, negative = compared.sides(rows)
                pairs = PositivePlaces.of(positive, compared.most_positives)
                parts = [index.split(compared.tile_rows) for index in pairs[:3] if index is not None]
                for i, j, *real in zip(*parts, strict=True):
                    found = self._losses(x[rows][i], y[j], y, negative[i])
                    if self.reduction == "none":
                        yield found[real[0]] if real else found
                    else:
                        yield Masked(found, real[0]) if real else found

        return reduced("Angular", self.reduction, losses, *compared.inputs)

    def _losses(
        self,
        anchor: Float[Tensor, "c k"],
        positive: Float[Tensor, "c k"],
        columns: Float[Tensor, "r k"],
        negative: Bool[Tensor, "c r"],
    ) -> Float[Tensor, " c"]:
        """ℓ of some positive pairs."""
        sums = products(anchor + positive, columns)  # [c, r]
        return self._loss(sums, (anchor * positive).sum(1), negative)

    def _loss(self, sums: Tensor, s_ap: Tensor, negative: Tensor) -> Tensor:
        """ℓ of s_an + s_pn [c, r] and of s_ap [c]."""
        square = math.tan(self.alpha) ** 2
        return softplus(log_sum(sums * (4 * square), negative) - (2 + 2 * square) * s_ap)

    def _is_traced(self, embeddings: Any) -> bool:
        # Inside a graph each row with each two columns is a number.
        cube = len(embeddings) ** 3 if isinstance(embeddings, Tensor) else 0
        return super()._is_traced(embeddings) and cube <= budget(embeddings.device).traced_numbers

    def _traced_sum(self, tile: Tile, labels: Tensor, x: Tensor) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
        """The sum over all positive pairs."""
        n, s = len(tile.distance), -tile.distance
        sums = (s[:, None] + s[None]).view(n * n, n)
        negative = tile.negative[:, None].expand(n, n, n).reshape(n * n, n)
        losses = self._loss(sums, s.flatten(), negative).view(n, n)
        return summed(Masked(losses, tile.positive), self.reduction)


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
