"""The exact k-NN graph of a collection, and what its classes say: votes, ranks, mutual neighbours, the scale.

Lengths are those of a space in which points lie: of `cosine` that of the chord, √(2 D), so that a share of a
length means the same under every distance.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int64

from tercet.neighbors.collection import nearest
from tercet.offline.filters import scores_of
from tercet.offline.positives import pair_distances
from tercet.pairwise.distances import as_distance

__all__ = ["NeighborGraph", "Votes", "neighbor_graph", "own_scores", "pair_scores"]


class Votes(NamedTuple):
    """What the neighbours of each image say of its class.

    Args:
        own: [n] share of the votes for its own class, each vote weighted by 1 / (length + scale).
        best: int64 [n], the other class with most votes; −1 where all are for its own.
        share: [n] share of the votes for that class.
    """

    own: Float[np.ndarray, " n"]
    best: Int64[np.ndarray, " n"]
    share: Float[np.ndarray, " n"]

    @property
    def winner_is_other(self) -> np.ndarray:
        """bool [n], whether another class has more votes than the image's own."""
        return self.share > self.own


class NeighborGraph(NamedTuple):
    """The k nearest images of each image, nearest first.

    Args:
        rows: int64 [n, k]; −1 where there are fewer.
        lengths: [n, k]; inf where there are fewer.

    Example:
        >>> graph = neighbor_graph(np.array([[0.0], [1.0], [3.0]]), 1, "euclidean")
        >>> graph.rows.ravel().tolist(), graph.scale
        ([1, 0, 1], 1.0)
        >>> graph.mutual.ravel().tolist(), graph.found_by.tolist()
        ([True, True, False], [1, 2, 0])
    """

    rows: Int64[np.ndarray, "n k"]
    lengths: Float[np.ndarray, "n k"]

    @property
    def scale(self) -> float:
        """The median length to the nearest image, over images whose nearest is not at 0; 0 of none."""
        first = self.lengths[:, 0]
        first = first[np.isfinite(first) & (first > 0)]
        return float(np.median(first)) if len(first) else 0.0

    @property
    def mutual(self) -> np.ndarray:
        """bool [n, k], whether a neighbour has the image among its own k nearest."""
        n, k = self.rows.shape
        edges = np.where(self.rows >= 0, np.arange(n)[:, None] * n + self.rows, -1)
        back = np.where(self.rows >= 0, self.rows * n + np.arange(n)[:, None], -2)
        return np.isin(back, edges).reshape(n, k)

    @property
    def found_by(self) -> Int64[np.ndarray, " n"]:
        """How many images have each among their k nearest."""
        return np.bincount(self.rows[self.rows >= 0], minlength=len(self.rows))

    def classes(self, codes: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, "n k"]:
        """The class of each neighbour; −1 where there is none."""
        return np.where(self.rows >= 0, codes[self.rows], -1)

    def own_rank(self, codes: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
        """The rank of the nearest image of the own class, from 1; 0 where none of the k is of it."""
        own = self.classes(codes) == codes[:, None]
        return np.where(own.any(1), own.argmax(1) + 1, 0)

    def votes(self, codes: Int64[np.ndarray, " n"]) -> Votes:
        """The votes of the neighbours of each image, itself left out.

        Args:
            codes: class numbers.

        Example:
            >>> graph = neighbor_graph(np.array([[0.0], [1.0], [1.5], [2.0]]), 3, "euclidean")
            >>> votes = graph.votes(np.array([0, 1, 0, 0]))
            >>> votes.best.tolist(), votes.winner_is_other.tolist(), votes.own.round(2).tolist()
            ([1, 0, 1, 1], [False, True, False, False], [0.57, 0.0, 0.6, 0.68])
        """
        kinds = self.classes(codes)
        weights = np.where(kinds >= 0, 1 / (self.lengths + (self.scale or 1.0)), 0.0)
        weights = weights / np.maximum(weights.sum(1, keepdims=True), np.finfo(float).tiny)
        own = np.where(kinds == codes[:, None], weights, 0).sum(1)
        best, share = np.full(len(codes), -1), np.zeros(len(codes))
        for place in range(kinds.shape[1]):
            kind = kinds[:, place]
            total = np.where(kinds == kind[:, None], weights, 0).sum(1)
            better = (kind >= 0) & (kind != codes) & (total > share)
            best, share = np.where(better, kind, best), np.where(better, total, share)
        return Votes(own, best, share)


def neighbor_graph(
    x: Any, k: int, distance: str, *, memory: int | None = None, progress: bool = False
) -> NeighborGraph:
    """The exact k-NN graph of the rows of a matrix; rows of NaN have no neighbours and are none.

    Args:
        x: [n, d], numpy, a memory map or a tensor.
        k: how many neighbours; fewer where there are not as many rows.
        distance: "cosine", "euclidean" or "squared_euclidean".
        memory: bytes of the search, as for `nearest`.
        progress: show a progress bar.
    """
    k = max(1, min(k, len(x) - 1))
    found = nearest(x, k=k, distance=distance, nan="skip", memory=memory, progress=progress)
    lengths = np.maximum(found.distances.astype(np.float64), 0)
    if distance != "euclidean":
        lengths = np.sqrt(lengths * (2 if distance == "cosine" else 1))
    return NeighborGraph(found.rows, lengths)


def pair_scores(
    x: Any, distance: str, i: Int64[np.ndarray, " t"], j: Int64[np.ndarray, " t"]
) -> Float[np.ndarray, " t"]:
    """The scores of pairs of rows: 1 − D under cosine, else −D.

    Args:
        x: [n, d].
        distance: as for `neighbor_graph`.
        i: rows.
        j: rows.

    Example:
        >>> x = np.array([[0.0], [1.0], [3.0]])
        >>> pair_scores(x, "euclidean", np.array([0, 0]), np.array([1, 2])).tolist()
        [-1.0, -3.0]
    """
    return scores_of(pair_distances(x, as_distance("pair_scores", distance), i, j), distance == "cosine")


def own_scores(
    x: Any, distance: str, codes: Int64[np.ndarray, " n"], rows: Int64[np.ndarray, " m"], memory: int | None
) -> Float[np.ndarray, " m"]:
    """The score of the nearest other image of each row's own class; −inf where there is none.

    Args:
        x: [n, d].
        distance: as for `neighbor_graph`.
        codes: class numbers.
        rows: which images.
        memory: bytes of the search, as for `nearest`.
    """
    if not len(rows):
        return np.empty(0)
    search = {"exclude": ["self", "other classes"], "labels": codes, "nan": "skip", "memory": memory}
    distinct, at = np.unique(rows, return_inverse=True)
    found = nearest(x, k=1, rows=distinct, distance=distance, **search)
    return scores_of(found.distances[:, 0], distance == "cosine")[at].astype(np.float64)
