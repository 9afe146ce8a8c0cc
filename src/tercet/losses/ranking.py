"""Heads that are measures of a ranking made smooth: SmoothAP, and the surrogate of Recall@k.

A rank counts columns that are nearer than a positive. A sigmoid in place of each comparison gives it a
gradient. A positive pair is compared with every column, so a batch takes positive pairs × columns sigmoids, a
part at a time: the memory is that of a few tiles.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tercet.core.checks import as_float, as_int, refusal
from tercet.losses.rowwise import ListwiseHead, MinedPairs, PositivePlaces
from tercet.pairwise.accumulate import Masked, counted_losses
from tercet.pairwise.budget import budget
from tercet.pairwise.distances import Distance
from tercet.pairwise.relations import Relation, SameLabel
from tercet.pairwise.tiles import Pairwise, Tile, tile_height

__all__ = ["RecallSurrogate", "SmoothAP"]


class _RankingHead(ListwiseHead):
    """A head of the smooth ranks of each anchor's positives.

    A head adds its options and `_losses_of_ranks`.
    """

    rank_temperature: float

    def _losses_among(self, compared: Pairwise | MinedPairs) -> Callable[[Tile], Tensor | Masked]:
        return partial(self._losses_of, most=compared.most_positives)

    def _losses_of(self, tile: Tile, most: int | None = None) -> Float[Tensor, " u"] | Masked:
        """ℓ of each anchor that has a positive; no row has more of them than `most`, where that is known."""
        pairs = PositivePlaces.of(tile.positive, most)
        given = tile.distance, tile.positive, tile.negative, pairs.row, pairs.column
        if torch.compiler.is_compiling():
            ranks = _smooth_ranks(*given, self.rank_temperature)
        else:
            ranks = _SmoothRanks.apply(*given, self.rank_temperature, self._pairs_at_once(tile))
        losses = self._losses_of_ranks(*ranks, pairs, tile.positive.sum(1))  # type: ignore[misc]
        return counted_losses(losses, tile.positive.any(1), self.reduction)

    @abstractmethod
    def _losses_of_ranks(
        self,
        positives: Float[Tensor, " u"],
        negatives: Float[Tensor, " u"],
        pairs: PositivePlaces,
        count: Int[Tensor, " a"],
    ) -> Float[Tensor, " a"]:
        """ℓ of each row.

        Args:
            positives: [u], 1 + how many other positives of the row stand before each.
            negatives: [u], how many negatives do.
            pairs: what `positives` and `negatives` are of.
            count: [a], how many positives a row has.
        """

    def _pairs_at_once(self, tile: Tile) -> int:
        """How many pairs have as many sigmoids as a tile has distances."""
        return tile_height(tile.distance.shape[1], tile.distance, self.tile_rows)

    def _is_traced(self, embeddings: Any) -> bool:
        # Inside a graph each row with each two columns is a number.
        cube = len(embeddings) ** 3 if isinstance(embeddings, Tensor) else 0
        return super()._is_traced(embeddings) and cube <= budget(embeddings.device).traced_numbers


class SmoothAP(_RankingHead):
    """The SmoothAP loss: 1 less the average precision of each anchor, its ranks made smooth.

    ℓ_a = 1 − (1/|P|) Σ_{i ∈ P} (1 + Σ_{j ∈ P, j≠i} G(s_j − s_i)) / (1 + Σ_{j ∈ A, j≠i} G(s_j − s_i)),
    G(z) = 1 / (1 + exp(−z/τ)), s = −D

    P are the positives of a, A its positives and negatives; the anchor itself is in neither. Classes may have
    different sizes, and rows stand in any order. The paper's code ranks the anchor among its own positives,
    which makes each loss smaller; so does `ref=References(embeddings, labels)` without ids here. An anchor
    without a negative loses 0.

    Args:
        rank_temperature: τ, above 0, in units of the distance; the paper takes 0.01.
        distance: D: `"euclidean"` ‖x − y‖, `"squared_euclidean"` ‖x − y‖², `"cosine"` 1 − cos(x, y), `"dot"`
            −x·y, or a `Distance` with a gradient, such as `Mahalanobis`.
        relation: which columns are positive and which negative for a row, by the labels: `SameLabel()`,
            `SharedLabel()`, `CrossGroup()`, `Graded(positive, negative)`, or a `Relation`.
        reduction: `"mean"` over the anchors that have a positive, `"mean_active"` over those with ℓ > 0,
            `"sum"`, or `"none"` for one loss for each anchor that has a positive.
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
        >>> import torch
        >>> from tercet import SmoothAP
        >>> x = torch.tensor([[0.0], [2.0], [1.0]])  # the negative stands before the positive of row 0
        >>> loss = SmoothAP(distance="euclidean", reduction="none")(x, torch.tensor([0, 0, 1]))
        >>> [round(v, 4) for v in loss.tolist()]
        [0.5, 0.5]

    Reference:
        Brown, Xie, Kalogeiton & Zisserman, "Smooth-AP: smoothing the path towards large-scale image
        retrieval", 2020.
    """

    def __init__(
        self,
        rank_temperature: float = 0.01,
        *,
        distance: Distance | str = "cosine",
        relation: Relation = SameLabel(),  # noqa: B008
        reduction: str = "mean",
        tile_rows: int | None = None,
        check_finite: str = "later",
    ) -> None:
        super().__init__(distance, relation, reduction, tile_rows, check_finite)
        self.rank_temperature = as_float("SmoothAP", "rank_temperature", rank_temperature, above=0)

    def _losses_of_ranks(
        self,
        positives: Float[Tensor, " u"],
        negatives: Float[Tensor, " u"],
        pairs: PositivePlaces,
        count: Int[Tensor, " a"],
    ) -> Float[Tensor, " a"]:
        """1 − AP, as the mean share of the negatives in a rank: exactly 0 without negatives."""
        return pairs.sums(negatives / (positives + negatives)) / count.clamp(min=1)


class RecallSurrogate(_RankingHead):
    """The surrogate of Recall@k: the share of each anchor's positives within rank k, made smooth.

    ℓ_a = 1 − (1/|K|) Σ_{k ∈ K} min(k, Σ_{i ∈ P} σ((k − r_i)/τ₁)) / min(k, |P|),
    r_i = 1 + Σ_{j ∈ A, j≠i} σ((s_j − s_i)/τ₂), σ(z) = 1 / (1 + exp(−z)), s = −D

    P are the positives of a, A its positives and negatives. A positive exactly at rank k counts ½, so the
    loss of a perfect ranking is above 0. It is meant for large batches; `cached_backward` makes them.

    Args:
        k: the ranks of K, each at least 1.
        temperature: τ₁, above 0, in ranks.
        rank_temperature: τ₂, above 0, in units of the distance.
        distance: D: `"euclidean"` ‖x − y‖, `"squared_euclidean"` ‖x − y‖², `"cosine"` 1 − cos(x, y), `"dot"`
            −x·y, or a `Distance` with a gradient, such as `Mahalanobis`.
        relation: which columns are positive and which negative for a row, by the labels: `SameLabel()`,
            `SharedLabel()`, `CrossGroup()`, `Graded(positive, negative)`, or a `Relation`.
        reduction: `"mean"` over the anchors that have a positive, `"mean_active"` over those with ℓ > 0,
            `"sum"`, or `"none"` for one loss for each anchor that has a positive.
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
        >>> import torch
        >>> from tercet import RecallSurrogate
        >>> x = torch.tensor([[0.0], [2.0], [1.0]])  # the positive of row 0 has rank 2
        >>> head = RecallSurrogate(k=[1], distance="euclidean", reduction="none")
        >>> [round(v, 4) for v in head(x, torch.tensor([0, 0, 1])).tolist()]  # 1 − σ(1 − 2)
        [0.7311, 0.7311]

    Reference:
        Patel, Tolias & Matas, "Recall@k surrogate loss with large batches and similarity mixup", 2022.
    """

    def __init__(
        self,
        k: Sequence[int] = (1, 2, 4, 8, 16),
        temperature: float = 1.0,
        rank_temperature: float = 0.01,
        *,
        distance: Distance | str = "cosine",
        relation: Relation = SameLabel(),  # noqa: B008
        reduction: str = "mean",
        tile_rows: int | None = None,
        check_finite: str = "later",
    ) -> None:
        super().__init__(distance, relation, reduction, tile_rows, check_finite)
        caller = "RecallSurrogate"
        several = isinstance(k, Sequence) and not isinstance(k, str)
        self.k = tuple(as_int(caller, "k", each, minimum=1) for each in (k if several else [k]))
        if not self.k:
            raise refusal(caller, "k", k, "one rank or more")
        self.temperature = as_float(caller, "temperature", temperature, above=0)
        self.rank_temperature = as_float(caller, "rank_temperature", rank_temperature, above=0)

    def _losses_of_ranks(
        self,
        positives: Float[Tensor, " u"],
        negatives: Float[Tensor, " u"],
        pairs: PositivePlaces,
        count: Int[Tensor, " a"],
    ) -> Float[Tensor, " a"]:
        """1 less the mean recall."""
        rank = positives + negatives
        recall = rank.new_zeros(pairs.rows)
        for k in self.k:
            found = pairs.sums(torch.sigmoid((k - rank) / self.temperature))
            recall = recall + found.clamp(max=k) / count.clamp(min=1, max=k)
        return 1 - recall / len(self.k)


def _smooth_ranks(
    d: Float[Tensor, "a r"],
    positive: Bool[Tensor, "a r"],
    negative: Bool[Tensor, "a r"],
    row: Int[Tensor, " u"],
    column: Int[Tensor, " u"],
    temperature: float,
) -> tuple[Float[Tensor, " u"], Float[Tensor, " u"]]:
    """1 + how many other positives stand before each pair of a row, and how many negatives do.

    Args:
        d: distances.
        positive: which columns are.
        negative: which columns are.
        row: of each pair.
        column: of each pair.
        temperature: τ of the sigmoid in place of a comparison.
    """
    before = torch.sigmoid((d[row, column][:, None] - d[row]) / temperature)  # [u, r]
    # A pair is compared with itself too: ½.
    return (before * positive[row]).sum(1) + 0.5, (before * negative[row]).sum(1)


class _SmoothRanks(torch.autograd.Function):
    """`_smooth_ranks` in parts, which are made again for the gradient, so that no part outlives its sums."""

    @staticmethod
    def forward(
        ctx: Any, d: Any, positive: Any, negative: Any, row: Any, column: Any, temperature: Any, size: Any
    ) -> Any:
        ctx.save_for_backward(d, positive, negative, row, column)
        ctx.temperature, ctx.size = temperature, size
        parts = [
            _smooth_ranks(d, positive, negative, i, j, temperature)
            for i, j in zip(row.split(size), column.split(size), strict=True)
        ]
        return tuple(torch.cat(side) for side in zip(*parts, strict=True))

    @staticmethod
    def backward(ctx: Any, *slopes: Any) -> Any:
        d, positive, negative, row, column = ctx.saved_tensors
        temperature, none = ctx.temperature, (None,) * 6
        if torch.is_grad_enabled():  # the same by operations that have a derivative themselves
            ranks = _smooth_ranks(d, positive, negative, row, column, temperature)
            return *torch.autograd.grad(ranks, d, slopes, create_graph=True), *none
        by_distance, at = torch.zeros_like(d), 0
        for i, j in zip(row.split(ctx.size), column.split(ctx.size), strict=True):
            here = slice(at, at := at + len(i))
            before = torch.sigmoid((d[i, j][:, None] - d[i]) / temperature)  # [c, r]
            before.mul_(1 - before)
            by_side = slopes[0][here, None] * positive[i]
            by_side += slopes[1][here, None] * negative[i]
            before.mul_(by_side).div_(temperature)
            by_distance.index_put_((i, j), before.sum(1), accumulate=True)
            by_distance.index_add_(0, i, before, alpha=-1)
        return by_distance, *none
