"""Triplet losses: the hinge, its square and the soft margin, over mined triplets or over all of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from copy import copy
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import softplus

from tercet.core.checks import as_bool, as_float, as_int, refusal
from tercet.losses.base import Head, reduced
from tercet.losses.rowwise import MinedPairs
from tercet.losses.tile_gradients import TileLoss, loss_from_pair_gradients
from tercet.pairwise.accumulate import Masked, summed, tiled_mean
from tercet.pairwise.budget import budget
from tercet.pairwise.distances import Distance
from tercet.pairwise.masked import kept_where, true_places
from tercet.pairwise.relations import Relation, SameLabel
from tercet.pairwise.tiles import PairTile, Pairwise, Tile
from tercet.pairwise.torch_modes import has_fixed_shapes, running_sums, widest_float, with_float64

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

        def terms(*inputs: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
            for pairs in pairwise.positive_pairs(*inputs):
                value, active = summed(self._losses_of_pairs(pairs, inputs[-1]).flatten(), "mean_active")
                yield value, active if self.reduction == "mean_active" else pairs.negative.sum()

        return tiled_mean("TripletMargin", self.reduction, terms, *pairwise.inputs)

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
        wide = widest_float(d.device)
        value, active = d.new_zeros((), dtype=wide), p.new_zeros(())
        by_positive, by_distance = torch.zeros_like(t), torch.zeros_like(d) if wanted else None
        for i in range(most):
            d_pn = d[p[:, i]]  # [a, r]
            kept = (has[:, i, None] > 0) & tile.negative
            losses, pulls = self._pulled(t[:, i, None] - torch.minimum(d, d_pn).masked_fill_(~kept, math.inf))
            value += losses.sum(dtype=wide)
            active += losses.count_nonzero()
            if by_distance is not None:
                by_positive[:, i] = pulls.sum(1)
                swapped = (d - d_pn).sign_().add_(1).mul_(0.5).mul_(pulls)
                by_distance -= pulls.sub_(swapped)
                by_distance.index_put_((p[:, i],), -swapped, accumulate=True)
        if by_distance is not None:
            by_distance.scatter_add_(1, p, by_positive)
        every = (tile.positive.sum(1) * tile.negative.sum(1)).sum()
        return TileLoss(value, active if self.reduction == "mean_active" else every, by_distance)

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
                value, active = summed(torch.stack(losses).flatten(), "mean_active")
                every = (tile.positive.sum(1) * negative.sum(1)).sum()
                yield value, active if self.reduction == "mean_active" else every

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

        def losses(*inputs: Tensor) -> Iterator[Tensor]:
            for a, p, n in self._chunks(inputs[0], inputs[-1], *rows, tables=not self.swap):
                yield self._losses(inputs[0], inputs[-1], a, p, n)

        whole = self._fits_one_graph(inputs, rows)
        return reduced("TripletMargin", self.reduction, losses, *inputs, one_graph=whole)

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
            tile.resolve(_ambiguous(t, p, tile))
            t, p = self._thresholds(tile, most)
        if has_fixed_shapes(tile.distance):
            d_an = tile.distance.masked_fill(~tile.negative, math.inf)  # [a, r]
        else:
            d_an = kept_where(tile.negative, tile.distance)
        few = most <= budget(d_an.device).positive_passes and not torch.compiler.is_compiling()
        if self.soft or few:
            value, active, by_positive, by_negative = self._by_positive(t, d_an)
        else:
            value, active, by_positive, by_negative = with_float64(_by_bucket, t, d_an, self.power)
        count = active if self.reduction == "mean_active" else (positives * tile.negative.sum(1)).sum()
        return TileLoss(value, count, by_negative.scatter_add_(1, p, by_positive) if wanted else None)

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
        """Σ ℓ, how many ℓ > 0, and ∂/∂D of positives [a, q] and of negatives [a, r], positive by positive."""
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
        return value.sum(), active, by_positive, by_negative


def _ambiguous(t: Float[Tensor, "a q"], p: Int[Tensor, "a q"], tile: Tile) -> Bool[Tensor, "a r"]:
    """The positives and negatives whose errors let a triplet be on either side of the margin."""
    assert tile.error is not None  # only a tile with an error is resolved
    d, error, q = tile.distance, 2 * tile.error, t.shape[1]
    ambiguous, positives = torch.zeros_like(tile.negative), torch.zeros_like(p, dtype=torch.bool)
    if q <= budget(d.device).positive_passes:
        for i in range(q):
            near = ((d - t[:, i, None]).abs_() <= error).logical_and_(tile.negative)
            ambiguous |= near
            positives[:, i] = near.any(1)
    else:
        rising = t.flip(1)
        first, last = torch.searchsorted(rising, d - error), torch.searchsorted(rising, d + error, right=True)
        ambiguous = (first < last).logical_and_(tile.negative)
        ends = torch.zeros(len(t), q + 1, dtype=torch.int64, device=t.device)
        ends.scatter_add_(1, first, ambiguous.long()).scatter_add_(1, last, -ambiguous.long())
        positives = (ends.cumsum(1)[:, :q] > 0).flip(1)
    return ambiguous | torch.zeros_like(ambiguous).scatter_(1, p, positives).logical_and_(tile.positive)


def _by_bucket(t: Float[Tensor, "a q"], d: Float[Tensor, "a r"], power: int) -> tuple[Tensor, ...]:
    """`_by_positive` of a hinge, without a pass for each positive: O(r log q) an anchor.

    The q thresholds t of an anchor cut its negatives into buckets, b = #{i : t_i ≤ d}. For a positive at t,
    the k negatives nearer than t, with sums S1 of d and S2 of d²: Σ_n h(t − d_n) = k·t − S1 and
    Σ_n h(t − d_n)² = k·t² − 2t·S1 + S2. The gradient by D(a,p) is k, or 2(k·t − S1); by D(a,n), minus the
    number of positives beyond it, or −2 Σ (t − d_n) over those.
    """
    q = t.shape[1]
    rising = t.flip(1)
    bucket = torch.searchsorted(rising, d, right=True)  # [a, r]
    far = bucket == q  # beyond every positive, or no negative at all
    t, d64 = rising.double(), d.masked_fill(far, 0.0).double()

    def below(v: Tensor) -> Tensor:
        """For each threshold, the sum of v over the negatives nearer than it."""
        sums = torch.zeros(len(v), q + 1, dtype=v.dtype, device=v.device)
        return running_sums(sums.scatter_add_(1, bucket, v), 1)[:, :q]  # [a, q]

    k, s1 = below(torch.ones_like(d64)), below(d64)
    t.masked_fill_(k == 0, 0.0)
    excess = k * t - s1
    beyond = q - bucket  # [a, r]
    if power == 1:
        value, by_positive, by_negative = excess, k, -beyond
    else:
        falling = torch.cat([t, torch.zeros_like(t[:, :1])], dim=1).flip(1)
        sums = running_sums(falling, 1).flip(1)  # [a, q + 1]
        value = t * (excess - s1) + below(d64 * d64)
        by_positive, by_negative = 2 * excess, -2 * (sums.gather(1, bucket) - beyond * d64)
    by_positive = by_positive.flip(1).to(d.dtype)
    return value.sum(), k.sum().long(), by_positive, by_negative.to(d.dtype)
