"""Heads that weight each pair by the other pairs of its row: lifted structure, multi-similarity, circle."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import softplus

from tercet.core.checks import as_float
from tercet.losses.base import empty_loss
from tercet.losses.log_sums import log_sum
from tercet.losses.rowwise import ListwiseHead, MinedPairs
from tercet.losses.tile_gradients import TileLoss, loss_from_pair_gradients
from tercet.pairwise.accumulate import Masked, counted_losses, once_differentiable, summed, tiled_mean
from tercet.pairwise.distances import Distance, cosine, dot, negative_cosine
from tercet.pairwise.masked import true_places
from tercet.pairwise.relations import Relation, SameLabel
from tercet.pairwise.tiles import Pairwise, Tile
from tercet.pairwise.torch_modes import widest_float

__all__ = ["Circle", "GeneralizedLifted", "LiftedStructure", "MultiSimilarity"]


class LiftedStructure(ListwiseHead):
    """The lifted structure loss: the distance of each positive pair against all negatives of both its ends.

    ℓ_ij = ½ h(J_ij)², J_ij = log( Σ_k exp(α − D_ik) + Σ_l exp(α − D_jl) ) + D_ij − α⁺, h(z) = max(0, z)

    With α⁺ = 0 it is the loss of the paper. k and l are the negatives of i and of j. Each sum belongs to one
    row, so the loss takes O(N²). With references j is a column, and l are the rows that it is a negative of;
    these sums need all rows, so columns from `gather` are refused. A pair without any negative loses 0. Pairs
    are ordered: where the columns are the batch, (i, j) and (j, i) are two pairs, which makes a difference to
    `"sum"` alone.

    Args:
        margin: α, in units of the distance.
        pos_margin: α⁺, in units of the distance, by which a positive is taken to be nearer than it is.
        distance: D: `"euclidean"` ‖x − y‖, `"squared_euclidean"` ‖x − y‖², `"cosine"` 1 − cos(x, y), `"dot"`
            −x·y, or a `Distance` with a gradient, such as `Mahalanobis`.
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
        >>> x = torch.tensor([[0.0], [1.0], [2.0]], requires_grad=True)
        >>> loss = LiftedStructure()(x, torch.tensor([0, 0, 1]))  # ½ (log(exp(1 − 2) + exp(1 − 1)) + 1)²
        >>> loss.backward()
        >>> round(loss.item(), 3), [round(v, 3) for v in x.grad.flatten().tolist()]
        (0.862, [-0.96, 2.273, -1.313])

    Reference:
        Oh Song, Xiang, Jegelka & Savarese, "Deep metric learning via lifted structured feature embedding",
        2016.
    """

    _sums_over_anchors = False

    def __init__(
        self,
        margin: float = 1.0,
        pos_margin: float = 0.0,
        *,
        distance: Distance | str = "euclidean",
        relation: Relation = SameLabel(),  # noqa: B008
        reduction: str = "mean",
        tile_rows: int | None = None,
        check_finite: str = "later",
    ) -> None:
        super().__init__(distance, relation, reduction, tile_rows, check_finite)
        self.margin = as_float("LiftedStructure", "margin", margin)
        self.pos_margin = as_float("LiftedStructure", "pos_margin", pos_margin)

    def _loss_of(self, compared: Pairwise | MinedPairs) -> Float[Tensor, "..."]:
        """The loss of rows against columns, in three passes over the tiles: sums, pairs, gradients.

        Each J_ij depends on the sum over the negatives of i and on that of j. The derivative of the loss by
        each sum is added up over all pairs first, and then applied to the distances of its negatives, so the
        time is O(pairs + negatives) and not their product.
        """
        own, x = len(compared.inputs) == 1, compared.inputs[0]
        if x.device.type != "cpu" and self.reduction != "none" and compared.tile_rows >= len(x):
            loss_of = partial(self._loss_of_whole, own)
            return loss_from_pair_gradients("LiftedStructure", compared, self.reduction, loss_of)
        if self.reduction == "none":
            sums = self._log_sums(compared.tiles(*compared.inputs), compared.inputs)
            tiles = compared.tiles(*compared.inputs)
            parts = [self._pairs(tile, *sums)[-1].square() / 2 for tile in tiles]
            return torch.cat([empty_loss(compared.inputs), *parts])

        def terms(*inputs: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
            bare = [v.detach() for v in inputs]
            rows, columns = self._log_sums(compared.tiles(*bare), bare)
            by_row = torch.zeros_like(rows)
            by_column = by_row if own else torch.zeros_like(columns)
            for tile in compared.tiles(*bare):
                if rows.device.type != "cpu":  # all places of a tile, so that no shape is read
                    here = slice(tile.start, tile.start + len(tile.distance))
                    table = self._excess(tile, rows, columns)
                    yield summed(Masked(table.square() / 2, tile.positive), self.reduction)
                    shares = torch.sigmoid(rows[here, None] - columns) * table
                    by_row[here] += shares.sum(1)
                    by_column += (table - shares).sum(0)
                    continue
                i, j, excess = self._pairs(tile, rows, columns)
                yield summed(excess.square() / 2, self.reduction)
                share = torch.sigmoid(rows[i] - columns[j])
                by_row.index_add_(0, i, excess * share)
                by_column.index_add_(0, j, excess * (1 - share))
            for tile in compared.tiles(*inputs) if torch.is_grad_enabled() else ():
                weights = self._weights(tile, rows, columns, by_row, None if own else by_column)
                linear = (weights * tile.distance).sum(dtype=widest_float(weights.device))
                yield linear - linear.detach(), torch.tensor(0)  # 0 to the loss, its weights to the gradient

        return tiled_mean("LiftedStructure", self.reduction, terms, *compared.inputs)

    def _loss_of_whole(self, own: bool, tile: Tile, wanted: bool) -> TileLoss:
        """The loss of a tile that has all rows, in shapes that the data do not change.

        Args:
            own: the columns are the rows.
            tile: all rows against all columns.
            wanted: whether pair gradients are.
        """
        z = self.margin - tile.distance  # [n, r]
        rows = columns = log_sum(z, tile.negative)
        if not own:
            columns = log_sum(z, tile.negative, dim=0)
        excess = self._excess(tile, rows, columns)
        value, count = summed(Masked(excess.square() / 2, tile.positive), self.reduction)
        if not wanted:
            return TileLoss(value, count, None)
        shares = torch.sigmoid(rows[:, None] - columns) * excess
        by_row, by_column = shares.sum(1), (excess - shares).sum(0)
        if own:
            by_row, by_column = by_row + by_column, None
        weights = self._weights(tile, rows, columns, by_row, by_column, excess)
        return TileLoss(value, count, weights)

    def _traced_sum(self, tile: Tile, labels: Tensor, x: Tensor) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
        """The sum over all positive pairs."""
        sums = log_sum(self.margin - tile.distance, tile.negative)
        excess = torch.relu(torch.logaddexp(sums[:, None], sums) + self._slackened(tile.distance))
        return summed(Masked(excess.square() / 2, tile.positive), self.reduction)

    def _log_sums(
        self, tiles: Iterable[Tile], inputs: Sequence[Tensor]
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, " r"]]:
        """log Σ exp(α − D) over the negatives of each row and of each column, which may be the rows."""
        rows, columns = [], None
        for tile in tiles:
            z = self.margin - tile.distance  # [a, r]
            rows.append(log_sum(z, tile.negative))
            if len(inputs) == 2:
                part = log_sum(z, tile.negative, dim=0)
                columns = part if columns is None else torch.logaddexp(columns, part)
        sums = torch.cat(rows) if rows else inputs[0].new_zeros(0)
        return sums, sums if columns is None else columns

    def _pairs(
        self, tile: Tile, rows: Float[Tensor, " n"], columns: Float[Tensor, " r"]
    ) -> tuple[Int[Tensor, " u"], Int[Tensor, " u"], Float[Tensor, " u"]]:
        """The row, the column and h(J) of each positive pair of a tile."""
        i, j = true_places(tile.positive)
        d = self._slackened(tile.distance[i, j])
        i = i + tile.start
        return i, j, torch.relu(torch.logaddexp(rows[i], columns[j]) + d)

    def _excess(
        self, tile: Tile, rows: Float[Tensor, " n"], columns: Float[Tensor, " r"]
    ) -> Float[Tensor, "a r"]:
        """h(J) of each positive pair in its place of the tile; 0 elsewhere."""
        sums = torch.logaddexp(rows[tile.start : tile.start + len(tile.distance), None], columns)
        return torch.relu(sums + self._slackened(tile.distance)).masked_fill(~tile.positive, 0.0)

    def _slackened(self, d: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        """D − α⁺."""
        return d - self.pos_margin if self.pos_margin else d

    @torch.no_grad()
    def _weights(
        self,
        tile: Tile,
        rows: Float[Tensor, " n"],
        columns: Float[Tensor, " r"],
        by_row: Float[Tensor, " n"],
        by_column: Float[Tensor, " r"] | None,
        excess: Float[Tensor, "a r"] | None = None,
    ) -> Float[Tensor, "a r"]:
        """∂ Σℓ / ∂D: h(J) for a positive pair, for a negative one minus its share of the pull on its sums."""
        here = slice(tile.start, tile.start + len(tile.distance))
        z = (self.margin - tile.distance).masked_fill_(~tile.negative, -torch.inf)  # [a, r]
        weights = (z - rows[here, None]).exp_().mul_(-by_row[here, None])
        if by_column is not None:
            weights -= (z - columns).exp_().mul_(by_column)
        if weights.device.type != "cpu":
            return weights.add_(self._excess(tile, rows, columns) if excess is None else excess)
        i, j, pulls = self._pairs(tile, rows, columns)
        weights[i - tile.start, j] += pulls
        return weights


class GeneralizedLifted(ListwiseHead):
    """The lifted structure loss of each anchor: all its positives against all its negatives.

    ℓ_a = h( log Σ_p exp(D_ap − α⁺) + log Σ_n exp(α − D_an) ), h(z) = max(0, z)

    With α⁺ = 0 it is the loss of the paper, a smooth form of batch hard: the sums are soft maxima of the
    farthest positive and the nearest negative. Anchors that lack one of the two have no loss. From a list,
    each distinct pair counts once.

    Args:
        margin: α, in units of the distance.
        pos_margin: α⁺, in units of the distance, by which positives are taken to be nearer than they are.
        distance: D: `"euclidean"` ‖x − y‖, `"squared_euclidean"` ‖x − y‖², `"cosine"` 1 − cos(x, y), `"dot"`
            −x·y, or a `Distance` with a gradient, such as `Mahalanobis`.
        relation: which columns are positive and which negative for a row, by the labels: `SameLabel()`,
            `SharedLabel()`, `CrossGroup()`, `Graded(positive, negative)`, or a `Relation`.
        reduction: `"mean"` over the anchors that have a positive and a negative, `"mean_active"` over those
            with ℓ > 0, `"sum"`, or `"none"` for one loss for each anchor that has both.
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
        >>> x = torch.tensor([[0.0], [1.0], [1.5]])
        >>> loss = GeneralizedLifted(reduction="none")(x, torch.tensor([0, 0, 1]))
        >>> [round(v, 4) for v in loss.tolist()]  # h(1 + 1 − 1.5), h(1 + 1 − 0.5)
        [0.5, 1.5]

    Reference:
        Hermans, Beyer & Leibe, "In defense of the triplet loss for person re-identification", 2017.
    """

    def __init__(
        self,
        margin: float = 1.0,
        pos_margin: float = 0.0,
        *,
        distance: Distance | str = "euclidean",
        relation: Relation = SameLabel(),  # noqa: B008
        reduction: str = "mean",
        tile_rows: int | None = None,
        check_finite: str = "later",
    ) -> None:
        super().__init__(distance, relation, reduction, tile_rows, check_finite)
        self.margin = as_float("GeneralizedLifted", "margin", margin)
        self.pos_margin = as_float("GeneralizedLifted", "pos_margin", pos_margin)

    def _losses_of(self, tile: Tile) -> Float[Tensor, " u"] | Masked:
        """ℓ of each anchor that has a positive and a negative."""
        far = log_sum(tile.distance, tile.positive)
        near = log_sum(-tile.distance, tile.negative)
        both = tile.positive.any(1) & tile.negative.any(1)
        return counted_losses(torch.relu(far + near + self.margin - self.pos_margin), both, self.reduction)


class MultiSimilarity(ListwiseHead):
    """The multi-similarity loss: each anchor's positives below a similarity, and its negatives above it.

    ℓ_a = (1/α) log(1 + Σ_p exp(−α (s_ap − λ))) + (1/β) log(1 + Σ_n exp(β (s_an − λ)))

    s is the similarity: 1 − D for `"cosine"`, as in the paper, and x·y for `"dot"`. Of any other distance λ
    is a distance too, and λ − D stands for s − λ. The paper mines pairs first (`MultiSimilarityMiner`);
    without `mined` the loss is that of all pairs. From a list, each distinct pair counts once.

    Args:
        alpha: α, above 0, the scale of positives.
        beta: β, above 0, the scale of negatives.
        base: λ, a similarity; a distance where `distance` is neither `"cosine"` nor `"dot"`.
        distance: D: `"cosine"` 1 − cos(x, y), `"dot"` −x·y, `"euclidean"` ‖x − y‖, `"squared_euclidean"`
            ‖x − y‖², or a `Distance` with a gradient, such as `Mahalanobis`.
        relation: which columns are positive and which negative for a row, by the labels: `SameLabel()`,
            `SharedLabel()`, `CrossGroup()`, `Graded(positive, negative)`, or a `Relation`.
        reduction: `"mean"` over all rows of the batch, as in the paper, `"mean_active"` over those with
            ℓ > 0, which are those with a pair, `"sum"`, or `"none"` for one loss for each row.
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
        >>> head = MultiSimilarity(alpha=2.0, beta=2.0, base=0.5, reduction="none")
        >>> [round(v, 3) for v in head(x, torch.tensor([0, 0, 1])).tolist()]  # ½ (log(1 + 1/e) + …), …
        [0.313, 0.313, 0.276]

    Reference:
        Wang, Han, Huang, Dong & Scott, "Multi-similarity loss with general pair weighting for deep metric
        learning", 2019.
    """

    def __init__(
        self,
        alpha: float = 2.0,
        beta: float = 50.0,
        base: float = 0.5,
        *,
        distance: Distance | str = "cosine",
        relation: Relation = SameLabel(),  # noqa: B008
        reduction: str = "mean",
        tile_rows: int | None = None,
        check_finite: str = "later",
    ) -> None:
        super().__init__(distance, relation, reduction, tile_rows, check_finite)
        self.alpha = as_float("MultiSimilarity", "alpha", alpha, above=0)
        self.beta = as_float("MultiSimilarity", "beta", beta, above=0)
        self.base = as_float("MultiSimilarity", "base", base)

    def _losses_of(self, tile: Tile) -> Float[Tensor, " a"]:
        """ℓ of each row."""
        above = self._at_base - tile.distance  # [a, r], s − λ
        positive = softplus(log_sum(-self.alpha * above, tile.positive)) / self.alpha
        # In place, since neither the positives' gradient nor anything below needs `above` itself.
        return positive + softplus(log_sum(above.mul_(self.beta), tile.negative)) / self.beta

    @property
    def _at_base(self) -> float:
        """The distance, as it is measured, of a pair at λ."""
        if isinstance(self.distance, type(cosine)):
            return (0 if self._measured is negative_cosine else 1) - self.base
        return -self.base if isinstance(self.distance, type(dot)) else self.base


class Circle(ListwiseHead):
    """The circle loss: positives against negatives of each anchor, weighted by how far they are off.

    ℓ_a = log(1 + Σ_n exp(γ α_n (s_an − m)) Σ_p exp(−γ α_p (s_ap − 1 + m))),
    α_p = h(1 + m − s_ap), α_n = h(s_an + m), h(z) = max(0, z)

    s is the cosine similarity. The weights α_p and α_n are constants to the gradient, as in the paper. From a
    list, each distinct pair counts once.

    Args:
        m: the relaxation, in units of the similarity; the paper takes 0.25 for faces, 0.4 for retrieval.
        gamma: γ, above 0, the scale; the paper takes 256 for faces, 80 for retrieval.
        relation: which columns are positive and which negative for a row, by the labels: `SameLabel()`,
            `SharedLabel()`, `CrossGroup()`, `Graded(positive, negative)`, or a `Relation`.
        reduction: `"mean"` over the anchors that have a positive and a negative, `"mean_active"` over those
            with ℓ > 0, `"sum"`, or `"none"` for one loss for each anchor that has both.
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
        >>> loss = Circle(m=0.5, gamma=2.0)(x, torch.tensor([0, 0, 1]))  # log(1 + exp(−0.5) exp(−0.5))
        >>> round(loss.item(), 4)
        0.3133

    Reference:
        Sun, Cheng, Zhang, Zhang, Zheng, Wang & Wei, "Circle loss: a unified perspective of pair similarity
        optimization", 2020.
    """

    def __init__(
        self,
        m: float = 0.4,
        gamma: float = 80.0,
        *,
        relation: Relation = SameLabel(),  # noqa: B008
        reduction: str = "mean",
        tile_rows: int | None = None,
        check_finite: str = "later",
    ) -> None:
        super().__init__("cosine", relation, reduction, tile_rows, check_finite)
        self.m = as_float("Circle", "m", m)
        self.gamma = as_float("Circle", "gamma", gamma, above=0)

    def _losses_of(self, tile: Tile) -> Float[Tensor, " u"] | Masked:
        """ℓ of each anchor that has a positive and a negative."""
        s = -tile.distance  # [a, r]
        positive = self.gamma * torch.relu(1 + self.m - s).detach() * (1 - self.m - s)
        negative = self.gamma * torch.relu(s + self.m).detach() * (s - self.m)
        both = tile.positive.any(1) & tile.negative.any(1)
        every = softplus(log_sum(positive, tile.positive) + log_sum(negative, tile.negative))
        if self.reduction == "none":
            # The gradient takes the weights as constants, so autograd's second derivative is not its own.
            return once_differentiable("Circle", every[both])
        return counted_losses(every, both, self.reduction)
