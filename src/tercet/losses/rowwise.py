"""What listwise heads are made of: their call, the tiles of a mined list, a log Σ exp of part of a row."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from tercet.checks import choice, real, refusal, whole
from tercet.distances import Distance, as_distance, cosine, dot
from tercet.pairwise import (
    REDUCTIONS,
    Pairwise,
    Tile,
    features,
    mined_rows,
    summed,
    tile_height,
    tiled_mean,
)
from tercet.tuples import References

__all__ = ["ListwiseHead", "MinedPairs", "NegativeCosine", "above_zero", "log_sum", "reduced"]


class NegativeCosine:
    """D = −cos(x, y), the cosine distance less 1, by a matrix product: many times faster than by differences.

    It is not exactly −1 for equal rows: a similarity does without the digits that a small distance needs.
    """

    differentiable = True
    prepare = staticmethod(cosine.prepare)
    tile = staticmethod(dot.tile)
    paired = staticmethod(dot.paired)

    def __repr__(self) -> str:
        return "cosine"


class ListwiseHead(nn.Module):
    """The call that listwise heads share: what is compared, tile by tile, and one number made of it.

    A head adds its options and `losses_of(tile)`, the losses of a tile that the mean is over. Everything it
    needs of an anchor stands in one row, so the memory is that of a few tiles, never positives × negatives.

    No head minds 1 less in every distance, so `cosine` becomes −s, s the cosine similarity.
    """

    losses_of: Callable[[Tile], Tensor]

    def __init__(self, distance: Distance | str, reduction: str, tile_rows: int | None) -> None:
        super().__init__()
        owner = type(self).__name__
        measure = as_distance(owner, distance, gradient=True)
        self.distance = NegativeCosine() if measure == cosine else measure
        self.reduction = choice(owner, "reduction", reduction, REDUCTIONS)
        self.tile_rows = None if tile_rows is None else whole(owner, "tile_rows", tile_rows, minimum=1)

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
            labels: [n] integers or bools; read only without `mined`.
            mined: `Pairs`, or any four index tensors like them; or `Triplets`, or any three: their pairs
                (a, p) and (a, n). Each distinct pair counts once. None for all pairs.
            ids: [n] integers, which image each row is; read only without `mined`.
            ref: the columns that positives and negatives are rows of; None for the batch itself.

        Returns:
            A scalar in float32 (float64 for float64 embeddings): 0, with a graph whose gradient is 0, where
            there is nothing to compare. With `reduction="none"` one loss for each that the mean is over, by
            anchor and then by positive; its graph holds all tiles.

        Raises:
            ValueError: neither labels nor pairs, what `Pairwise` refuses, or rows that do not exist.
        """
        owner = type(self).__name__
        if mined is not None:
            return self.loss_of(MinedPairs(owner, embeddings, mined, self.distance, ref, self.tile_rows))
        if labels is None:
            raise refusal(owner, "labels", None, "labels, or mined pairs")
        pairwise = Pairwise(
            owner,
            embeddings,
            labels,
            ids=ids,
            ref=ref,
            distance=self.distance,
            tile_rows=self.tile_rows,
        )
        return self.loss_of(pairwise)

    def loss_of(self, compared: Pairwise | MinedPairs) -> Float[Tensor, "..."]:
        """The loss of rows against columns."""

        def losses(*inputs: Tensor) -> Iterator[Tensor]:
            for tile in compared.tiles(*inputs):
                yield self.losses_of(tile)

        return reduced(self.reduction, losses, *compared.inputs)


class MinedPairs:
    """Mined tuples as `Pairwise` shows a batch: tiles whose positives and negatives are those of the list.

    Args are those of `Pairwise`, and `mined` those of `mined_rows`. Triplets are their pairs (a, p), (a, n).

    Example:
        >>> from tercet.distances import euclidean
        >>> mined = ([0, 0], [1, 1], [2, 3])
        >>> pairs = MinedPairs("doc", torch.eye(4), [torch.tensor(v) for v in mined], euclidean)
        >>> [(tile.positive.nonzero().tolist(), tile.negative.nonzero().tolist()) for tile in pairs.tiles()]
        [([[0, 1]], [[0, 2], [0, 3]])]
    """

    def __init__(
        self,
        owner: str,
        embeddings: Shaped[Tensor, "n d"],
        mined: Any,
        distance: Distance,
        ref: References | None = None,
        tile_rows: int | None = None,
    ) -> None:
        self.distance = distance
        self.inputs = features(owner, embeddings, distance, ref)
        n, r, device = len(self.inputs[0]), len(self.inputs[-1]), self.inputs[0].device
        rows = mined_rows(owner, mined, n, r, device)
        self._sides = (rows[0], rows[1]), (rows[-2] if len(rows) == 4 else rows[0], rows[-1])
        self.tile_rows = tile_height(owner, r, self.inputs[0].dtype, tile_rows)

    def tiles(self, *inputs: Float[Tensor, "_ k"]) -> Iterator[Tile]:
        """Anchors × columns, in row order; `inputs` as `Pairwise.tiles` takes them."""
        x, y = (inputs or self.inputs)[0], (inputs or self.inputs)[-1]
        for start in range(0, len(x) if len(y) else 0, self.tile_rows):
            distance = self.distance.tile(x[start : start + self.tile_rows], y)
            masks = []
            for anchor, column in self._sides:
                here = (anchor >= start) & (anchor < start + len(distance))
                mask = torch.zeros_like(distance, dtype=torch.bool)
                mask[anchor[here] - start, column[here]] = True
                masks.append(mask)
            yield Tile(start, distance, *masks)


def above_zero(owner: str, argument: str, value: Any) -> float:
    """`value` as a float, refused unless it is finite and above 0."""
    number = real(owner, argument, value)
    if number <= 0:
        raise refusal(owner, argument, value, "a finite number above 0")
    return number


def log_sum(logits: Float[Tensor, "a r"], mask: Bool[Tensor, "a r"], dim: int = 1) -> Float[Tensor, " _"]:
    """log Σ exp over the masked entries along `dim`; over none the lowest number of the kind, no gradient."""
    # Not −∞: the derivative of a sum over nothing but −∞ is NaN.
    return torch.logsumexp(logits.masked_fill(~mask, torch.finfo(logits.dtype).min), dim=dim)


def reduced(
    reduction: str, losses: Callable[..., Iterator[Tensor]], *inputs: Float[Tensor, "..."]
) -> Float[Tensor, "..."]:
    """The losses that a generator makes of tensors like `inputs`, a tile at a time, as `reduction` says."""
    if reduction == "none":
        return torch.cat([inputs[0].sum(1)[:0], *losses(*inputs)])

    def terms(*inputs: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        for part in losses(*inputs):
            yield summed(part, reduction)

    return tiled_mean(reduction, terms, *inputs)
