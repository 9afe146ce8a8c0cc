"""Miners: which rows of a batch meet. Labels and distances in, `Triplets` of row numbers out.

A miner is a frozen dataclass of its options, called as `miner(embeddings, labels, *, ids=None, ref=None)`.
It computes no gradient, draws no random number, never pairs an image with itself, and returns int64
tensors on the embeddings' device, sorted by anchor. Nothing to mine gives empty tensors, never an error.
Among equal distances the lower row number wins, so no result depends on the height of a tile.

Embeddings are taken as they are: a margin of 0.2 presumes unit vectors, or `distance="cosine"`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor

from tercet.checks import choice, real, whole
from tercet.distances import Distance, as_distance
from tercet.pairwise import Pairwise
from tercet.tuples import References, Triplets

__all__ = ["BatchAll", "BatchHard", "SemiHard"]


def _settle(miner: Any, **options: Any) -> None:
    """Write checked options back into a frozen dataclass, beside the two that every miner has."""
    owner = type(miner).__name__
    if miner.tile_rows is not None:
        options["tile_rows"] = whole(owner, "tile_rows", miner.tile_rows, minimum=1)
    options["distance"] = as_distance(owner, miner.distance)
    for name, value in options.items():
        object.__setattr__(miner, name, value)


def _margin(miner: Any) -> float | None:
    return None if miner.margin is None else real(type(miner).__name__, "margin", miner.margin, minimum=0)


def _pairwise(miner: Any, embeddings: Tensor, labels: Tensor, ids: Any, ref: Any) -> Pairwise:
    return Pairwise(
        type(miner).__name__,
        embeddings,
        labels,
        ids=ids,
        ref=ref,
        distance=miner.distance,
        tile_rows=miner.tile_rows,
    )


def _joined(parts: list[tuple[Tensor, Tensor, Tensor]], device: torch.device) -> Triplets:
    """What the tiles gave, one after the other; empty where there were none."""
    nothing = torch.empty(0, dtype=torch.int64, device=device)
    return Triplets(*(torch.cat(column) for column in zip((nothing, nothing, nothing), *parts)))


@dataclass(frozen=True)
class BatchAll:
    """Every triplet of the batch, or every one whose hinge loss is not yet 0.

    {(a, p, n) : y_a = y_p ≠ y_n, a ≠ p, and, with a margin m, D(a,p) − D(a,n) + m > 0}

    There are about N²K of them; a head without `mined` gives their loss without a list.

    Args:
        margin: m, in units of the distance; None for every triplet.
        distance: a `Distance` or its name.
        tile_rows: rows computed at once; None for as many as fit the memory of a tile.

    Raises:
        ValueError: an option out of range; when called, what `Pairwise` refuses.

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [1.5], [9.0]])
        >>> triplets = BatchAll(margin=1.0)(x, torch.tensor([0, 0, 1, 1]))
        >>> torch.stack(triplets).T.tolist()
        [[0, 1, 2], [1, 0, 2], [2, 3, 0], [2, 3, 1], [3, 2, 1]]

    Reference:
        Hermans, Beyer & Leibe, "In defense of the triplet loss for person re-identification", 2017.
    """

    margin: float | None = None
    distance: Distance | str = "euclidean"
    tile_rows: int | None = None

    def __post_init__(self) -> None:
        _settle(self, margin=_margin(self))

    @torch.no_grad()
    def __call__(
        self,
        embeddings: Shaped[Tensor, "n d"],
        labels: Shaped[Tensor, " n"],
        *,
        ids: Shaped[Tensor, " n"] | None = None,
        ref: References | None = None,
    ) -> Triplets:
        """All triplets, by anchor, positive and negative.

        Args:
            embeddings: [n, d] floats.
            labels: [n] integers or bools.
            ids: [n] integers, which image each row is; equal ids are one image.
            ref: columns to mine `positive` and `negative` from; None for the batch itself.

        Returns:
            `Triplets` of int64 [t].
        """
        parts = []
        for tile in _pairwise(self, embeddings, labels, ids, ref).positive_pairs():
            wanted = tile.negative
            if self.margin is not None:
                wanted = wanted & (tile.d_an < tile.d_ap[:, None] + self.margin)  # [c, r]
            pair, negative = wanted.nonzero(as_tuple=True)
            parts.append((tile.anchor[pair], tile.positive[pair], negative))
        return _joined(parts, embeddings.device)


@dataclass(frozen=True)
class BatchHard:
    """For each anchor its farthest positive and its nearest negative.

    p = argmax D(a, ·) over positives, n = argmin D(a, ·) over negatives

    Args:
        distance: a `Distance` or its name.
        tile_rows: rows computed at once; None for as many as fit the memory of a tile.

    Raises:
        ValueError: an option out of range; when called, what `Pairwise` refuses.

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [3.0], [4.0], [9.0]])
        >>> triplets = BatchHard()(x, torch.tensor([0, 0, 0, 1, 1]))
        >>> torch.stack(triplets).T.tolist()
        [[0, 2, 3], [1, 2, 3], [2, 0, 3], [3, 4, 2], [4, 3, 2]]

    Reference:
        Hermans, Beyer & Leibe, "In defense of the triplet loss for person re-identification", 2017.
    """

    distance: Distance | str = "euclidean"
    tile_rows: int | None = None

    def __post_init__(self) -> None:
        _settle(self)

    @torch.no_grad()
    def __call__(
        self,
        embeddings: Shaped[Tensor, "n d"],
        labels: Shaped[Tensor, " n"],
        *,
        ids: Shaped[Tensor, " n"] | None = None,
        ref: References | None = None,
    ) -> Triplets:
        """One triplet for each anchor that has a positive and a negative.

        Args and Returns are those of `BatchAll`.
        """
        parts = []
        for tile in _pairwise(self, embeddings, labels, ids, ref).tiles():
            positive = tile.distance.masked_fill(~tile.positive, -math.inf).argmax(1)
            negative = tile.distance.masked_fill(~tile.negative, math.inf).argmin(1)
            row = (tile.positive.any(1) & tile.negative.any(1)).nonzero()[:, 0]
            parts.append((row + tile.start, positive[row], negative[row]))
        return _joined(parts, embeddings.device)


@dataclass(frozen=True)
class SemiHard:
    """For each anchor and positive the nearest negative that lies beyond the positive.

    n = argmin D(a, ·) over negatives with D(a,p) < D(a,n), and D(a,n) < D(a,p) + m where there is a margin

    Args:
        margin: m, in units of the distance; None for no upper bound.
        fallback: what an (a, p) without such a negative gives: None for no triplet, `"easiest"` for the
            farthest negative of all.
        distance: a `Distance` or its name.
        tile_rows: rows computed at once; None for as many as fit the memory of a tile.

    Raises:
        ValueError: an option out of range; when called, what `Pairwise` refuses.

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [0.5], [1.1], [9.0]])
        >>> triplets = SemiHard(margin=0.2)(x, torch.tensor([0, 0, 1, 1, 1]))
        >>> torch.stack(triplets).T.tolist()
        [[0, 1, 3], [4, 3, 1]]

    Reference:
        Schroff, Kalenichenko & Philbin, "FaceNet: a unified embedding for face recognition and
        clustering", 2015.
    """

    margin: float | None = 0.2
    fallback: str | None = None
    distance: Distance | str = "euclidean"
    tile_rows: int | None = None

    def __post_init__(self) -> None:
        if self.fallback is not None:
            choice("SemiHard", "fallback", self.fallback, ["easiest"])
        _settle(self, margin=_margin(self))

    @torch.no_grad()
    def __call__(
        self,
        embeddings: Shaped[Tensor, "n d"],
        labels: Shaped[Tensor, " n"],
        *,
        ids: Shaped[Tensor, " n"] | None = None,
        ref: References | None = None,
    ) -> Triplets:
        """At most one triplet for each anchor and positive.

        Args and Returns are those of `BatchAll`.
        """
        parts = []
        for tile in _pairwise(self, embeddings, labels, ids, ref).positive_pairs():
            beyond = tile.negative & (tile.d_an > tile.d_ap[:, None])  # [c, r]
            if self.margin is not None:
                beyond &= tile.d_an < tile.d_ap[:, None] + self.margin
            negative = tile.d_an.masked_fill(~beyond, math.inf).argmin(1)
            found = beyond.any(1)
            if self.fallback == "easiest":
                easiest = tile.d_an.masked_fill(~tile.negative, -math.inf).argmax(1)
                negative = torch.where(found, negative, easiest)
                found = tile.negative.any(1)
            parts.append((tile.anchor[found], tile.positive[found], negative[found]))
        return _joined(parts, embeddings.device)
