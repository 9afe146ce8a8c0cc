"""Triplet losses: the hinge, its square and the soft margin, over mined triplets or over all of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from copy import copy
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import softplus

from tercet.core.checks import as_bool, as_float, as_int, refusal
from tercet.losses.base import Head, anchor_shares, reduced
from tercet.losses.hinge_sums import ambiguous, by_bucket, triplets_of
from tercet.losses.rowwise import MinedPairs
from tercet.losses.tile_gradients import TileLoss, averaged_by_anchor, loss_from_pair_gradients
from tercet.pairwise.accumulate import BY_ANCHOR, Masked, summed, tiled_mean
from tercet.pairwise.budget import budget
from tercet.pairwise.distances import Distance
from tercet.pairwise.masked import kept_where, true_places
from tercet.pairwise.relations import Relation, SameLabel
from tercet.pairwise.tiles import PairTile, Pairwise, Tile
from tercet.pairwise.torch_modes import has_fixed_shapes, widest_float, with_float64

__all__ = ["TripletMargin"]


class TripletMargin(Head):
    """The triplet loss: how far each negative falls short of being m farther than the positive.

    ℓ = h(D(a,p) − D(a,n) + m)^power, h(z) = max(0, z); with `soft`, ℓ = log(1 + exp(D(a,p) − D(a,n) + m))

    The hinge h is taken for each triplet, and then averaged. Without `mined`, the loss is that of all
    triplets, exactly, and no list of them is made: the plain hinge takes O(N²) for a few positives an anchor
    and never more than O(N² log N), `soft` and `swap` O(number of triplets), each in the memory of a few
    tiles. From `Pairs` the triplets are each positive pair with each negative pair of its anchor, every
    distinct pair once. They are summed in the same way, and listed for `reduction="none"` alone.

    Embeddings are not normalised, save by `"cosine"`: a margin of 0.2 is meant for unit vectors.

    Args:
        margin: m, at least 0, in units of the distance; None for 0.2, and for 0 with `soft`.
        distance: D: `"euclidean"` ‖x − y‖, `"squared_euclidean"` ‖x − y‖² (FaceNet, Deep Ranking), `"cosine"`
            1 − cos(x, y), `"dot"` −x·y, or a `Distance` with a gradient, such as `Mahalanobis`.
        power: 1, or 2 for the squared hinge. With `soft` it is 1.
        soft: True for the soft margin log(1 + exp(z)) in place of the hinge; with `swap` too. Every ℓ is then
            above 0, so `"mean_active"` is the mean over all.
        swap: True to use the smaller of D(a,n) and D(p,n) in place of D(a,n). With references, p and n are
            both columns.
        relation: which columns are positive and which negative for a row, by the labels: `SameLabel()`,
            `SharedLabel()`, `CrossGroup()`, `Graded(positive, negative)`, or a `Relation`.
        reduction: `"mean_active"` for the mean over the triplets with ℓ > 0, `"mean"` over all triplets,
            `"mean_per_anchor"` for the mean over the anchors that have a triplet of the mean of all theirs,
            `"sum"`, or `"none"` for one loss for each mined triplet, of `Pairs` by anchor, positive and
            negative.
        tile_rows: the anchors compared at once, at least 1; None for as many as fit one table of distances.
            It changes the result by rounding alone.
        check_finite: when embeddings that are NaN, infinite or too large are refused. `"later"`: at once on a
            processor; an accelerator answers without being waited for, and the next call on it raises what
            was wrong. `"now"`: at once, and an accelerator is waited for. `"never"`: no check. The row
            numbers of `mined` are checked at once in any case.

    Returns:
        From the call `head(embeddings, labels=None, mined=None, *, ids=None, ref=None)`, whose arguments
        `forward` lists: a scalar, 0 where there is nothing to compare; or [t] losses with `reduction="none"`.

    Raises:
        ValueError: an option out of range, or two that contradict each other; when called, what `forward`
            lists.

    Example:
        >>> import torch
        >>> from tercet import TripletMargin
        >>> x = torch.tensor([[0.0], [1.0], [1.5], [9.0]], requires_grad=True)
        >>> loss = TripletMargin(margin=1.0, reduction="sum")(x, torch.tensor([0, 0, 1, 1]))
        >>> loss.backward()
        >>> loss.item(), x.grad.flatten().tolist()
        (17.5, [0.0, 5.0, -7.0, 2.0])

    Reference:
        Schroff, Kalenichenko & Philbin, "FaceNet: a unified embedding for face recognition and clustering",
        2015 (hinge). Hermans, Beyer & Leibe, "In defense of the triplet loss for person re-identification",
        2017 (soft margin, `mean_active`). Balntas, Riba, Ponsa & Mikolajczyk, "Learning local feature
        descriptors with triplets and shallow convolutional neural networks", 2016 (swap).
    """

    _averages_by_anchor = True
    _tuples = "triplets"
    _listing = "BatchAll()(embeddings, labels) to list every one"

    def __init__(
        self,
        margin: float | None = None,
        *,
        distance: Distance | str = "euclidean",
        power: int = 1,
        soft: bool = False,
        swap: bool = False,
        relation: Relation = SameLabel(),  # noqa: B008
        reduction: str = "mean_active",
        tile_rows: int | None = None,
        check_finite: str = "later",
    ) -> None:
        super().__init__(distance, relation, reduction, tile_rows, check_finite)
        caller = "TripletMargin"
        self.soft, self.swap = as_bool(caller, "soft", soft), as_bool(caller, "swap", swap)
        if soft and power != 1:
            raise refusal(caller, "power", power, "1 with soft=True", "leave one of the two away")
        default = 0.0 if self.soft else 0.2
        self.margin = default if margin is None else as_float(caller, "margin", margin, minimum=0)
        self.power = as_int(caller, "power", power, minimum=1, maximum=2)

    def _of_all(self, pairwise: Pairwise | MinedPairs) -> Float[Tensor, ""]:
        """The loss of all triplets, or of all that are joined of listed pairs."""
        most = pairwise.most_positives
        if not self.swap:
            loss_of = partial(self._loss_of_all, most)
            return loss_from_pair_gradients("TripletMargin", pairwise, self.reduction, loss_of)

        device, n = pairwise.inputs[0].device, len(pairwise.inputs[0])
        if most and most <= budget(device).positive_passes:
            if len(pairwise.inputs) == 1 and pairwise.tile_rows >= n:
                loss_of = partial(self._loss_of_all_swapped, most)
                return loss_from_pair_gradients("TripletMargin", pairwise, self.reduction, loss_of)
            return self._of_all_swapped(pairwise, most)
        if pairwise.given_tile_rows is None:
            r, triplets = max(1, len(pairwise.inputs[-1])), budget(device).swap_triplets
            pairwise = copy(pairwise)
            pairwise.tile_rows = min(pairwise.tile_rows, max(triplets // r, 2 * n))

        by_anchor = self.reduction == BY_ANCHOR
        shares = self._shares(pairwise) if by_anchor else None

        def terms(*inputs: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
            for pairs in pairwise.positive_pairs(*inputs):
                losses = self._losses_of_pairs(pairs, inputs[-1])
                if shares is not None:
                    losses = losses * shares[pairs.anchor, None]
                value, active = summed(losses.flatten(), "mean_active")
                yield value, active if self.reduction == "mean_active" else pairs.negative.sum()

        reduction = "sum" if by_anchor else self.reduction
        return tiled_mean("TripletMargin", reduction, terms, *pairwise.inputs)

    def _shares(self, compared: Pairwise | MinedPairs) -> Float[Tensor, " n"]:
        """What a triplet of each anchor counts in the mean over anchors of each anchor's mean."""
        x = compared.inputs[0]
        numbers = [triplets_of(*compared.sides(rows)) for rows in compared.spans()]
        every = torch.cat([x.new_zeros(0, dtype=torch.int64), *numbers])
        return (every.clamp(min=1) * every.count_nonzero().clamp(min=1)).to(x.dtype).reciprocal_()

    def _loss_of_tile(self, pairwise: Pairwise) -> tuple[str, Callable[[Tile, bool], TileLoss]] | None:
        """All triplets of the tile, of its distances alone without `swap`."""
        loss_of = partial(self._loss_of_all, pairwise.most_positives)
        return None if self.swap else (self.reduction, loss_of)

    def _loss_of_all_swapped(self, most: int, tile: Tile, wanted: bool) -> TileLoss:
        """All triplets of a tile of all rows against themselves with `swap`, positive by positive.

        D(p, n) is an entry of the same table, in row p. Where it is the smaller one, it has the gradient;
        where both are equal, each has half.

        Args:
            most: how many positives a row has at most.
            tile: all rows against themselves.
            wanted: whether pair gradients are.
        """
        d = tile.distance
        has, p = tile.positive.float().topk(most, dim=1)  # [a, q]
        t = d.gather(1, p) + self.margin
        wide, numbers = widest_float(d.device), triplets_of(tile.positive, tile.negative)
        shares = numbers.clamp(min=1).to(d.dtype).reciprocal_() if self.reduction == BY_ANCHOR else None
        value, active = d.new_zeros((), dtype=wide), p.new_zeros(())
        by_positive, by_distance = torch.zeros_like(t), torch.zeros_like(d) if wanted else None
        for i in range(most):
            d_pn = d[p[:, i]]  # [a, r]
            kept = (has[:, i, None] > 0) & tile.negative
            losses, pulls = self._pulled(t[:, i, None] - torch.minimum(d, d_pn).masked_fill_(~kept, math.inf))
            if shares is not None:
                losses, pulls = losses * shares[:, None], pulls * shares[:, None]
            value += losses.sum(dtype=wide)
            active += losses.count_nonzero()
            if by_distance is not None:
                by_positive[:, i] = pulls.sum(1)
                swapped = (d - d_pn).sign_().add_(1).mul_(0.5).mul_(pulls)
                by_distance -= pulls.sub_(swapped)
                by_distance.index_put_((p[:, i],), -swapped, accumulate=True)
        if by_distance is not None:
            by_distance.scatter_add_(1, p, by_positive)
        if self.reduction != "mean_active":
            active = numbers.sum() if shares is None else numbers.count_nonzero()
        return TileLoss(value, active, by_distance)

    def _of_all_swapped(self, pairwise: Pairwise | MinedPairs, most: int) -> Float[Tensor, ""]:
        """The loss of all triplets with `swap`, positive by positive, in shapes that the host knows.

        Args:
            pairwise: rows and columns.
            most: how many positives a row has at most.
        """
        if pairwise.given_tile_rows is None:
            pairwise = copy(pairwise)  # the graph has about eight tables for each positive
            pairwise.tile_rows = max(1, pairwise.tile_rows // (8 * most))

        def terms(*inputs: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
            for tile in pairwise.tiles(*inputs):
                d, negative, y = tile.distance, tile.negative, inputs[-1]
                has, p = tile.positive.float().topk(most, dim=1)  # [a, q]
                losses = []
                for i in range(most):
                    d_pn = self.distance.tile(y[p[:, i]], y)
                    kept = (has[:, i, None] > 0) & negative
                    d_an = torch.minimum(d, d_pn).masked_fill(~kept, math.inf)
                    losses.append(self._loss(d.gather(1, p[:, i, None]), d_an))
                table, numbers = torch.stack(losses), triplets_of(tile.positive, negative)
                if self.reduction == BY_ANCHOR:
                    yield averaged_by_anchor(table.sum((0, 2)), numbers, None)[:2]
                    continue
                value, active = summed(table.flatten(), "mean_active")
                yield value, active if self.reduction == "mean_active" else numbers.sum()

        return tiled_mean("TripletMargin", self.reduction, terms, *pairwise.inputs)

    def _of_mined(
        self, inputs: tuple[Tensor, ...], labels: Tensor | None, mined: Any
    ) -> Float[Tensor, "..."]:
        """The loss of listed triplets, or of the triplets that listed pairs join to."""
        rows = self._listed(inputs, mined)
        if len(rows) == 4:
            pairs = MinedPairs(inputs, rows, self.distance, self.tile_rows)
            if self.reduction != "none":
                return self._of_all(pairs)
            rows = pairs.triplets()

        by_anchor = self.reduction == BY_ANCHOR
        shares = anchor_shares(inputs[0], rows[0]) if by_anchor else None

        def losses(*inputs: Tensor) -> Iterator[Tensor]:
            for a, p, n in self._chunks(inputs[0], inputs[-1], *rows, tables=not self.swap):
                part = self._losses(inputs[0], inputs[-1], a, p, n)
                yield part if shares is None else part * shares[a]

        whole = self._fits_one_graph(inputs, rows)
        reduction = "sum" if by_anchor else self.reduction
        return reduced("TripletMargin", reduction, losses, *inputs, one_graph=whole)

    def _losses(self, x: Tensor, y: Tensor, a: Tensor, p: Tensor, n: Tensor) -> Float[Tensor, " t"]:
        d_ap, d_an = self._listed_distances(x, y, a, p, n)
        if self.swap:
            d_an = torch.minimum(d_an, *self._listed_distances(y, y, p, n))
        return self._loss(d_ap, d_an)

    def _losses_of_pairs(self, pairs: PairTile, y: Tensor) -> Float[Tensor, "c r"]:
        """The losses of some pairs with every column; 0 with one that is no negative."""
        d_an = pairs.d_an
        if self.swap:
            once, again = torch.unique(pairs.positive, return_inverse=True)
            d_an = torch.minimum(d_an, self.distance.tile(y[once], y)[again])  # [c, r]
        return self._loss(pairs.d_ap[:, None], d_an.masked_fill(~pairs.negative, math.inf))

    def _loss(self, d_ap: Tensor, d_an: Tensor) -> Tensor:
        z = (d_ap + self.margin if self.margin else d_ap) - d_an  # on an accelerator each sum is a launch
        return softplus(z) if self.soft else torch.relu(z) ** self.power

    def _loss_of_all(self, most: int | None, tile: Tile, wanted: bool) -> TileLoss:
        """All triplets of a tile: Σ ℓ(t − D(a,n)), t = D(a,p) + m, over positives and negatives.

        `most` is how many positives a row has at most, where the host knows it.
        """
        positives = tile.positive.sum(1)
        if most is None:
            # The hinge sorts every column of an accelerator sooner than it waits for their number.
            read = self.soft or not has_fixed_shapes(positives)
            most = int(positives.max()) if read else tile.positive.shape[1]
        t, p = self._thresholds(tile, most)
        if tile.error is not None and not self.soft:  # which triplets are active is decided as by a miner
            tile.resolve(ambiguous(t, p, tile))
            t, p = self._thresholds(tile, most)
        if has_fixed_shapes(tile.distance):
            d_an = tile.distance.masked_fill(~tile.negative, math.inf)  # [a, r]
        else:
            d_an = kept_where(tile.negative, tile.distance)
        few = most <= budget(d_an.device).positive_passes and not torch.compiler.is_compiling()
        if self.soft or few:
            value, active, by_positive, by_negative = self._by_positive(t, d_an)
        else:
            value, active, by_positive, by_negative = with_float64(by_bucket, t, d_an, self.power)
        pulls = by_negative.scatter_add_(1, p, by_positive) if wanted else None
        if self.reduction == BY_ANCHOR:
            return averaged_by_anchor(value.flatten(1).sum(1), positives * tile.negative.sum(1), pulls)
        count = active if self.reduction == "mean_active" else (positives * tile.negative.sum(1)).sum()
        return TileLoss(value.sum(), count, pulls)

    def _thresholds(self, tile: Tile, most: int) -> tuple[Float[Tensor, "a q"], Int[Tensor, "a q"]]:
        """D(a,p) + m of each row's positives, falling, and their columns.

        A missing positive stands at −∞, a missing negative at ∞: their triplets have no loss and no gradient.
        """
        d, width = tile.distance, tile.positive.shape[1]
        sizes = budget(d.device)
        small = d.numel() <= sizes.topk_numbers or most * sizes.dense_share > width
        if has_fixed_shapes(d) or small:
            t, p = d.masked_fill(~tile.positive, -math.inf).topk(most, dim=1)
            return t.add_(self.margin), p
        i, j = true_places(tile.positive)  # few: their places take less time than a pass over the table
        first = torch.searchsorted(i, torch.arange(len(d)))
        at = torch.arange(len(i)).sub_(first[i])  # which of its row's positives each is
        t, p = d.new_full((len(d), most), -math.inf), first.new_zeros(len(d), most)
        t[i, at], p[i, at] = d[i, j], j
        t, order = t.sort(1, descending=True)
        return t.add_(self.margin), p.gather(1, order)

    def _is_traced(self, embeddings: Any) -> bool:
        # Of the soft margin and of `swap` each triplet is a number inside a graph.
        known = super()._is_traced(embeddings)
        cube = len(embeddings) ** 3 if self.soft or self.swap else 0
        return known and cube <= budget(embeddings.device).traced_numbers

    def _traced_losses(self, a: Tensor, p: Tensor, n: Tensor) -> Float[Tensor, " t"]:
        d_ap, d_an = self.distance.paired(a, p), self.distance.paired(a, n)
        return self._loss(d_ap, torch.minimum(d_an, self.distance.paired(p, n)) if self.swap else d_an)

    def _traced_sum(self, tile: Tile, labels: Tensor, x: Tensor) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
        """The sum over all triplets, and how many the mean is over."""
        d = tile.distance
        if not (self.soft or self.swap):
            loss = self._loss_of_all(None, tile._replace(distance=d.detach().clone()), True)
            assert loss.pair_gradients is not None  # they were asked for
            by_distance = (loss.pair_gradients * (d - d.detach())).sum()  # 0 to the loss
            return loss.value + by_distance, loss.count
        d_an = torch.minimum(d[:, None], d) if self.swap else d[:, None]  # [a, p, n] or [a, 1, n]
        triplets = tile.positive[:, :, None] & tile.negative[:, None]
        return summed(Masked(self._loss(d[:, :, None], d_an), triplets), self.reduction)

    def _pulled(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """ℓ(z) and its derivative, both above 0 where z is large; z is written over."""
        if self.soft:
            return softplus(z), z.sigmoid_()
        if self.power == 1:
            losses = z.relu_()
            return losses, z.sign()
        pulls = z.relu_()
        return pulls.square(), pulls.mul_(2)

    def _by_positive(self, t: Float[Tensor, "a q"], d: Float[Tensor, "a r"]) -> tuple[Tensor, ...]:
        """Σ ℓ as [a, 1], how many ℓ > 0, ∂/∂D of positives [a, q] and negatives [a, r], by positive."""
        value = torch.zeros(len(d), dtype=widest_float(d.device), device=d.device)
        active = torch.zeros((), dtype=torch.int64, device=d.device)
        by_positive, by_negative, z = torch.zeros_like(t), torch.zeros_like(d), torch.empty_like(d)
        for i in range(t.shape[1]):
            # Into the same memory each time: fresh memory would cost a pass more.
            losses, pulls = self._pulled(torch.sub(t[:, i, None], d, out=z))  # [a, r]
            value += losses.sum(1)
            count = by_positive[:, i] = pulls.sum(1)
            if d.device.type != "cpu":  # one launch
                count = losses.count_nonzero()
            elif self.soft or self.power == 2:
                count = losses.sign_().sum(1)  # where ℓ > 0, in an eighth of the time of `count_nonzero`
            active += count if count.ndim == 0 else count.sum(dtype=torch.int64)
            by_negative -= pulls
        return value[:, None], active, by_positive, by_negative
