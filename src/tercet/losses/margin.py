"""The margin loss, over mined pairs or over all of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tercet.core.checks import as_bool, as_float, as_int, refusal
from tercet.losses.base import Head, anchor_shares, pairs_of, reduced
from tercet.losses.tile_gradients import TileLoss, averaged_by_anchor, loss_from_pair_gradients
from tercet.pairwise.accumulate import BY_ANCHOR
from tercet.pairwise.distances import Distance
from tercet.pairwise.euclidean import gather_rows
from tercet.pairwise.inputs import allocated, clamped_classes
from tercet.pairwise.relations import Relation, SameLabel, SharedLabel
from tercet.pairwise.tiles import Pairwise, Tile
from tercet.pairwise.torch_modes import widest_float
from tercet.pairwise.traced import checked

__all__ = ["MarginLoss"]


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
    _averages_by_anchor = True

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

            def slopes() -> Tensor | None:
                weight = sign * times if self.of_triplets else sign
                return torch.mul(weight, active, out=losses) if wanted else None

            if self.reduction == BY_ANCHOR:
                loss = averaged_by_anchor(losses.sum(1), times.sum(1), slopes())
            else:
                counts = times * active if self.of_triplets else active
                count = (counts if self.reduction == "mean_active" else times).sum()
                loss = TileLoss(losses.sum(dtype=widest_float(losses.device)), count, slopes())
            if loss.pair_gradients is not None:
                by_bound[rows] = -loss.pair_gradients.sum(1)
            return loss

        alike = not self.of_triplets and self.reduction != BY_ANCHOR
        symmetric = self.beta.ndim == 0 and pairwise.is_symmetric and alike
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

        by_anchor = self.reduction == BY_ANCHOR
        shares = anchor_shares(inputs[0], *(i for i, _ in pairs_of(rows))) if by_anchor else None

        def losses(*inputs: Tensor) -> Iterator[Tensor]:
            for pairs, sign in zip(pairs_of(rows), (1, -1), strict=True):
                for i, j in self._chunks(inputs[0], inputs[-2], *pairs):
                    (d,) = self._listed_distances(inputs[0], inputs[-2], i, j)
                    beyond = d - gather_rows(inputs[-1], i)
                    part = torch.relu(self.margin + sign * beyond)
                    yield part if shares is None else part * shares[i]

        bounds = self._bounds(labels, inputs[0])
        whole = self._fits_one_graph(inputs, rows)
        reduction = "sum" if by_anchor else self.reduction
        loss = reduced("MarginLoss", reduction, losses, *inputs, bounds, one_graph=whole)
        return self._pulled(loss, bounds)

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
