"""Heads with a softmax over a row, a positive against all negatives: InfoNCE, SupCon, NCA and N-pair."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy, softplus

from tercet.core.checks import as_float, promised, refusal
from tercet.losses.base import Head, reduced
from tercet.losses.log_sums import log_sum, log_sum_and_shares
from tercet.losses.rowwise import ListwiseHead, MinedPairs
from tercet.losses.tile_gradients import TileLoss, loss_from_pair_gradients
from tercet.pairwise.accumulate import Masked, counted_losses, summed
from tercet.pairwise.closed_forms import products
from tercet.pairwise.distances import Distance, dot
from tercet.pairwise.masked import true_places
from tercet.pairwise.relations import Relation, SameLabel
from tercet.pairwise.tiles import Pairwise, Tile, tile_height
from tercet.pairwise.torch_modes import has_fixed_shapes

__all__ = ["NCA", "InfoNCE", "NPair", "SupCon"]


class InfoNCE(ListwiseHead):
    """The InfoNCE loss: for each positive pair, its cross-entropy against all negatives of the anchor.

    ℓ_ap = −log( exp(s_ap/τ) / (exp(s_ap/τ) + Σ_n exp(s_an/τ)) ), s = −D

    The other positives of the anchor are not in the denominator. A constant added to s cancels, so
    `distance="cosine"` is the cosine similarity. A pair whose anchor has no negative loses 0. With two views
    of each image, and the image number as label, it is the NT-Xent loss of SimCLR.

    Args:
        temperature: τ, above 0, in units of the distance.
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
        >>> x = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], requires_grad=True)
        >>> loss = InfoNCE(temperature=1.0)(x, torch.tensor([0, 0, 1]))  # log(1 + exp(0 − 1))
        >>> loss.backward()
        >>> round(loss.item(), 4)
        0.3133

    Reference:
        Sohn, "Improved deep metric learning with multi-class N-pair loss objective", 2016. van den Oord, Li
        & Vinyals, "Representation learning with contrastive predictive coding", 2018.
    """

    def __init__(
        self,
        temperature: float = 0.07,
        *,
        distance: Distance | str = "cosine",
        relation: Relation = SameLabel(),  # noqa: B008
        reduction: str = "mean",
        tile_rows: int | None = None,
        check_finite: str = "later",
    ) -> None:
        super().__init__(distance, relation, reduction, tile_rows, check_finite)
        self.temperature = as_float("InfoNCE", "temperature", temperature, above=0)

    def _losses_of(self, tile: Tile) -> Float[Tensor, " u"] | Masked:
        """ℓ of each positive pair."""
        logits = tile.distance * (-1 / self.temperature)  # [a, r]
        negatives = log_sum(logits, tile.negative)
        if self.reduction == "none" or not has_fixed_shapes(logits):
            row, column = true_places(tile.positive)
            return softplus(negatives[row] - logits[row, column])
        return Masked(softplus(negatives[:, None] - logits), tile.positive)


class SupCon(ListwiseHead):
    """The supervised contrastive loss: for each anchor, the mean cross-entropy of its positives.

    ℓ_a = (1/|P(a)|) Σ_{p ∈ P(a)} −log( exp(s_ap/τ) / Σ_{j ∈ A(a)} exp(s_aj/τ) ), s = −D

    It is the form L_out of the paper. P(a) are the positives of a, A(a) its positives and negatives:
    positives compete with each other too, so with three or more images of a class the loss is above 0 even
    without a negative. A constant added to s cancels, so `distance="cosine"` is the cosine similarity.

    Args:
        temperature: τ, above 0, in units of the distance.
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
        >>> x = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> loss = SupCon(temperature=1.0)(x, torch.tensor([0, 0, 0, 1]))  # log(2 + exp(0 − 1))
        >>> round(loss.item(), 4)
        0.862

    Reference:
        Khosla, Teterwak, Wang, Sarna, Tian, Isola, Maschinot, Liu & Krishnan, "Supervised contrastive
        learning", 2020.
    """

    def __init__(
        self,
        temperature: float = 0.1,
        *,
        distance: Distance | str = "cosine",
        relation: Relation = SameLabel(),  # noqa: B008
        reduction: str = "mean",
        tile_rows: int | None = None,
        check_finite: str = "later",
    ) -> None:
        super().__init__(distance, relation, reduction, tile_rows, check_finite)
        self.temperature = as_float("SupCon", "temperature", temperature, above=0)

    def _losses_of(self, tile: Tile) -> Float[Tensor, " u"] | Masked:
        """ℓ of each anchor that has a positive."""
        logits = tile.distance * (-1 / self.temperature)  # [a, r]
        count = tile.positive.sum(1)
        everyone = log_sum(logits, tile.positive | tile.negative)
        mean = (logits * tile.positive).sum(1) / count.clamp(min=1)
        return counted_losses(everyone - mean, count > 0, self.reduction)


class NCA(ListwiseHead):
    """The loss of neighbourhood components analysis: how seldom a random neighbour is a positive.

    ℓ_a = −log Σ_{p ∈ P(a)} exp(−D_ap/τ) / Σ_{j ∈ A(a)} exp(−D_aj/τ)

    P(a) are the positives of a, A(a) its positives and negatives. An anchor draws one column as its
    neighbour, and the fraction is the probability that this is a positive one: one near positive suffices,
    where `SupCon` asks for all of them. With `Mahalanobis` it learns the linear map of the paper.

    Args:
        temperature: τ, above 0, in units of the distance; the paper takes 1.
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
        >>> x = torch.tensor([[0.0], [1.0], [2.0]])
        >>> loss = NCA(reduction="none")(x, torch.tensor([0, 0, 1]))
        >>> [round(v, 4) for v in loss.tolist()]  # log(1 + exp(1 − 4)), log(1 + exp(1 − 1))
        [0.0486, 0.6931]

    Reference:
        Goldberger, Roweis, Hinton & Salakhutdinov, "Neighbourhood components analysis", 2004.
    """

    def __init__(
        self,
        temperature: float = 1.0,
        *,
        distance: Distance | str = "squared_euclidean",
        relation: Relation = SameLabel(),  # noqa: B008
        reduction: str = "mean",
        tile_rows: int | None = None,
        check_finite: str = "later",
    ) -> None:
        super().__init__(distance, relation, reduction, tile_rows, check_finite)
        self.temperature = as_float("NCA", "temperature", temperature, above=0)

    def _losses_of(self, tile: Tile) -> Float[Tensor, " u"] | Masked:
        """ℓ of each anchor that has a positive."""
        logits = tile.distance * (-1 / self.temperature)  # [a, r]
        odds = log_sum(logits, tile.negative) - log_sum(logits, tile.positive)
        return counted_losses(softplus(odds), tile.positive.any(1), self.reduction)

    def _loss_of(self, compared: Pairwise | MinedPairs) -> Float[Tensor, "..."]:
        """The loss of rows against columns; on a processor without autograd, whose calls cost more."""
        if self.reduction == "none" or compared.inputs[0].device.type != "cpu":
            return super()._loss_of(compared)
        return loss_from_pair_gradients("NCA", compared, self.reduction, self._differentiated)

    def _differentiated(self, tile: Tile, wanted: bool) -> TileLoss:
        """All anchors of a tile: ∂ℓ/∂logit is a share of the negatives less one of the positives."""
        scale = -1 / self.temperature
        logits = tile.distance * scale
        far, slopes = log_sum_and_shares(logits, tile.negative)
        near, shares = log_sum_and_shares(logits, tile.positive)
        asked = tile.positive.any(1)
        odds = (far - near).masked_fill_(~asked, -torch.inf)
        losses = softplus(odds)
        count = losses.count_nonzero() if self.reduction == "mean_active" else asked.sum()
        value = losses.sum(dtype=torch.float64)
        if not wanted:
            return TileLoss(value, count, None)
        return TileLoss(value, count, slopes.sub_(shares).mul_(odds.sigmoid_().mul_(scale)[:, None]))


class NPair(Head):
    """The N-pair loss: one positive pair for each class, against the positives of all other classes.

    ℓ_i = log(1 + Σ_{j≠i} exp(x_iᵀx_j⁺ − x_iᵀx_i⁺)) + (λ/2)(‖x_i‖² + ‖x_i⁺‖²)

    One pair (x_i, x_i⁺) is taken for each class. Without `mined`, it is the first row of the class that has a
    positive and the first column that is one: in a P × K batch the first two rows of the class. With `mined`,
    it is the first listed positive pair of the class. All other rows are ignored, so K = 2 is enough. The
    negatives are the other classes' positives, never mined ones. Labels are needed with `mined` too.

    Embeddings are not normalised, nor are the paper's: λ keeps them from growing. Columns from `gather` are
    refused, since each rank would choose pairs of its own.

    Args:
        l2: λ, at least 0.
        relation: which columns are positive, by the labels; rows must have a class: `SameLabel()`,
            `CrossGroup()`, whose pair is of two groups, or a `Relation` with keys.
        reduction: `"mean"` over the pairs, `"mean_active"` over those with ℓ > 0, `"sum"`, or `"none"` for
            one loss for each pair, in the order of the batch or of the list.
        tile_rows: the pairs compared at once, at least 1; None for as many as fit one table of distances.
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
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 0.0], [0.0, 1.0]])
        >>> loss = NPair(reduction="none")(x, torch.tensor([0, 1, 0, 1]))  # log(1 + exp(0 − 1)), … (0 − 2)
        >>> [round(v, 4) for v in loss.tolist()]
        [0.3133, 0.1269]

    Reference:
        Sohn, "Improved deep metric learning with multi-class N-pair loss objective", 2016.
    """

    _sums_over_anchors = False

    def __init__(
        self,
        l2: float = 0.0,
        *,
        relation: Relation = SameLabel(),  # noqa: B008
        reduction: str = "mean",
        tile_rows: int | None = None,
        check_finite: str = "later",
    ) -> None:
        super().__init__(dot, relation, reduction, tile_rows, check_finite)
        self.l2 = as_float("NPair", "l2", l2, minimum=0)

    def _of_all(self, pairwise: Pairwise) -> Float[Tensor, "..."]:
        """The loss of the first pair of each class."""
        classes = self._classes(pairwise.labels)
        if pairwise.own_column and promised(self.relation, "key_is_class", "key", "sides"):
            if classes.device.type != "cpu" and self.reduction != "none":
                ordered, order = classes.sort(stable=True)
                return self._of_pairs(pairwise.inputs, order[:-1], order[1:], chosen=_begins_pair(ordered))
            anchor, positive = _first_two(classes)
            if self.reduction == "none":
                anchor, order = anchor.sort()
                positive = positive[order]
            return self._of_pairs(pairwise.inputs, anchor, positive)
        parts = [(classes[:0], classes[:0])]
        for span in pairwise.spans():
            found, column = pairwise.sides(span)[0].view(torch.uint8).max(1)  # the first of several
            row = found.nonzero()[:, 0]
            parts.append((row + span.start, column[row]))
        anchor, positive = (torch.cat(side) for side in zip(*parts, strict=True))
        first = _first_of_each(classes[anchor])
        anchor, positive = anchor[first], positive[first]
        images = None
        if pairwise.ids is not None and pairwise.column_ids is not None:
            images = pairwise.ids[anchor], pairwise.column_ids[positive]
        return self._of_pairs(pairwise.inputs, anchor, positive, images)

    def _traced_sum(self, tile: Tile, labels: Tensor, x: Tensor) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
        """The sum over the classes that have a pair; each stands where its first row is in their order."""
        ordered, order = self._classes(labels).sort(stable=True)
        chosen, first, second = _begins_pair(ordered), order[:-1], order[1:]
        logits = -tile.distance[first][:, second]
        logits = logits.masked_fill(~chosen, torch.finfo(logits.dtype).min)
        own = torch.arange(len(first), device=first.device)
        loss = cross_entropy(logits, own, reduction="none")
        if self.l2:
            sizes = -tile.distance.diagonal()  # ‖x‖²
            loss = loss + self.l2 / 2 * (sizes[first] + sizes[second])
        return summed(Masked(loss, chosen), self.reduction)

    def _of_mined(
        self, inputs: tuple[Tensor, ...], labels: Tensor | None, mined: Any
    ) -> Float[Tensor, "..."]:
        """The loss of the first listed pair of each class."""
        if labels is None:
            expected = "labels, beside mined pairs too, since one pair of each class is taken"
            raise refusal("NPair", "labels", None, expected)
        anchor, positive, *_ = self._listed(inputs, mined)
        labels = self.relation.check("NPair", "labels", labels, len(inputs[0]), anchor.device)
        classes = self._classes(labels)[anchor]
        if classes.device.type != "cpu" and self.reduction != "none":
            first, chosen = _first_of_each_at_most(classes, len(inputs[0]))
            return self._of_pairs(inputs, anchor[first], positive[first], chosen=chosen)
        first = _first_of_each(classes)
        return self._of_pairs(inputs, anchor[first], positive[first])

    def _classes(self, labels: Tensor) -> Int[Tensor, " n"]:
        classes = self.relation.key(labels)
        if classes is None:
            expected = "SameLabel() or CrossGroup(), by which a row has a class that one pair stands for"
            raise refusal("NPair", "relation", self.relation, expected)
        return classes

    def _of_pairs(
        self,
        inputs: tuple[Tensor, ...],
        anchor: Int[Tensor, " u"],
        positive: Int[Tensor, " u"],
        images: tuple[Tensor, Tensor] | None = None,
        chosen: Bool[Tensor, " u"] | None = None,
    ) -> Float[Tensor, "..."]:
        """ℓ of each pair against the others.

        Args:
            inputs: rows and columns.
            anchor: [u], a row of each pair.
            positive: [u], its column.
            images: the ids of both sides, where they may be equal.
            chosen: [u], which of the pairs are taken; None for all.
        """
        pairs = inputs[0][anchor], inputs[-1][positive]
        own = torch.arange(len(anchor), device=anchor.device)
        height = tile_height(len(anchor), inputs[0], self.tile_rows)

        def losses(x: Tensor, y: Tensor) -> Iterator[Tensor | Masked]:
            for start in range(0, len(x), height):
                rows = slice(start, start + height)
                logits = products(x[rows], y)  # [a, u]
                if images is not None:
                    logits = logits.masked_fill(images[0][rows, None] == images[1], -torch.inf)
                if chosen is not None:
                    logits = logits.masked_fill(~chosen, torch.finfo(logits.dtype).min)
                loss = cross_entropy(logits, own[rows], reduction="none")
                if self.l2:
                    loss = loss + self.l2 / 2 * (x[rows].square().sum(1) + y[rows].square().sum(1))
                yield loss if chosen is None else Masked(loss, chosen[rows])

        return reduced("NPair", self.reduction, losses, *pairs, one_graph=0 < len(anchor) <= height)


def _first_two(classes: Int[Tensor, " n"]) -> tuple[Int[Tensor, " u"], Int[Tensor, " u"]]:
    """The first and the second row of each class that has two."""
    classes, order = classes.sort(stable=True)
    first = _begins_pair(classes)
    return order[:-1][first], order[1:][first]


def _begins_pair(classes: Int[Tensor, " n"]) -> Bool[Tensor, " m"]:
    """Which of some sorted classes but the last is the first of its kind, with another behind it."""
    same = classes[1:] == classes[:-1]
    first = same.clone()
    first[1:] &= ~same[:-1]
    return first


def _first_of_each(values: Int[Tensor, " t"]) -> Int[Tensor, " u"]:
    """Where each distinct value stands for the first time, in rising order."""
    values, order = values.sort(stable=True)
    new = values[1:] != values[:-1]
    return torch.cat([order[:1], order[1:][new]]).sort().values


def _first_of_each_at_most(
    values: Int[Tensor, " t"], most: int
) -> tuple[Int[Tensor, " u"], Bool[Tensor, " u"]]:
    """`_first_of_each` of at most so many distinct values, in a shape that they do not change: and which are.

    Example:
        >>> _first_of_each_at_most(torch.tensor([5, 5, 3]), 4)
        (tensor([2, 0, 2]), tensor([ True,  True, False]))
    """
    values, order = values.sort(stable=True)
    new = torch.ones_like(values, dtype=torch.bool)
    new[1:] = values[1:] != values[:-1]
    size = min(most, len(values))
    place = torch.nonzero_static(new, size=size, fill_value=-1)[:, 0]  # [u]
    return order[place.clamp(min=0)] if size else place, place >= 0
