"""The hinge of all triplets of a tile by sorting, and the triplets whose side of the margin is rounding."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tercet.pairwise.budget import budget
from tercet.pairwise.tiles import Tile
from tercet.pairwise.torch_modes import running_sums

__all__ = ["ambiguous", "by_bucket", "triplets_of"]


def triplets_of(positive: Bool[Tensor, "a r"], negative: Bool[Tensor, "a r"]) -> Int[Tensor, " a"]:
    """How many triplets each anchor has."""
    return positive.sum(1) * negative.sum(1)


def ambiguous(t: Float[Tensor, "a q"], p: Int[Tensor, "a q"], tile: Tile) -> Bool[Tensor, "a r"]:
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


def by_bucket(t: Float[Tensor, "a q"], d: Float[Tensor, "a r"], power: int) -> tuple[Tensor, ...]:
    """`TripletMargin._by_positive` of a hinge, Σ ℓ as [a, q], in O(r log q) an anchor whatever q is.

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
    return value, k.sum().long(), by_positive, by_negative.to(d.dtype)
