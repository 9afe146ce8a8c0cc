"""Histogram losses: how two distributions of similarity overlap, and how well each query ranks.

Both count numbers softly: each adds to the two nodes beside it, linearly, so that a count has a gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from tercet.checks import refusal, whole
from tercet.distances import cosine, dot
from tercet.pairwise import Pairwise, features, mined_rows, tile_height, tiled_mean, tiled_sum
from tercet.tuples import References

__all__ = ["FastAP", "Histogram"]


class _MinusCosine:
    """D = −cos(x, y), as one matrix product: a bin is far wider than the digits it loses near duplicates."""

    differentiable = True
    prepare = staticmethod(cosine.prepare)
    tile = staticmethod(dot.tile)
    paired = staticmethod(dot.paired)


class Histogram(nn.Module):
    """The probability that a random negative pair is more similar than a random positive pair.

    L = Σ_r h⁻_r φ⁺_r, φ⁺_r = Σ_{q≤r} h⁺_q, h_r = (1/|S|) Σ_{s∈S} δ_r(s)

    S⁺ and S⁻ are the cosine similarities of the positive and of the negative pairs. R bins of width
    Δ = 2/R part [−1, 1]; a similarity between the nodes t_r and t_{r+1} adds (t_{r+1} − s)/Δ to h_r and
    (s − t_r)/Δ to h_{r+1}, so s = 1 stands on the last node. The gradient is that of these weights: a positive
    in bin r is pulled by h⁻_r / (|S⁺| Δ), a negative pushed by h⁺_{r+1} / (|S⁻| Δ). Two passes over the
    similarities, a tile at a time, make the histograms and then the gradient.

    Each pair counts once. Where the columns are the batch, (i, j) and (j, i) are one pair.

    Args:
        bins: R. The paper's texts that give R nodes have R − 1 bins.
        tile_rows: rows computed at once; None for as many as fit the memory of a tile. It changes the result
            by rounding alone.

    Raises:
        ValueError: an option out of range.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]], requires_grad=True)
        >>> loss = Histogram(bins=4)(x, torch.tensor([0, 0, 1]))  # S⁺ = {0.6}, S⁻ = {0.8, 0.0}
        >>> loss.backward()
        >>> round(loss.item(), 4)
        0.44

    Reference:
        Ustinova & Lempitsky, "Learning deep embeddings with histogram loss", 2016.
    """

    def __init__(self, bins: int = 100, *, tile_rows: int | None = None) -> None:
        super().__init__()
        self.bins = whole("Histogram", "bins", bins, minimum=1)
        self.tile_rows = None if tile_rows is None else whole("Histogram", "tile_rows", tile_rows, minimum=1)

    def forward(
        self,
        embeddings: Shaped[Tensor, "n d"],
        labels: Shaped[Tensor, " n"] | None = None,
        mined: Any = None,
        *,
        ids: Shaped[Tensor, " n"] | None = None,
        ref: References | None = None,
    ) -> Float[Tensor, ""]:
        """The loss of the mined pairs, or of all.

        Args:
            embeddings: [n, d] floats of any length; their directions count.
            labels: [n] integers or bools; read only without `mined`.
            mined: `Pairs`, or any four index tensors like them; or `Triplets`, or any three, for their pairs
                (a, p) and (a, n). None for all pairs.
            ids: [n] integers, which image each row is; read only without `mined`.
            ref: the columns that positives and negatives are rows of; None for the batch itself.

        Returns:
            A scalar in float32 (float64 for float64 embeddings): 0, with a graph whose gradient is 0, where
            there are no positive or no negative pairs.

        Raises:
            ValueError: neither labels nor pairs, what `Pairwise` refuses, or rows that do not exist.
        """
        owner = "Histogram"
        if mined is not None:
            inputs = features(owner, embeddings, cosine, ref)
            return self._loss(self._mined_parts(inputs, mined, ref is None), inputs)
        if labels is None:
            raise refusal(owner, "labels", None, "labels, or mined pairs")
        pairwise = Pairwise(
            owner, embeddings, labels, ids=ids, ref=ref, distance=_MinusCosine(), tile_rows=self.tile_rows
        )

        def parts(*inputs: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
            for tile in pairwise.tiles(*inputs):  # both (i, j) and (j, i): all halves double, none changes
                yield -tile.distance, tile.positive + 2 * tile.negative

        return self._loss(parts, pairwise.inputs)

    def extra_repr(self) -> str:
        """The options, for `print`."""
        return f"bins={self.bins}"

    def _mined_parts(
        self, inputs: tuple[Tensor, ...], mined: Any, same: bool
    ) -> Callable[..., Iterator[tuple[Tensor, Tensor]]]:
        n, r, x = len(inputs[0]), len(inputs[-1]), inputs[0]
        rows = mined_rows("Histogram", mined, n, r, x.device)
        pairs = [_distinct(i, j, r, same) for i, j in (rows[:2], (rows[-2] if len(rows) == 4 else rows[0], rows[-1]))]
        height = tile_height("Histogram", x.shape[1], x.dtype, self.tile_rows)

        def parts(*inputs: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
            for side, (rows, columns) in enumerate(pairs, start=1):
                for i, j in zip(rows.split(height), columns.split(height)):
                    yield -dot.paired(inputs[0][i], inputs[-1][j]), torch.full_like(i, side)

        return parts

    def _loss(
        self, parts: Callable[..., Iterator[tuple[Tensor, Tensor]]], inputs: tuple[Tensor, ...]
    ) -> Float[Tensor, ""]:
        """The loss over parts of the pairs: cosine similarities, and 1 for positive, 2 for negative, 0 for neither."""
        device = inputs[0].device
        counts = torch.zeros(3, self.bins + 1, dtype=torch.float64, device=device)
        with torch.no_grad():
            for s, side in parts(*inputs):
                cell, share = _cells(s.flatten(), side.flatten(), self.bins)
                counts += _soft_counts(cell[None], share[None].double(), self.bins)[0]
        _, pos, neg = counts
        n_pos, n_neg = (side.sum().clamp(min=1) for side in (pos, neg))
        ...
