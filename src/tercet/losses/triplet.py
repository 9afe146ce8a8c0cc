"""Triplet losses: the hinge, its square and the soft margin, over mined triplets or over all of them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn.functional import softplus

from tercet.checks import choice, real, refusal, whole
from tercet.distances import Distance, as_distance
from tercet.pairwise import (
    REDUCTIONS,
    PairTile,
    Pairwise,
    Tile,
    features,
    mined_rows,
    summed,
    tile_height,
    tiled_mean,
)
from tercet.tuples import References

__all__ = ["TripletMargin"]


class TripletMargin(nn.Module):
    """How much nearer each negative is than it should be, averaged over triplets.

    ℓ = h(D(a,p) − D(a,n) + m)^power, h(z) = max(0, z); with `soft`, ℓ = log(1 + exp(D(a,p) − D(a,n)))

    The hinge is taken for each triplet and then averaged. Without `mined`, the loss is that of all triplets,
    exactly, and no list of them is made: the plain hinge takes O(N² log N) by sorted prefix sums, `soft`
    and `swap` O(number of triplets), each in the memory of a few tiles.

    Embeddings are taken as they are: a margin of 0.2 presumes unit vectors, or `distance="cosine"`.

    Args:
        margin: m, in units of the distance; None for 0.2. `soft` has none and refuses one.
        distance: a `Distance` or its name. FaceNet and Deep Ranking take `"squared_euclidean"`.
        power: 1, or 2 for the squared hinge.
        soft: the soft margin instead of the hinge.
        swap: take the nearer of D(a,n) and D(p,n) for D(a,n); with references, both p and n are columns.
        reduction: `"mean_active"` over the triplets with ℓ > 0, `"mean"` over all, `"sum"`, or `"none"`
            for one loss a mined triplet.
        tile_rows: rows computed at once; None for as many as fit the memory of a tile. It changes no result.

    Raises:
        ValueError: an option out of range, or two that contradict each other.

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [1.5], [9.0]], requires_grad=True)
        >>> loss = TripletMargin(margin=1.0, reduction="sum")(x, torch.tensor([0, 0, 1, 1]))
        >>> loss.backward()
        >>> loss.item(), x.grad.flatten().tolist()
        (17.5, [0.0, 5.0, -7.0, 2.0])

    Reference:
        Schroff, Kalenichenko & Philbin, "FaceNet", 2015 (hinge). Hermans, Beyer & Leibe, "In defense of the
        triplet loss for person re-identification", 2017 (soft margin, `mean_active`). Balntas, Riba, Ponsa &
        Mikolajczyk, "Learning local feature descriptors with triplets and shallow convolutional neural
        networks", 2016 (swap).
    """

    def __init__(
        self,
        margin: float | None = None,
        *,
        distance: Distance | str = "euclidean",
        power: int = 1,
        soft: bool = False,
        swap: bool = False,
        reduction: str = "mean_active",
        tile_rows: int | None = None,
    ) -> None:
        super().__init__()
        owner = "TripletMargin"
        if soft and margin is not None:
            raise refusal(owner, "margin", margin, "no margin with soft=True", "leave one of the two away")
        if soft and power != 1:
            raise refusal(owner, "power", power, "1 with soft=True", "leave one of the two away")
        self.margin = 0.0 if soft else 0.2 if margin is None else real(owner, "margin", margin, minimum=0)
        self.power = whole(owner, "power", power, minimum=1, maximum=2)
        self.soft = soft
        self.swap = swap
        self.reduction = choice(owner, "reduction", reduction, REDUCTIONS)
        self.tile_rows = None if tile_rows is None else whole(owner, "tile_rows", tile_rows, minimum=1)
        self.distance = as_distance(owner, distance, gradient=True)

    def forward(
        self,
        embeddings: Shaped[Tensor, "n d"],
        labels: Shaped[Tensor, " n"] | None = None,
        mined: Any = None,
        *,
        ids: Shaped[Tensor, " n"] | None = None,
        ref: References | None = None,
    ) -> Float[Tensor, "..."]:
        """The loss of the mined triplets, or of all.

        Args:
            embeddings: [n, d] floats.
            labels: [n] integers or bools; read only without `mined`.
            mined: `Triplets`, or any three index tensors [t]; None for all triplets.
            ids: [n] integers, which image each row is; read only without `mined`.
            ref: the columns that positives and negatives are rows of; None for the batch itself.

        Returns:
            A scalar in float32 (float64 for float64 embeddings): 0, with a graph whose gradient is 0, where
            there are no triplets; [t] with `reduction="none"`.

        Raises:
            ValueError: neither labels nor triplets, what `Pairwise` refuses, or rows that do not exist.
        """
        if mined is not None:
            return self._of_mined(embeddings, mined, ref)
        if labels is None:
            raise refusal("TripletMargin", "labels", None, "labels, or mined triplets")
        if self.reduction == "none":
            way_out = "pass BatchAll()(embeddings, labels) to list every one"
            raise refusal("TripletMargin", "mined", None, 'mined triplets with reduction="none"', way_out)
        pairwise = Pairwise(
            "TripletMargin",
            embeddings,
            labels,
            ids=ids,
            ref=ref,
            distance=self.distance,
            tile_rows=self.tile_rows,
        )

        def terms(*inputs: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
            if self.soft or self.swap:
                for pairs in pairwise.positive_pairs(*inputs):
                    losses = self._losses_of_pairs(pairs, inputs[-1])[pairs.negative]
                    yield summed(losses, self.reduction)
            else:
                for tile in pairwise.tiles(*inputs):
                    yield _all_hinges(tile, self.margin, self.power, self.reduction == "mean_active")

        return tiled_mean(self.reduction, terms, *pairwise.inputs)

    def extra_repr(self) -> str:
        """The options, for `print`."""
        kind = "soft" if self.soft else f"margin={self.margin:g}, power={self.power}"
        return f"{kind}, swap={self.swap}, distance={self.distance}, reduction={self.reduction!r}"

    def _of_mined(self, embeddings: Tensor, mined: Any, ref: References | None) -> Tensor:
        inputs = features("TripletMargin", embeddings, self.distance, ref)
        n, r, device = len(inputs[0]), len(inputs[-1]), inputs[0].device
        rows = mined_rows("TripletMargin", mined, n, r, device, kinds=(3,))
        if self.reduction == "none":
            return self._losses(inputs[0], inputs[-1], *rows)
        height = tile_height("TripletMargin", inputs[0].shape[1], inputs[0].dtype, self.tile_rows)

        def terms(*inputs: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
            for a, p, n in zip(*(index.split(height) for index in rows)):
                yield summed(self._losses(inputs[0], inputs[-1], a, p, n), self.reduction)

        return tiled_mean(self.reduction, terms, *inputs)

    def _losses(self, x: Tensor, y: Tensor, a: Tensor, p: Tensor, n: Tensor) -> Float[Tensor, " t"]:
        d_an = self.distance.paired(x[a], y[n])
        if self.swap:
            d_an = torch.minimum(d_an, self.distance.paired(y[p], y[n]))
        return self._loss(self.distance.paired(x[a], y[p]), d_an)

    def _losses_of_pairs(self, pairs: PairTile, y: Tensor) -> Float[Tensor, "c r"]:
        d_an = pairs.d_an
        if self.swap:
            once, again = torch.unique(pairs.positive, return_inverse=True)
            d_an = torch.minimum(d_an, self.distance.tile(y[once], y)[again])  # [c, r]
        return self._loss(pairs.d_ap[:, None], d_an)

    def _loss(self, d_ap: Tensor, d_an: Tensor) -> Tensor:
        if self.soft:
            return softplus(d_ap - d_an)
        return torch.relu(d_ap + self.margin - d_an) ** self.power


def _all_hinges(
    tile: Tile, margin: float, power: int, active: bool
) -> tuple[Float[Tensor, ""], Shaped[Tensor, ""]]:
    """Σ h(D(a,p) + m − D(a,n))^power over all triplets of a tile, and their number, without listing them.

    For a positive at t = D(a,p) + m, the k negatives nearer than t, with prefix sums S1 of d and S2 of d²:
    Σ_n h(t − d_n) = k·t − S1_k and Σ_n h(t − d_n)² = k·t² − 2t·S1_k + S2_k. The gradient by D(a,p) is k, or
    2(k·t − S1_k); by D(a,n), minus the number of positives beyond it, or −2 Σ (t − d_n) over those.

    Args:
        tile: a anchors against r columns.
        margin: m.
        power: 1 or 2.
        active: count the triplets with a loss above 0 instead of all.

    Returns:
        The sum in float64, whose gradient flows to `tile.distance`, and the int64 count.
    """
    weights, value, k = _hinge_weights(tile, margin, power)
    count = k.sum() if active else (tile.positive.sum(1) * tile.negative.sum(1)).sum()
    slope = (weights * tile.distance).sum(dtype=torch.float64)
    return value + (slope - slope.detach()), count


@torch.no_grad()
def _hinge_weights(tile: Tile, margin: float, power: int) -> tuple[Tensor, Tensor, Tensor]:
    """∂/∂D of the sum [a, r], the sum, and k for each anchor and positive [a, q]."""
    most = int(tile.positive.sum(1).max())
    d_ap, p = tile.distance.masked_fill(~tile.positive, -math.inf).topk(most, dim=1)  # [a, q]
    d_an, n = tile.distance.masked_fill(~tile.negative, math.inf).sort(dim=1)  # [a, r]
    k = torch.searchsorted(d_an, d_ap + margin)  # [a, q], 0 where an anchor has fewer positives
    t = (d_ap + margin).masked_fill(k == 0, 0.0).double()
    d = d_an.masked_fill(d_an == math.inf, 0.0).double()
    s1 = _prefix(d).gather(1, k)  # [a, q]
    nearer = _beyond(torch.ones_like(t), k, d)  # [a, r], how many positives each negative is nearer than
    if power == 1:
        value, by_positive, by_negative = (k * t - s1).sum(), k.double(), -nearer
    else:
        value = (k * t * t - 2 * t * s1 + _prefix(d * d).gather(1, k)).sum()
        by_positive, by_negative = 2 * (k * t - s1), -2 * (_beyond(t, k, d) - nearer * d)
    weights = torch.zeros_like(d).scatter_(1, n, by_negative).scatter_add_(1, p, by_positive)
    return weights.to(tile.distance.dtype), value, k


def _prefix(d: Float[Tensor, "a r"]) -> Float[Tensor, "a s"]:
    """S with S_k the sum of the first k numbers of each row."""
    return torch.cat([torch.zeros_like(d[:, :1]), d.cumsum(1)], dim=1)


def _beyond(
    t: Float[Tensor, "a q"], k: Shaped[Tensor, "a q"], d: Float[Tensor, "a r"]
) -> Float[Tensor, "a r"]:
    """For the j-th nearest negative, the sum of t over the positives that lie beyond it: those with k > j."""
    bins = torch.zeros(d.shape[0], d.shape[1] + 1, dtype=d.dtype, device=d.device)
    return bins.scatter_add_(1, k, t).flip(1).cumsum(1).flip(1)[:, 1:]
