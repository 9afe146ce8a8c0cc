"""Pair losses: the contrastive loss and the margin loss, over mined pairs or over all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from tercet.core.checks import as_bool, as_float, as_int, refusal
from tercet.losses.base import Head, distinct, pairs_of, reduced
from tercet.losses.rowwise import MinedPairs
from tercet.losses.tile_gradients import TileLoss, is_one_tile, loss_from_pair_gradients
from tercet.pairwise.accumulate import Masked, summed
from tercet.pairwise.distances import Distance
from tercet.pairwise.euclidean import gather_rows
from tercet.pairwise.inputs import allocated, clamped_classes
from tercet.pairwise.mined import is_remembered
from tercet.pairwise.relations import Relation, SameLabel, SharedLabel
from tercet.pairwise.tiles import Pairwise, Tile
from tercet.pairwise.torch_modes import widest_float
from tercet.pairwise.traced import checked

__all__ = ["Contrastive", "MarginLoss"]


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
            negatives do not outweigh the positives; each is `"mean_active"` or `"mean"`.
        relation: which columns are positive and which negative for a row, by the labels: `SameLabel()`,
            `SharedLabel()`, `CrossGroup()`, `Graded(positive, negative)`, or a `Relation`.
        reduction: `"mean_active"` for the mean over the pairs with ℓ > 0, positive and negative together,
            `"mean"` over all pairs, `"sum"`, or `"none"` for one loss for each mined pair, positive pairs
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
        return self._of_tiles(pairwise, pairwise.is_symmetric)

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

        def of(*sides: Any) -> Float[Tensor, "..."]:
            def losses(*inputs: Tensor) -> Iterator[Tensor]:
                for side, loss in sides:
                    for i, j in self._chunks(inputs[0], inputs[-1], *side):
                        yield loss(*self._listed_distances(inputs[0], inputs[-1], i, j))

            listed = tuple(column for side, _ in sides for column in side)
            whole = self._fits_one_graph(inputs, listed)
            return reduced("Contrastive", self.reduction, losses, *inputs, one_graph=whole)

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
        excess = apart.sub_(inside)
        if self.reduction == "mean_active":
            count = excess.count_nonzero()
        else:
            count = tile.positive.sum() + tile.negative.sum()
        return self._powered(excess, count, wanted)

    def _apart_of(self, tile: Tile, wanted: bool) -> TileLoss:
        """The positive pairs of a tile."""
        apart, _ = self._excesses(tile)
        return self._powered(apart, self._count(apart, tile.positive), wanted)

    def _inside_of(self, tile: Tile, wanted: bool) -> TileLoss:
        """The negative pairs of a tile."""
        _, inside = self._excesses(tile)
        return self._powered(inside.neg_(), self._count(inside, tile.negative), wanted)

    def _means_of(self, tile: Tile, wanted: bool) -> TileLoss:
        """Both means of a tile that has all pairs."""
        apart, inside = self._excesses(tile)
        value = torch.zeros((), dtype=widest_float(apart.device), device=apart.device)
        slopes = []
        for excess, side in ((apart, tile.positive), (inside.neg_(), tile.negative)):
            share = self._count(excess, side).clamp(min=1)
            of_side = self._powered(excess, share, wanted)
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

    def _count(self, excess: Float[Tensor, "a r"], side: Bool[Tensor, "a r"]) -> Int[Tensor, ""]:
        """How many pairs of a side the mean is over."""
        return excess.count_nonzero() if self.reduction == "mean_active" else side.sum()

    def _powered(self, excess: Float[Tensor, "a r"], count: Int[Tensor, ""], wanted: bool) -> TileLoss:
        """Σ |excess|^power, and its derivative by the distances, of which excess rises or falls by one."""
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


class MarginLoss(Head):
    """The margin loss: how far positives are beyond a learned boundary, and negatives within it.

    ℓ = h(α + (D(a,p) − β)) for a positive pair, h(α − (D(a,n) − β)) for a negative one, h(z) = max(0, z);
    the loss is their mean + ν · (1/n) Σ_i β_i over the rows i of the batch

    The boundary β is one number, or one for each class: then a pair takes that of its anchor's class. It is
    the parameter `head.beta`, so pass the head's parameters to the optimiser;
    `head.beta.requires_grad_(False)` keeps it constant.

    A triplet is two pairs, each counted as often as it is listed, since distance-weighted sampling draws with
    repetition. Pairs are ordered, rows against columns. Embeddings are not normalised, save by `"cosine"`;
    the paper's are unit vectors.

    Args:
        margin: α, at least 0, in units of the distance.
        beta: the first value of β, in units of the distance.
        num_classes: C, for one β for each class: labels are then numbers from 0 to C − 1, and are needed with
            `mined` too; None for a single β. With `CrossGroup` the class is the identity.
        nu: ν, at least 0, the weight of the term that makes β smaller. With ν above 0, `reduction="none"` is
            refused, and `reduction="sum"` refuses columns from `gather`, where each rank would add the term.
        of_triplets: True to count a pair once for each triplet that it is in: a positive pair as often as its
            anchor has negatives, a negative one as often as it has positives. So all triplets are averaged,
            as if `mined` listed them. Read only without `mined`.
        distance: D: `"euclidean"` ‖x − y‖, `"squared_euclidean"` ‖x − y‖², `"cosine"` 1 − cos(x, y), `"dot"`
            −x·y, or a `Distance` with a gradient, such as `Mahalanobis`.
        relation: which columns are positive and which negative for a row, by the labels: `SameLabel()`,
            `SharedLabel()`, `CrossGroup()`, `Graded(positive, negative)`, or a `Relation`.
        reduction: `"mean_active"` for the mean over the pairs with ℓ > 0, positive and negative together,
            `"mean"` over all pairs, `"sum"`, or `"none"` for one loss for each mined pair, positive pairs
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
        ValueError: an option out of range, or two that contradict each other; when called, what `forward`
            lists.

    Example:
        >>> x = torch.tensor([[0.0], [1.5], [4.0]])
        >>> head = MarginLoss(margin=0.5, beta=1.25, reduction="sum")
        >>> loss = head(x, torch.tensor([0, 0, 1]))  # 0.5 + (1.5 − 1.25), twice; the negatives are far enough
        >>> loss.backward()
        >>> loss.item(), head.beta.grad.item()
        (1.5, -2.0)

    Reference:
        Wu, Manmatha, Smola & Krähenbühl, "Sampling matters in deep embedding learning", 2017.
    """

    _listing = "Pairs of the rows to compare"

    def __init__(
        self,
        margin: float = 0.2,
        beta: float = 1.2,
        *,
        num_classes: int | None = None,
        nu: float = 0.0,
        of_triplets: bool = False,
        distance: Distance | str = "euclidean",
        relation: Relation = SameLabel(),  # noqa: B008
        reduction: str = "mean_active",
        tile_rows: int | None = None,
        check_finite: str = "later",
    ) -> None:
        super().__init__(distance, relation, reduction, tile_rows, check_finite)
        caller = "MarginLoss"
        self.margin = as_float(caller, "margin", margin, minimum=0)
        self.nu = as_float(caller, "nu", nu, minimum=0)
        self.of_triplets = as_bool(caller, "of_triplets", of_triplets)
        if self.nu and self.reduction == "none":
            hint = "leave one of the two away"
            raise refusal(caller, "nu", nu, '0 with reduction="none", for it is no pair\'s loss', hint)
        shape = () if num_classes is None else (as_int(caller, "num_classes", num_classes, minimum=1),)
        with allocated(caller, num_classes=shape[0] if shape else 1):
            self.beta = nn.Parameter(torch.full(shape, as_float(caller, "beta", beta)))

    @property
    def _sums_over_anchors(self) -> bool:  # type: ignore[override]
        """False where ν pulls at a sum: each rank would pull once more."""
        return not (self.nu and self.reduction == "sum")

    def _of_all(self, pairwise: Pairwise) -> Float[Tensor, ""]:
        """The loss of all pairs."""
        bounds = self._bounds(pairwise.labels, pairwise.inputs[0])
        by_bound = torch.zeros_like(bounds)

        def loss_of(tile: Tile, wanted: bool) -> TileLoss:
            rows = slice(tile.start, tile.start + len(tile.distance))
            sign = tile.positive.view(torch.int8) - tile.negative.view(torch.int8)

            def excess() -> Tensor:
                return (tile.distance - bounds[rows, None]).mul_(sign).add_(self.margin)

            if tile.error is not None:  # which pairs are active is decided as by a list
                tile.resolve((excess().abs_() <= tile.error).logical_and_(sign != 0))
            times = self._times(tile)
            losses = excess().relu_().mul_(times)
            active = losses > 0
            counts = times * active if self.of_triplets else active
            count = (counts if self.reduction == "mean_active" else times).sum()
            value = losses.sum(dtype=widest_float(losses.device))
            if not wanted:
                return TileLoss(value, count, None)
            pair_gradients = torch.mul(sign * times if self.of_triplets else sign, active, out=losses)
            by_bound[rows] = -pair_gradients.sum(1)
            return TileLoss(value, count, pair_gradients)

        symmetric = self.beta.ndim == 0 and pairwise.is_symmetric and not self.of_triplets
        extra = bounds, by_bound
        loss = loss_from_pair_gradients("MarginLoss", pairwise, self.reduction, loss_of, symmetric, extra)
        return self._pulled(loss, bounds)

    def _of_mined(
        self, inputs: tuple[Tensor, ...], labels: Tensor | None, mined: Any
    ) -> Float[Tensor, "..."]:
        """The loss of listed pairs."""
        rows = self._listed(inputs, mined)
        if self.beta.ndim:
            if labels is None:
                expected = "labels, beside mined pairs too, since β is one a class"
                raise refusal("MarginLoss", "labels", None, expected)
            labels = self.relation.check("MarginLoss", "labels", labels, len(inputs[0]), inputs[0].device)

        def losses(*inputs: Tensor) -> Iterator[Tensor]:
            for pairs, sign in zip(pairs_of(rows), (1, -1), strict=True):
                for i, j in self._chunks(inputs[0], inputs[-2], *pairs):
                    (d,) = self._listed_distances(inputs[0], inputs[-2], i, j)
                    beyond = d - gather_rows(inputs[-1], i)
                    yield torch.relu(self.margin + sign * beyond)

        bounds = self._bounds(labels, inputs[0])
        whole = self._fits_one_graph(inputs, rows)
        return self._pulled(
            reduced("MarginLoss", self.reduction, losses, *inputs, bounds, one_graph=whole), bounds
        )

    def _is_traced(self, embeddings: Any) -> bool:
        classed = self.beta.ndim == 0 or type(self.relation) is not SharedLabel  # which has no classes
        return classed and super()._is_traced(embeddings)

    def _traced_sum(self, tile: Tile, labels: Tensor, x: Tensor) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
        """The sum over all pairs, and what ν adds to their mean as often as that divides."""
        bounds = self._bounds(labels, x)
        beyond = tile.distance - bounds[:, None]
        losses = torch.relu(self.margin + torch.where(tile.positive, beyond, -beyond))
        times = self._times(tile)
        total = (losses * times).sum(dtype=widest_float(losses.device))
        count = (times * (losses.detach() > 0) if self.reduction == "mean_active" else times).sum()
        pull = self._pulled(total.new_zeros(()), bounds)
        return total + (pull if self.reduction == "sum" else pull * count.clamp(min=1)), count

    def _times(self, tile: Tile) -> Int[Tensor, "a r"]:
        """How often each pair counts; 0 where it is none."""
        if not self.of_triplets:
            return tile.positive.view(torch.int8) + tile.negative.view(torch.int8)
        positives, negatives = tile.positive.sum(1, keepdim=True), tile.negative.sum(1, keepdim=True)
        return tile.positive * negatives + tile.negative * positives

    def extra_repr(self) -> str:
        """The options, for `print`."""
        betas = "one β" if self.beta.ndim == 0 else f"num_classes={len(self.beta)}"
        return f"{betas}, {super().extra_repr()}"

    def _pulled(self, loss: Float[Tensor, "..."], bounds: Float[Tensor, " n"]) -> Float[Tensor, "..."]:
        """The loss and the pull of ν on β of each row."""
        return loss + self.nu * bounds.sum() / max(1, len(bounds)) if self.nu else loss

    def _bounds(self, labels: Tensor | None, x: Float[Tensor, "n k"]) -> Float[Tensor, " n"]:
        """β of each row, with its graph."""
        if self.beta.ndim == 0 or labels is None:
            return self.beta.to(x).expand(len(x))
        classes = self.relation.key(labels)
        if classes is None:
            expected = f"None with relation={self.relation!r}, by which a row has no class of its own"
            raise refusal("MarginLoss", "num_classes", len(self.beta), expected)
        expected = f"classes from 0 to {len(self.beta) - 1}"
        hint = f"num_classes={len(self.beta)} is how many β there are"
        if torch.compiler.is_compiling():
            within, told = classes.clamp(0, len(self.beta) - 1), ("MarginLoss", "labels", "others")
            holds = (within == classes).all()
            return self.beta.to(x)[checked(within, holds, self.check_finite, *told, expected, hint)]
        if classes.device.type != "cpu" and self.check_finite != "now":
            error = refusal("MarginLoss", "labels", "those of an earlier call", expected, hint)
            return self.beta.to(x)[clamped_classes(classes, len(self.beta), self.check_finite, error)]
        outside = (classes < 0) | (classes >= len(self.beta))
        if bool(outside.any()):
            row = int(outside.nonzero()[0])
            raise refusal("MarginLoss", "labels", f"{int(classes[row])} in row {row}", expected, hint)
        return self.beta.to(x)[classes]
