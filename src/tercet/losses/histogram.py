"""Histogram losses: how two distributions of similarity overlap, and how well each query ranks its positives.

Both count softly: a number is shared linearly between the two nodes next to it, so that a count has a
gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor

from tercet.core.checks import as_int, refusal
from tercet.losses.base import Head, distinct, pairs_of
from tercet.losses.rowwise import MinedPairs
from tercet.pairwise.accumulate import tiled_mean, tiled_sum
from tercet.pairwise.distances import negative_cosine
from tercet.pairwise.relations import Relation, SameLabel
from tercet.pairwise.tiles import Pairwise, Tile, tile_height
from tercet.pairwise.torch_modes import has_fixed_shapes, running_sums, widest_float, with_float64

__all__ = ["FastAP", "Histogram"]

_MOST_BINS = 100_000  # each is then a hundred times as wide as the rounding of a cosine in float32
_Parts = Callable[..., Iterator[tuple[Tensor, Tensor]]]


class Histogram(Head):
    """The histogram loss: the probability that a negative pair is more similar than a positive one.

    L = Σ_r h⁻_r φ⁺_r, φ⁺_r = Σ_{q≤r} h⁺_q, h_r = (1/|S|) Σ_{s∈S} δ_r(s)

    S⁺ and S⁻ are the cosine similarities of positive and of negative pairs, each pair once. R bins of width
    Δ = 2/R divide [−1, 1]: a similarity between the nodes t_r and t_{r+1} adds (t_{r+1} − s)/Δ to h_r and
    (s − t_r)/Δ to h_{r+1}; s = 1 is on the last node. The gradient is that of these weights: in bin r a
    positive has h⁻_r / (|S⁺|Δ) and a negative h⁺_{r+1} / (|S⁻|Δ). At a node, to within rounding, it is the
    derivative from below, that of the bin which ends there; at s = −1 that of the first bin. One pass over
    the similarities makes the histograms and another the gradient, in the memory of a few tiles.

    From mined triplets the pairs (a, p) and (a, n) are taken. Each distinct pair counts once, and (i, j) and
    (j, i) are one pair where the columns are the batch. The histograms are those of all pairs together, so
    columns from `gather` are refused.

    Args:
        bins: R, from 1 to 100,000. Texts that count R nodes have R − 1 bins.
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
        >>> x = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])  # S⁺ = {0.8}, S⁻ = {0, 0.6}
        >>> round(Histogram(bins=4)(x, torch.tensor([0, 0, 1])).item(), 4)
        0.26

    Reference:
        Ustinova & Lempitsky, "Learning deep embeddings with histogram loss", 2016.
    """

    _sums_over_anchors = False

    def __init__(
        self,
        bins: int = 100,
        *,
        relation: Relation = SameLabel(),  # noqa: B008
        tile_rows: int | None = None,
        check_finite: str = "later",
    ) -> None:
        super().__init__(negative_cosine, relation, "mean", tile_rows, check_finite)
        self.bins = as_int("Histogram", "bins", bins, minimum=1, maximum=_MOST_BINS)

    def _of_all(self, pairwise: Pairwise) -> Float[Tensor, ""]:
        """The loss of all pairs."""
        # Where (i, j) and (j, i) are one pair they double every count, which changes no share, and the
        # columns' part of the gradient is the rows' part once more.
        once = pairwise.is_symmetric

        def parts(*inputs: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
            for tile in pairwise.tiles(*inputs, *((inputs[0].detach(),) if once else ())):
                yield tile.distance, _sides(tile)

        return self._loss(parts, pairwise.inputs, fold=2 if once else 1)

    def _of_mined(self, inputs: tuple[Tensor, ...], labels: Tensor | None, mined: Any) -> Float[Tensor, ""]:
        """The loss of listed pairs."""
        rows = self._listed(inputs, mined)
        if inputs[0].device.type != "cpu":
            return self._of_marks(MinedPairs(inputs, rows, self.distance, self.tile_rows))
        pairs = [distinct(i, j, len(inputs[-1]), unordered=len(inputs) == 1) for i, j in pairs_of(rows)]

        def parts(*inputs: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
            for side, listed in enumerate(pairs, start=1):
                for a, b in self._chunks(inputs[0], inputs[-1], *listed):
                    (v,) = self._listed_distances(inputs[0], inputs[-1], a, b)
                    yield v, torch.full_like(a, side)

        return self._loss(parts, inputs)

    def _of_marks(self, pairs: MinedPairs) -> Float[Tensor, ""]:
        """The loss of pairs that are marks in a table: those are distinct, and no accelerator is read for it.

        Where (i, j) and (j, i) are one pair, each row has the marks of both, which changes no share.
        """
        unordered = len(pairs.inputs) == 1

        def parts(*inputs: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
            mirrored = pairs.mirrored() if unordered else pairs
            for side in (0, 1):  # one after the other: a list may have a pair on both sides
                for rows, tile in zip(pairs.spans(), pairs.tiles(*inputs), strict=True):
                    marked = (tile.positive, tile.negative)[side] | mirrored.sides(rows)[side]
                    yield tile.distance, marked.byte() * (side + 1)

        return self._loss(parts, pairs.inputs)

    def _traced_sum(self, tile: Tile, labels: Tensor, x: Tensor) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
        """The loss of all pairs, each counted in both orders."""
        v, side, rounding = tile.distance, _sides(tile), _rounding(x)
        cell, share = _cells(v.detach(), side, self.bins, rounding)
        loss, derivatives = _overlap(with_float64(_counts_of_all, cell, share, self.bins))
        return loss + _linear(v, cell, derivatives.to(v.dtype)), cell.new_ones(())

    def _loss(self, parts: _Parts, inputs: tuple[Tensor, ...], fold: int = 1) -> Float[Tensor, ""]:
        """L over parts of the pairs: −s of each, and 1 if positive, 2 if negative, 0 if neither.

        Args:
            parts: makes them, one after the other, of tensors like `inputs`.
            inputs: the features.
            fold: L has so many times the gradient of its parts.
        """
        nothing = torch.zeros((), dtype=torch.int64, device=inputs[0].device)
        rounding, wide = _rounding(inputs[0]), widest_float(inputs[0].device)

        def terms(*inputs: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
            counts, tiles, last = nothing.new_zeros(3, self.bins + 1, dtype=wide), 0, []
            for v, side in parts(*inputs):
                cell, share = _cells(v, side, self.bins, rounding)
                counts += with_float64(_counts_of_all, cell, share, self.bins)
                tiles, last = tiles + 1, [(v, cell)]
            loss, derivatives = _overlap(counts)
            yield loss, nothing
            if not torch.is_grad_enabled():
                return
            derivatives = (fold * derivatives).to(inputs[0].dtype)
            made_again = ((v, _cells(v, side, self.bins, rounding)[0]) for v, side in parts(*inputs))
            for v, cell in last if tiles == 1 else made_again:
                yield _linear(v, cell, derivatives), nothing

        return tiled_sum("Histogram", terms, *inputs)[0]


class FastAP(Head):
    """The FastAP loss: 1 less the average precision of each query, by histograms, averaged over the queries.

    ℓ = 1 − (1/N⁺) Σ_j h⁺_j H⁺_j / H_j, H_j = Σ_{i≤j} h_i

    Each row ranks all columns by the squared Euclidean distance of unit vectors, in [0, 4]. h⁺ counts its N⁺
    positives, and h its positives and negatives, at the nodes of R bins of width 4/R: a distance is shared
    between the two nodes next to it. At a node, to within rounding, the gradient is the derivative from
    above, at 4 that of the last bin. Rows without a positive are no queries. A row ranks all columns, so
    mined tuples are refused.

    Args:
        bins: R, from 1 to 100,000.
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
        >>> x = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.6, 0.8], [0.8, 0.6]])
        >>> round(FastAP()(x, torch.tensor([0, 0, 1, 1])).item(), 4)
        0.3583

    Reference:
        Cakir, He, Xia, Kulis & Sclaroff, "Deep metric learning to rank", 2019.
    """

    def __init__(
        self,
        bins: int = 10,
        *,
        relation: Relation = SameLabel(),  # noqa: B008
        tile_rows: int | None = None,
        check_finite: str = "later",
    ) -> None:
        super().__init__(negative_cosine, relation, "mean", tile_rows, check_finite)
        self.bins = as_int("FastAP", "bins", bins, minimum=1, maximum=_MOST_BINS)

    def _of_all(self, pairwise: Pairwise) -> Float[Tensor, ""]:
        """The mean loss over the rows that have a positive."""
        tallest = tile_height(3 * (self.bins + 1), pairwise.inputs[0], None)
        pairwise.tile_rows = min(pairwise.tile_rows, tallest)  # a row's histograms may be wider than the row

        rounding = _rounding(pairwise.inputs[0])

        def terms(*inputs: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
            for tile in pairwise.tiles(*inputs):
                asked = tile.positive.any(1)
                apart = asked & tile.negative.any(1)  # the other rows rank without fault
                v, side = tile.distance, _sides(tile)
                if v.device.type == "cpu":  # an accelerator ranks all rows, so that no shape is read
                    v, side = v[apart], side[apart]
                losses = 1 - _average_precision(v, side, self.bins, rounding)
                if v.device.type != "cpu":
                    losses = losses.masked_fill(~apart, 0.0)
                yield losses.sum(dtype=widest_float(losses.device)), asked.sum()

        return tiled_mean("FastAP", "mean", terms, *pairwise.inputs)

    def _traced_sum(self, tile: Tile, labels: Tensor, x: Tensor) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
        """The sum over the rows that have a positive."""
        asked = tile.positive.any(1)
        apart = asked & tile.negative.any(1)
        losses = 1 - _average_precision(tile.distance, _sides(tile), self.bins, _rounding(x))
        return losses.masked_fill(~apart, 0.0).sum(dtype=widest_float(losses.device)), asked.sum()

    def _of_mined(self, inputs: tuple[Tensor, ...], labels: Tensor | None, mined: Any) -> Float[Tensor, ""]:
        """A refusal."""
        hint = "call it with embeddings and labels"
        raise refusal("FastAP", "mined", type(mined).__name__, "None: a row ranks all columns", hint)


def _overlap(counts: Float[Tensor, "3 nodes"]) -> tuple[Float[Tensor, ""], Float[Tensor, "3 nodes"]]:
    """L of counts over v = −s, and ∂L/∂v for a pair of each side in the bin that begins at each node.

    The nodes of v run from s = 1 to s = −1, so φ⁺ sums from the last.
    """
    number = counts.sum(1, keepdim=True).clamp(min=1)  # [3, 1]
    _, positive, negative = counts / number  # [nodes]
    derivatives = torch.zeros_like(counts)
    derivatives[1, :-1] = negative[1:]
    derivatives[2, :-1] = -positive[:-1]
    bins_a_unit = (len(positive) - 1) / 2  # 1/Δ
    return (negative * running_sums(positive.flip(0), 0).flip(0)).sum(), derivatives / number * bins_a_unit


def _linear(
    v: Float[Tensor, "*shape"], cell: Int[Tensor, "*shape"], derivatives: Float[Tensor, "3 nodes"]
) -> Float[Tensor, ""]:
    """0, with the gradient that `derivatives` give to v, each that of its cell."""
    linear = derivatives.flatten().index_select(0, cell.flatten()) @ v.flatten()
    return linear - linear.detach()


def _average_precision(
    v: Float[Tensor, "a r"], side: Integer[Tensor, "a r"], bins: int, rounding: float
) -> Float[Tensor, " a"]:
    """(1/N⁺) Σ_j h⁺_j H⁺_j / H_j of rows that rank by v in [−1, 1], smallest first; 0 without a positive."""
    cell, share = _cells(v, side, bins, rounding)
    share = share + (v - v.detach()) * (bins / 2)  # adds 0, and the gradient
    _, h_pos, h_neg = _soft_counts(cell, share, bins).unbind(1)  # [a, nodes]
    # Where H_j is 0 nothing is counted yet, and the term is 0.
    until = running_sums(h_pos + h_neg, 1).clamp(min=torch.finfo(v.dtype).tiny)
    return (h_pos * running_sums(h_pos, 1) / until).sum(1) / (side == 1).sum(1).clamp(min=1)


def _sides(tile: Tile) -> Integer[Tensor, "a r"]:
    """1 for a positive, 2 for a negative, 0 for the same image."""
    return tile.positive.byte() + 2 * tile.negative.byte()


def _rounding(x: Float[Tensor, "_ k"]) -> float:
    """By how much two computed cosines of the same rows may differ: twice the most that was measured."""
    return (2 * math.sqrt(x.shape[1]) + 4) * torch.finfo(x.dtype).eps / 2


@torch.no_grad()
def _cells(
    v: Float[Tensor, "*shape"], side: Integer[Tensor, "*shape"], bins: int, rounding: float
) -> tuple[Int[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    """Where numbers in [−1, 1] are counted: the node to the left, and the share of the one to the right.

    The nodes are numbered on from side to side, `bins + 1` for each. A number within `rounding` of a node is
    counted on it, and has the derivative of the cell to its right: the last bits of a product depend on the
    tile, and the gradient must not.
    """
    place = (v * (bins / 2)).add_(bins / 2).clamp_(0, bins)  # 1 + 10⁻⁷ is rounding: on the last node
    left = (place + rounding * bins / 2).floor_().clamp_(max=bins - 1)
    if has_fixed_shapes(v):  # the check of NaN may come later, and an index of NaN would end the process
        left.nan_to_num_(0.0)
    share = (place - left).clamp_(min=0)
    return left.add_(side, alpha=bins + 1).long(), share


def _counts_of_all(
    cell: Int[Tensor, "*shape"], share: Float[Tensor, "*shape"], bins: int
) -> Float[Tensor, "3 nodes"]:
    """The histograms of the three sides, in float64, since a node may count more than 2²⁴ pairs."""
    return _soft_counts(cell.view(1, -1), share.double().view(1, -1), bins)[0]


def _soft_counts(
    cell: Int[Tensor, "a r"], share: Float[Tensor, "a r"], bins: int
) -> Float[Tensor, "a 3 nodes"]:
    """The histograms of the three sides for each row."""
    counts = share.new_zeros(len(cell), 3 * (bins + 1))
    return counts.scatter_add(1, cell, 1 - share).scatter_add(1, cell + 1, share).view(-1, 3, bins + 1)
