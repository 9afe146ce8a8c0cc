"""Pair losses: the contrastive loss, over mined pairs or over all of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from tercet.checks import choice, real, refusal, whole
from tercet.distances import Distance, as_distance
from tercet.losses.slopes import TileLoss, sloped_mean
from tercet.pairwise import REDUCTIONS, Pairwise, Tile, features, mined_rows, summed, tile_height, tiled_mean
from tercet.tuples import References

__all__ = ["Contrastive"]


class Contrastive(nn.Module):
    """How far positives are apart, and how far negatives are inside the margin, squared.

    ℓ = h(D(a,p) − α⁺)² for a positive pair, h(α − D(a,n))² for a negative one, h(z) = max(0, z)

    With α⁺ = 0 it is the loss of the paper. Pairs are ordered, rows against columns: where the columns are
    the batch, (i, j) and (j, i) are two pairs, which matters to `"sum"` alone.

    Embeddings are taken as they are: a margin of 1 presumes unit vectors, whose distances reach 2.

    Args:
        margin: α, in units of the distance.
        pos_margin: α⁺, the distance under which a positive pair is near enough.
        distance: a `Distance` or its name; the loss squares it, so `"squared_euclidean"` gives D⁴.
        reduction: `"mean_active"` over the pairs with ℓ > 0, positive and negative together, `"mean"` over
            all pairs, `"sum"`, or `"none"` for one loss a mined pair.
        tile_rows: rows computed at once; None for as many as fit the memory of a tile. It changes no result.

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

    def __init__(
        self,
        margin: float = 1.0,
        pos_margin: float = 0.0,
        *,
        distance: Distance | str = "euclidean",
        reduction: str = "mean_active",
        tile_rows: int | None = None,
    ) -> None:
        super().__init__()
        owner = "Contrastive"
        self.margin = real(owner, "margin", margin)
        self.pos_margin = real(owner, "pos_margin", pos_margin)
        self.distance = as_distance(owner, distance, gradient=True)
        self.reduction = choice(owner, "reduction", reduction, REDUCTIONS)
        self.tile_rows = None if tile_rows is None else whole(owner, "tile_rows", tile_rows, minimum=1)

    def forward(
        self,
        embeddings: Shaped[Tensor, "n d"],
        labels: Shaped[Tensor, " n"] | None = None,
        mined: Any = None,
        *,
        ids: Shaped[Tensor, " n"] | None = None,
        ref: References | None = None,
    ) -> Float[Tensor, "..."]:
        """The loss of the mined pairs, or of all.

        Args:
            embeddings: [n, d] floats.
            labels: [n] integers or bools; read only without `mined`.
            mined: `Pairs`, or any four index tensors like them; or `Triplets`, or any three: then each
                distinct pair (a, p) and (a, n) in them counts once. None for all pairs.
            ids: [n] integers, which image each row is; read only without `mined`.
            ref: the columns that positives and negatives are rows of; None for the batch itself.

        Returns:
            A scalar in float32 (float64 for float64 embeddings): 0, with a graph whose gradient is 0, where
            there are no pairs; with `reduction="none"`, one loss a pair, the positive pairs first.

        Raises:
            ValueError: neither labels nor pairs, what `Pairwise` refuses, or rows that do not exist.
        """
        if mined is not None:
            return self._of_mined(embeddings, mined, ref)
        if labels is None:
            raise refusal("Contrastive", "labels", None, "labels, or mined pairs")
        if self.reduction == "none":
            way_out = "pass Pairs of the rows to compare"
            raise refusal("Contrastive", "mined", None, 'mined pairs with reduction="none"', way_out)
        pairwise = Pairwise(
            "Contrastive",
            embeddings,
            labels,
            ids=ids,
            ref=ref,
            distance=self.distance,
            tile_rows=self.tile_rows,
        )
        return sloped_mean(pairwise, self.reduction, self._loss_of, self.tile_rows)

    def extra_repr(self) -> str:
        """The options, for `print`."""
        margins = f"margin={self.margin:g}, pos_margin={self.pos_margin:g}"
        return f"{margins}, distance={self.distance}, reduction={self.reduction!r}"

    def _loss_of(self, tile: Tile) -> TileLoss:
        """All pairs of a tile: each loss is a square, so its slope is twice what is squared."""
        apart = (tile.distance - self.pos_margin).relu_().mul_(tile.positive)  # [a, r]
        inside = (self.margin - tile.distance).relu_().mul_(tile.negative)
        excess = apart.sub_(inside)
        if self.reduction == "mean_active":
            count = excess.count_nonzero()
        else:
            count = tile.positive.sum() + tile.negative.sum()
        value = excess.square().sum(1).sum(dtype=torch.float64)
        return TileLoss(value, count, excess.mul_(2))

    def _apart(self, d_ap: Float[Tensor, " u"]) -> Float[Tensor, " u"]:
        return torch.relu(d_ap - self.pos_margin).square()

    def _inside(self, d_an: Float[Tensor, " v"]) -> Float[Tensor, " v"]:
        return torch.relu(self.margin - d_an).square()

    def _of_mined(self, embeddings: Tensor, mined: Any, ref: References | None) -> Tensor:
        inputs = features("Contrastive", embeddings, self.distance, ref)
        n, r, device = len(inputs[0]), len(inputs[-1]), inputs[0].device
        pairs = _pairs(mined_rows("Contrastive", mined, n, r, device), r)
        sides = ((pairs[:2], self._apart), (pairs[2:], self._inside))
        if self.reduction == "none":
            x, y = inputs[0], inputs[-1]
            return torch.cat([loss(self.distance.paired(x[i], y[j])) for (i, j), loss in sides])
        height = tile_height("Contrastive", inputs[0].shape[1], inputs[0].dtype, self.tile_rows)

        def terms(*inputs: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
            for rows, loss in sides:
                for i, j in zip(*(index.split(height) for index in rows)):
                    yield summed(loss(self.distance.paired(inputs[0][i], inputs[-1][j])), self.reduction)

        return tiled_mean(self.reduction, terms, *inputs)


def _pairs(rows: tuple[Int[Tensor, " _"], ...], columns: int) -> tuple[Int[Tensor, " _"], ...]:
    """Pairs as they are; of triplets each distinct (a, p) and (a, n), once."""
    if len(rows) == 4:
        return rows
    positive, negative = (torch.unique(rows[0] * columns + column) for column in rows[1:])
    columns = max(1, columns)
    return positive // columns, positive % columns, negative // columns, negative % columns
