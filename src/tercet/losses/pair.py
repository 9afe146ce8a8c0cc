"""Pair losses: the contrastive loss, over mined pairs or over all of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tercet.core.checks import as_float
from tercet.core.indices import References
from tercet.losses.base import Head, reduced
from tercet.losses.lists import distinct, pairs_of
from tercet.losses.tile_gradients import TileLoss, sloped
from tercet.pairwise.distances import Distance
from tercet.pairwise.relations import Relation, SameLabel
from tercet.pairwise.tiles import Pairwise, Tile

__all__ = ["Contrastive"]


class Contrastive(Head):
    """How far positives are apart, and how far negatives are inside the margin, squared.

    ℓ = h(D(a,p) − α⁺)² for a positive pair, h(α − D(a,n))² for a negative one, h(z) = max(0, z)

    With α⁺ = 0 it is the loss of the paper. Pairs are ordered, rows against columns: where the columns are
    the batch, (i, j) and (j, i) are two pairs, which matters to `"sum"` alone. Of mined triplets each
    distinct pair (a, p) and (a, n) counts once, of mined pairs each as often as it is listed.

    Embeddings are taken as they are: a margin of 1 presumes unit vectors, whose distances reach 2.

    Args:
        margin: α, in units of the distance.
        pos_margin: α⁺, the distance under which a positive pair is near enough.
        distance: a `Distance` or its name; the loss squares it, so `"squared_euclidean"` gives D⁴.
        relation: which columns are positive and which negative, by their labels.
        reduction: `"mean_active"` over the pairs with ℓ > 0, positive and negative together, `"mean"` over
            all pairs, `"sum"`, or `"none"` for one loss a mined pair, the positive pairs first.
        tile_rows: rows computed at once; None for as many as fit the memory of a tile. It changes the result
            by rounding alone.

    Raises:
        ValueError: an option out of range.

    Example:
        >>> x = torch.tensor([[0.0], [0.5], [1.0]], requires_grad=True)
        >>> loss = Contrastive(margin=1.0, reduction="sum")(x, torch.tensor([0, 0, 1]))
        >>> loss.backward()
        >>> loss.item(), x.grad.flatten().tolist()
        (1.0, [-2.0, 4.0, -2.0])

    Reference:
        Hadsell, Chopra & LeCun, "Dimensionality reduction by learning an invariant mapping", 2006.
    """

    listing = "Pairs of the rows to compare"

    def __init__(
        self,
        margin: float = 1.0,
        pos_margin: float = 0.0,
        *,
        distance: Distance | str = "euclidean",
        relation: Relation = SameLabel(),  # noqa: B008
        reduction: str = "mean_active",
        tile_rows: int | None = None,
    ) -> None:
        super().__init__(distance, relation, reduction, tile_rows)
        self.margin = as_float("Contrastive", "margin", margin)
        self.pos_margin = as_float("Contrastive", "pos_margin", pos_margin)

    def of_all(self, pairwise: Pairwise) -> Float[Tensor, ""]:
        """The loss of all pairs."""
        symmetric = pairwise.is_symmetric
        return sloped("Contrastive", pairwise, self.reduction, self._loss_of, symmetric=symmetric)

    def of_mined(
        self, embeddings: Tensor, labels: Tensor | None, mined: Any, ref: References | None
    ) -> Float[Tensor, "..."]:
        """The loss of listed pairs."""
        inputs, rows = self.listed(embeddings, mined, ref)
        pairs = pairs_of(rows)
        if len(rows) == 3:
            pairs = tuple(distinct(*side, len(inputs[-1])) for side in pairs)

        def losses(*inputs: Tensor) -> Iterator[Tensor]:
            for side, loss in zip(pairs, (self._apart, self._inside)):
                for i, j in self.parts(inputs[0], inputs[-1], *side):
                    yield loss(*self.between(inputs[0], inputs[-1], i, j))

        listed = tuple(column for side in pairs for column in side)
        return reduced("Contrastive", self.reduction, losses, *inputs, whole=self.few(inputs, listed))

    def _loss_of(self, tile: Tile, wanted: bool) -> TileLoss:
        """All pairs of a tile: each loss is a square, so its slope is twice what is squared."""
        if tile.error is not None:  # who is active is decided as by a miner
            near = [(tile.distance - bound).abs_() <= tile.error for bound in (self.pos_margin, self.margin)]
            tile.settle(near[0].logical_and_(tile.positive).logical_or_(near[1].logical_and_(tile.negative)))
        # As bytes: a product with bools takes four times as long.
        positive, negative = tile.positive.view(torch.uint8), tile.negative.view(torch.uint8)
        apart = (tile.distance - self.pos_margin).relu_().mul_(positive)  # [a, r]
        inside = (self.margin - tile.distance).relu_().mul_(negative)
        excess = apart.sub_(inside)
        if self.reduction == "mean_active":
            count = excess.count_nonzero()
        else:
            count = positive.sum() + negative.sum()
        value = torch.linalg.vecdot(excess, excess).sum(dtype=torch.float64)
        return TileLoss(value, count, excess.mul_(2) if wanted else None)

    def _apart(self, d_ap: Float[Tensor, " u"]) -> Float[Tensor, " u"]:
        return torch.relu(d_ap - self.pos_margin).square()

    def _inside(self, d_an: Float[Tensor, " v"]) -> Float[Tensor, " v"]:
        return torch.relu(self.margin - d_an).square()
