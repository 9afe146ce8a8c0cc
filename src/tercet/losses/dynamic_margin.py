"""The dynamic soft margin: each triplet counts by its rank among those of this batch and of earlier ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tercet.core.checks import as_float, as_int
from tercet.losses.base import Head
from tercet.losses.rowwise import MinedPairs
from tercet.pairwise.accumulate import tiled_mean
from tercet.pairwise.distances import Distance
from tercet.pairwise.relations import Relation, SameLabel
from tercet.pairwise.tiles import Pairwise
from tercet.pairwise.torch_modes import full_precision, widest_float, with_float64

__all__ = ["DynamicSoftMargin"]

_MOST_BINS = 100_000
_Parts = Callable[..., Iterator[tuple[Tensor, Tensor]]]


class DynamicSoftMargin(Head):
    """The dynamic soft margin loss: a triplet counts by the share of triplets that are easier than it.

    L = mean of F(z) z, z = D(a,p) − D(a,n), F(z) = Σ_{r ≤ R (z + s) / (2s)} h_r

    So there is no margin to choose: hard triplets count up to 1, and easy ones nearly nothing. h is a
    histogram at the nodes of R bins that divide [−s, s]: a z is shared between the two nodes next to it, and
    counts at the last node beyond ±s. It is the moving average h ← (1 − α) h + α · h of the batch, taken in
    before the loss of each batch that has triplets, in training mode; that of the first batch is h after it.
    In evaluation mode h stays, and before any batch it is that of the batch at hand. F is a constant to the
    gradient, and a step at each node, where a z within rounding of the node counts as on it. L may be below
    0.

    The paper mines the hardest negative of each pair (`BatchHard`); without `mined` the loss is that of all
    triplets, in the memory of a few tiles. From `Pairs` the triplets are each positive pair with each
    negative pair of its anchor, every distinct pair once. h is that of all triplets together, so columns from
    `gather` are refused. Embeddings are not normalised, save by `"cosine"`; the paper's are unit vectors. An
    accelerator is waited for, to find the positives, but not with mined triplets.

    Args:
        bins: R, from 1 to 100,000.
        span: s, above 0, in units of the distance: 2 for unit vectors.
        momentum: α, from 0 to 1, the share of a batch in h. At 0 h stays that of the first batch.
        distance: D: `"euclidean"` ‖x − y‖, `"squared_euclidean"` ‖x − y‖², `"cosine"` 1 − cos(x, y), `"dot"`
            −x·y, or a `Distance` with a gradient, such as `Mahalanobis`.
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
        >>> x = torch.tensor([[0.0], [0.5], [1.0]])
        >>> head = DynamicSoftMargin(bins=8)  # z = 0.5 − 1 and 0.5 − 0.5, of which F is ½ and 1
        >>> head(x, torch.tensor([0, 0, 1])).item()
        -0.125
        >>> head.histogram.tolist()
        [0.0, 0.0, 0.0, 0.5, 0.5, 0.0, 0.0, 0.0, 0.0]

    Reference:
        Zhang & Rusinkiewicz, "Learning local descriptors with a CDF-based dynamic soft margin", 2019.
    """

    histogram: Tensor
    _tuples = "triplets"
    _sums_over_anchors = False

    def __init__(
        self,
        bins: int = 512,
        span: float = 2.0,
        momentum: float = 0.01,
        *,
        distance: Distance | str = "euclidean",
        relation: Relation = SameLabel(),  # noqa: B008
        tile_rows: int | None = None,
        check_finite: str = "later",
    ) -> None:
        super().__init__(distance, relation, "mean", tile_rows, check_finite)
        caller = "DynamicSoftMargin"
        self.bins = as_int(caller, "bins", bins, minimum=1, maximum=_MOST_BINS)
        self.span = as_float(caller, "span", span, above=0)
        self.momentum = as_float(caller, "momentum", momentum, minimum=0, maximum=1)
        self.register_buffer("histogram", torch.zeros(self.bins + 1))

    def _of_all(self, pairwise: Pairwise | MinedPairs) -> Float[Tensor, ""]:
        """The loss of all triplets, or of all that are joined of listed pairs."""

        def parts(*inputs: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
            for pairs in pairwise.positive_pairs(*inputs):
                yield pairs.d_ap[:, None] - pairs.d_an, pairs.negative

        return self._loss(parts, pairwise.inputs)

    def _of_mined(self, inputs: tuple[Tensor, ...], labels: Tensor | None, mined: Any) -> Float[Tensor, ""]:
        """The loss of listed triplets, or of the triplets that listed pairs join to."""
        rows = self._listed(inputs, mined)
        if len(rows) == 4:
            return self._of_all(MinedPairs(inputs, rows, self.distance, self.tile_rows))

        def parts(*inputs: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
            for a, p, n in self._chunks(inputs[0], inputs[-1], *rows):
                d_ap, d_an = self._listed_distances(inputs[0], inputs[-1], a, p, n)
                yield d_ap - d_an, torch.ones_like(a, dtype=torch.bool)

        return self._loss(parts, inputs)

    def _loss(self, parts: _Parts, inputs: tuple[Tensor, ...]) -> Float[Tensor, ""]:
        """L over parts of the triplets: z, and which are triplets.

        Args:
            parts: makes them, one after the other, of tensors like `inputs`.
            inputs: the features.
        """
        device, near = inputs[0].device, 4 * self.bins * torch.finfo(inputs[0].dtype).eps
        with torch.no_grad(), full_precision(device):
            counts = torch.zeros(self.bins + 1, dtype=widest_float(device), device=device)
            for z, real in parts(*inputs):
                counts += with_float64(_counted, self._place(z), real, self.bins)
            below = self._taken_in(counts).cumsum(0).to(inputs[0].dtype)  # F

        def terms(*inputs: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
            for z, real in parts(*inputs):
                node = (self._place(z) + near).long().clamp_(max=self.bins)
                losses = (below[node] * z).masked_fill(~real, 0.0)
                yield losses.sum(dtype=widest_float(device)), real.sum()

        return tiled_mean("DynamicSoftMargin", "mean", terms, *inputs)

    @torch.no_grad()
    def _place(self, z: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Where z is among the nodes, from 0 to R."""
        place = ((z + self.span) / (2 * self.span / self.bins)).clamp_(0, self.bins)
        return place.nan_to_num_(0.0)  # the check of NaN may come later

    def _taken_in(self, counts: Float[Tensor, " nodes"]) -> Float[Tensor, " nodes"]:
        """The histogram with that of the batch."""
        kept, every = self.histogram.to(counts), counts.sum()
        found = counts / every.clamp(min=1)
        share = self.momentum if self.training else 0.0
        known = torch.where(every > 0, kept.lerp(found, share), kept)
        known = torch.where(kept.sum() > 0, known, found)
        if self.training:
            self.histogram.copy_(known)
        return known


def _counted(
    place: Float[Tensor, "*shape"], real: Bool[Tensor, "*shape"], bins: int
) -> Float[Tensor, " nodes"]:
    """The histogram of a part, in float64, since a node may count more than 2²⁴ triplets."""
    cell: Int[Tensor, " t"] = place.flatten().long().clamp_(max=bins - 1)
    weight = real.flatten().double()
    share = (place.flatten() - cell) * weight
    counts = share.new_zeros(bins + 1)
    return counts.scatter_add_(0, cell, weight - share).scatter_add_(0, cell + 1, share)
