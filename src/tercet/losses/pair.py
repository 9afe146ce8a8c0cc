"""The contrastive loss, over mined pairs or over all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tercet.core.checks import as_bool, as_float, as_int, refusal
from tercet.losses.base import Head, anchor_shares, distinct, pairs_of, reduced
from tercet.losses.rowwise import MinedPairs
from tercet.losses.tile_gradients import TileLoss, averaged_by_anchor, is_one_tile, loss_from_pair_gradients
from tercet.pairwise.accumulate import BY_ANCHOR, Masked, summed
from tercet.pairwise.distances import Distance
from tercet.pairwise.mined import is_remembered
from tercet.pairwise.relations import Relation, SameLabel
from tercet.pairwise.tiles import Pairwise, Tile
from tercet.pairwise.torch_modes import widest_float

__all__ = ["Contrastive"]


class Contrastive(Head):
    """The contrastive loss: how far positives are apart, and how far negatives are inside a margin, squared.

    ℓ = h(D(a,p) − α⁺)^power for a positive pair, h(α − D(a,n))^power for a negative pair, h(z) = max(0, z)

    With α⁺ = 0 and power 2 it is the loss of the paper. Pairs are ordered, rows against columns: where the
    columns are the batch, (i, j) and (j, i) are two pairs, which makes a difference to `"sum"` alone. From
    mined triplets each distinct pair (a, p) and (a, n) counts once; mined pairs count as often as they are
    listed.

    Embeddings are not normalised, save by `"cosine"`: a margin of 1 is meant for unit vectors, whose
    distances reach 2.

    Args:
        margin: α, in units of the distance: negatives farther than that lose nothing.
        pos_margin: α⁺, in units of the distance: positives nearer than that lose nothing.
        distance: D: `"euclidean"` ‖x − y‖, `"squared_euclidean"` ‖x − y‖², `"cosine"` 1 − cos(x, y), `"dot"`
            −x·y, or a `Distance` with a gradient, such as `Mahalanobis`. The loss squares D, so
            `"squared_euclidean"` gives ‖x − y‖⁴.
        power: 2, or 1 for the hinge itself.
        two_means: True for the mean over positive pairs plus the mean over negative pairs, so that the many
            negatives do not outweigh the positives; each is `"mean_active"`, `"mean"` or
            `"mean_per_anchor"`.
        relation: which columns are positive and which negative for a row, by the labels: `SameLabel()`,
            `SharedLabel()`, `CrossGroup()`, `Graded(positive, negative)`, or a `Relation`.
        reduction: `"mean_active"` for the mean over the pairs with ℓ > 0, positive and negative together,
            `"mean"` over all pairs, `"mean_per_anchor"` for the mean over the anchors that have a pair of
            the mean of all their pairs, `"sum"`, or `"none"` for one loss for each mined pair, positive pairs
            first.
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
        >>> x = torch.tensor([[0.0], [0.5], [1.0]], requires_grad=True)
        >>> loss = Contrastive(margin=1.0, reduction="sum")(x, torch.tensor([0, 0, 1]))
        >>> loss.backward()
        >>> loss.item(), x.grad.flatten().tolist()
        (1.0, [-2.0, 4.0, -2.0])

    Reference:
        Hadsell, Chopra & LeCun, "Dimensionality reduction by learning an invariant mapping", 2006.
    """

    _listing = "Pairs of the rows to compare"
    _averages_by_anchor = True

    def __init__(
        self,
        margin: float = 1.0,
        pos_margin: float = 0.0,
        *,
        distance: Distance | str = "euclidean",
        power: int = 2,
        two_means: bool = False,
        relation: Relation = SameLabel(),  # noqa: B008
        reduction: str = "mean_active",
        tile_rows: int | None = None,
        check_finite: str = "later",
    ) -> None:
        super().__init__(distance, relation, reduction, tile_rows, check_finite)
        caller = "Contrastive"
        self.margin = as_float(caller, "margin", margin)
        self.pos_margin = as_float(caller, "pos_margin", pos_margin)
        self.power = as_int(caller, "power", power, minimum=1, maximum=2)
        self.two_means = as_bool(caller, "two_means", two_means)
        if self.two_means and self.reduction in ("sum", "none"):
            hint = "leave one of the two away"
            raise refusal(caller, "two_means", True, f"False with reduction={reduction!r}", hint)

    def _of_all(self, pairwise: Pairwise) -> Float[Tensor, ""]:
        """The loss of all pairs."""
        return self._of_tiles(pairwise, pairwise.is_symmetric and self.reduction != BY_ANCHOR)

    def _loss_of_tile(self, pairwise: Pairwise) -> tuple[str, Callable[[Tile, bool], TileLoss]] | None:
        """All pairs of the tile."""
        return ("sum", self._means_of) if self.two_means else (self.reduction, self._loss_of)

    def _of_tiles(self, compared: Pairwise | MinedPairs, symmetric: bool = False) -> Float[Tensor, ""]:
        """The loss of rows against columns; of several tiles, two means take a walk each."""

        def of(reduction: str, loss_of: Callable[[Tile, bool], TileLoss]) -> Float[Tensor, ""]:
            return loss_from_pair_gradients("Contrastive", compared, reduction, loss_of, symmetric=symmetric)

        if not self.two_means:
            return of(self.reduction, self._loss_of)
        if is_one_tile(compared):
            return of("sum", self._means_of)
        return of(self.reduction, self._apart_of) + of(self.reduction, self._inside_of)

    def _of_mined(
        self, inputs: tuple[Tensor, ...], labels: Tensor | None, mined: Any
    ) -> Float[Tensor, "..."]:
        """The loss of listed pairs."""
        rows = self._listed(inputs, mined)
        pairs = pairs_of(rows)
        if len(rows) == 3 and self._fits_marks(inputs, mined):
            # Marks in a table are distinct, and an accelerator is not read to count them.
            return self._of_tiles(MinedPairs(inputs, rows, self.distance, self.tile_rows))
        if len(rows) == 3:
            pairs = tuple(distinct(*side, len(inputs[-1])) for side in pairs)
        sides = tuple(zip(pairs, (self._apart, self._inside), strict=True))

        by_anchor = self.reduction == BY_ANCHOR

        def of(*sides: Any) -> Float[Tensor, "..."]:
            shares = anchor_shares(inputs[0], *(side[0] for side, _ in sides)) if by_anchor else None

            def losses(*inputs: Tensor) -> Iterator[Tensor]:
                for side, loss in sides:
                    for i, j in self._chunks(inputs[0], inputs[-1], *side):
                        part = loss(*self._listed_distances(inputs[0], inputs[-1], i, j))
                        yield part if shares is None else part * shares[i]

            listed = tuple(column for side, _ in sides for column in side)
            whole = self._fits_one_graph(inputs, listed)
            reduction = "sum" if by_anchor else self.reduction
            return reduced("Contrastive", reduction, losses, *inputs, one_graph=whole)

        return of(sides[0]) + of(sides[1]) if self.two_means else of(*sides)

    def _traced_sum(self, tile: Tile, labels: Tensor, x: Tensor) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
        """The sum over all pairs, or the two means."""
        apart, inside = self._apart(tile.distance), self._inside(tile.distance)
        if not self.two_means:
            losses = Masked(torch.where(tile.positive, apart, inside), tile.positive | tile.negative)
            return summed(losses, self.reduction)
        sides = ((apart, tile.positive), (inside, tile.negative))
        means = (summed(Masked(*side), self.reduction) for side in sides)
        total = sum(value / count.clamp(min=1) for value, count in means)
        return total, torch.ones((), dtype=torch.int64, device=apart.device)  # type: ignore[return-value]

    def _loss_of(self, tile: Tile, wanted: bool) -> TileLoss:
        """All pairs of a tile."""
        apart, inside = self._excesses(tile)
        return self._powered(apart.sub_(inside), (tile.positive, tile.negative), wanted)

    def _apart_of(self, tile: Tile, wanted: bool) -> TileLoss:
        """The positive pairs of a tile."""
        apart, _ = self._excesses(tile)
        return self._powered(apart, (tile.positive,), wanted)

    def _inside_of(self, tile: Tile, wanted: bool) -> TileLoss:
        """The negative pairs of a tile."""
        _, inside = self._excesses(tile)
        return self._powered(inside.neg_(), (tile.negative,), wanted)

    def _means_of(self, tile: Tile, wanted: bool) -> TileLoss:
        """Both means of a tile that has all pairs."""
        apart, inside = self._excesses(tile)
        value = torch.zeros((), dtype=widest_float(apart.device), device=apart.device)
        slopes = []
        for excess, side in ((apart, tile.positive), (inside.neg_(), tile.negative)):
            of_side = self._powered(excess, (side,), wanted)
            share = of_side.count.clamp(min=1)
            value = value + of_side.value / share
            if of_side.pair_gradients is not None:
                slopes.append(of_side.pair_gradients.div_(share))
        return TileLoss(value, torch.ones_like(share), slopes[0].add_(slopes[1]) if wanted else None)

    def _excesses(self, tile: Tile) -> tuple[Float[Tensor, "a r"], Float[Tensor, "a r"]]:
        """How far positives are apart and negatives inside, 0 for all other pairs."""
        if tile.error is not None:  # which pairs are active is decided as by a miner
            near = [(tile.distance - bound).abs_() <= tile.error for bound in (self.pos_margin, self.margin)]
            tile.resolve(near[0].logical_and_(tile.positive).logical_or_(near[1].logical_and_(tile.negative)))
        # As bytes: a product with bools takes four times as long.
        apart = (tile.distance - self.pos_margin).relu_().mul_(tile.positive.view(torch.uint8))  # [a, r]
        return apart, (self.margin - tile.distance).relu_().mul_(tile.negative.view(torch.uint8))

    def _powered(
        self, excess: Float[Tensor, "a r"], sides: tuple[Bool[Tensor, "a r"], ...], wanted: bool
    ) -> TileLoss:
        """Σ |excess|^power, and its derivative by the distances, of which excess rises or falls by one."""
        if self.reduction == BY_ANCHOR:
            sums = excess.abs().sum(1) if self.power == 1 else torch.linalg.vecdot(excess, excess)
            slopes = excess.sign_() if self.power == 1 else excess.mul_(2)
            numbers = torch.stack([side.sum(1) for side in sides]).sum(0)
            return averaged_by_anchor(sums, numbers, slopes if wanted else None)
        if self.reduction == "mean_active":
            count = excess.count_nonzero()
        else:
            count = sides[0].sum() if len(sides) == 1 else sides[0].sum() + sides[1].sum()
        if self.power == 1:
            value = excess.abs().sum(dtype=widest_float(excess.device))
            return TileLoss(value, count, excess.sign_() if wanted else None)
        value = torch.linalg.vecdot(excess, excess).sum(dtype=widest_float(excess.device))
        return TileLoss(value, count, excess.mul_(2) if wanted else None)

    def _fits_marks(self, inputs: tuple[Tensor, ...], mined: Any) -> bool:
        """Whether triplets may become marks of pairs: on an accelerator, if no pair is on both sides."""
        known = is_remembered(mined, len(inputs[0]), len(inputs[-1]))
        return known and inputs[0].device.type != "cpu" and self.reduction != "none"

    def _apart(self, d_ap: Float[Tensor, "*u"]) -> Float[Tensor, "*u"]:
        return torch.relu(d_ap - self.pos_margin) ** self.power

    def _inside(self, d_an: Float[Tensor, "*v"]) -> Float[Tensor, "*v"]:
        return torch.relu(self.margin - d_an) ** self.power
