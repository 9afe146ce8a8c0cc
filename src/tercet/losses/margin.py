"""The margin loss: pairs against a boundary that is learned."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from tercet.checks import choice, real, refusal, whole
from tercet.distances import Distance, as_distance
from tercet.losses.rowwise import reduced
from tercet.pairwise import (
    REDUCTIONS,
    Pairwise,
    features,
    mined_rows,
    tile_height,
    whole_numbers,
)
from tercet.tuples import References

__all__ = ["MarginLoss"]


class MarginLoss(nn.Module):
    """How far positives are beyond a boundary, and negatives within it, and a boundary that learns.

    ℓ = h(α + (D(a,p) − β)) for a positive pair, h(α − (D(a,n) − β)) for a negative one, h(z) = max(0, z);
    the loss is their mean + ν · (1/n) Σ_i β_i over the rows i of the batch

    β is one number, or one a class: then β_i is that of the class of row i, and a pair takes its anchor's. It
    is a parameter, `head.beta`, so give the head's parameters to the optimiser;
    `head.beta.requires_grad_(False)` holds it still.

    Each triplet is two pairs, counted as often as it is listed, since distance-weighted sampling draws with
    repetition. Pairs are ordered, rows against columns. Embeddings are taken as they are; the paper's are
    unit vectors.

    Args:
        margin: α, in units of the distance.
        beta: what β starts from, in units of the distance.
        num_classes: how many β there are, for labels from 0 to num_classes − 1; None for a single one.
        nu: ν, the pull that makes β smaller.
        distance: a `Distance` or its name.
        reduction: `"mean_active"` over the pairs with ℓ > 0, positive and negative together, `"mean"` over
            all pairs, `"sum"`, or `"none"` for one loss a mined pair.
        tile_rows: rows computed at once; None for as many as fit the memory of a tile. It changes no result.

    Raises:
        ValueError: an option out of range, or two that contradict each other.

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

    def __init__(
        self,
        margin: float = 0.2,
        beta: float = 1.2,
        *,
        num_classes: int | None = None,
        nu: float = 0.0,
        distance: Distance | str = "euclidean",
        reduction: str = "mean_active",
        tile_rows: int | None = None,
    ) -> None:
        super().__init__()
        owner = "MarginLoss"
        self.margin = real(owner, "margin", margin, minimum=0)
        self.nu = real(owner, "nu", nu, minimum=0)
        self.distance = as_distance(owner, distance, gradient=True)
        self.reduction = choice(owner, "reduction", reduction, REDUCTIONS)
        if self.nu and self.reduction == "none":
            way_out = "leave one of the two away"
            raise refusal(owner, "nu", nu, '0 with reduction="none", for it is no pair\'s loss', way_out)
        self.tile_rows = None if tile_rows is None else whole(owner, "tile_rows", tile_rows, minimum=1)
        shape = () if num_classes is None else (whole(owner, "num_classes", num_classes, minimum=1),)
        self.beta = nn.Parameter(torch.full(shape, real(owner, "beta", beta)))

    def forward(
        self,
        embeddings: Shaped[Tensor, "n d"],
        labels: Shaped[Tensor, " n"] | None = None,
        mined: Any = None,
        *,
        ids: Shaped[Tensor, " n"] | None = None,
        ref: References | None = None,
    ) -> Float[Tensor, "..."]:
        """The loss of the mined pairs, or of all.

        Args:
            embeddings: [n, d] floats.
            labels: [n] integers or bools, below `num_classes` where β is one a class; beside `mined` they are
                read only for that.
            mined: `Pairs`, or any four index tensors like them; or `Triplets`, or any three, each for its two
                pairs (a, p) and (a, n). None for all pairs.
            ids: [n] integers, which image each row is; read only without `mined`.
            ref: the columns that positives and negatives are rows of; None for the batch itself.

        Returns:
            A scalar in float32 (float64 for float64 embeddings): 0 and the pull of ν, with a graph, where
            there are no pairs; with `reduction="none"`, one loss a pair, the positive pairs first.

        Raises:
            ValueError: neither labels nor pairs, labels that have no β, what `Pairwise` refuses, or rows that
                do not exist.
        """
        if mined is not None:
            inputs = features("MarginLoss", embeddings, self.distance, ref)
            n, r, device = len(inputs[0]), len(inputs[-1]), inputs[0].device
            losses = partial(self._of_mined, mined_rows("MarginLoss", mined, n, r, device))
        elif labels is None:
            raise refusal("MarginLoss", "labels", None, "labels, or mined pairs")
        elif self.reduction == "none":
            way_out = "pass Pairs of the rows to compare"
            raise refusal("MarginLoss", "mined", None, 'mined pairs with reduction="none"', way_out)
        else:
            pairwise = Pairwise(
                "MarginLoss",
                embeddings,
                labels,
                ids=ids,
                ref=ref,
                distance=self.distance,
                tile_rows=self.tile_rows,
            )
            inputs, losses = pairwise.inputs, partial(self._of_all, pairwise)
        bounds = self._bounds(labels, inputs[0])
        loss = reduced(self.reduction, losses, *inputs, bounds)
        return loss + self.nu * bounds.sum() / max(1, len(bounds)) if self.nu else loss

    def extra_repr(self) -> str:
        """The options, for `print`."""
        betas = "one β" if self.beta.ndim == 0 else f"num_classes={len(self.beta)}"
        return (
            f"margin={self.margin:g}, {betas}, nu={self.nu:g}, distance={self.distance}, "
            f"reduction={self.reduction!r}"
        )

    def _of_all(self, pairwise: Pairwise, *inputs: Tensor) -> Iterator[Tensor]:
        """ℓ of all pairs, a tile at a time; the last input is β of each row."""
        for tile in pairwise.tiles(*inputs[:-1]):
            beyond = tile.distance - inputs[-1][tile.start : tile.start + len(tile.distance), None]  # [a, r]
            yield torch.relu(self.margin + torch.cat([beyond[tile.positive], -beyond[tile.negative]]))

    def _of_mined(self, rows: tuple[Tensor, ...], *inputs: Tensor) -> Iterator[Tensor]:
        """ℓ of the positive pairs and then of the negative ones, some at a time."""
        height = tile_height("MarginLoss", inputs[0].shape[1], inputs[0].dtype, self.tile_rows)
        anchor = rows[2] if len(rows) == 4 else rows[0]
        for pairs, sign in ((rows[:2], 1), ((anchor, rows[-1]), -1)):
            for i, j in zip(*(index.split(height) for index in pairs)):
                beyond = self.distance.paired(inputs[0][i], inputs[-2][j]) - inputs[-1][i]
                yield torch.relu(self.margin + sign * beyond)

    def _bounds(self, labels: Tensor | None, x: Float[Tensor, "n k"]) -> Float[Tensor, " n"]:
        """β of each row, with its graph."""
        if self.beta.ndim == 0:
            return self.beta.to(x).expand(len(x))
        if labels is None:
            expected = "labels, beside mined pairs too, since β is one a class"
            raise refusal("MarginLoss", "labels", None, expected)
        classes = whole_numbers("MarginLoss", "labels", labels, len(x), x.device)
        outside = (classes < 0) | (classes >= len(self.beta))
        if bool(outside.any()):
            row = int(outside.nonzero()[0])
            raise refusal(
                "MarginLoss",
                "labels",
                f"{int(classes[row])} in row {row}",
                f"classes from 0 to {len(self.beta) - 1}",
                f"num_classes={len(self.beta)} is how many β there are",
            )
        return self.beta.to(x)[classes]
