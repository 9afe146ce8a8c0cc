"""The map of a page: embeddings in two dimensions."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64

from tercet.core.checks import Refusal
from tercet.offline.neighbor_graph import NeighborGraph

__all__ = ["LAYOUTS", "layout_of"]

LAYOUTS = ("pca", "tsne")
_FITTED = 20_000  # rows that the axes of a principal component analysis are fitted to
_READ = 1 << 22  # numbers that are read at once


def layout_of(
    kind: str, x: Any, usable: Bool[np.ndarray, " n"], cosine: bool, graph: NeighborGraph
) -> Float64[np.ndarray, "n 2"]:
    """A place in the plane for each image; NaN for rows that are not usable.

    Args:
        kind: "pca", the first two principal components, of unit vectors under cosine; or "tsne", openTSNE on
            the k-NN graph, which begins from them.
        x: [n, d], numpy, a memory map or a tensor.
        usable: rows without NaN.
        cosine: whether the distance is that of the cosine.
        graph: the k-NN graph.

    Raises:
        ValueError: "tsne" without openTSNE.

    Example:
        >>> from tercet.offline.neighbor_graph import neighbor_graph
        >>> x = np.array([[0.0, 0, 0], [0, 2, 0], [9, 0, 0], [9, 2, 0]])
        >>> places = layout_of("pca", x, np.ones(4, bool), False, neighbor_graph(x, 2, "euclidean"))
        >>> np.ptp(places, 0).round(3).tolist()
        [9.0, 2.0]
    """
    rows = np.flatnonzero(usable)
    places = np.full((len(usable), 2), np.nan)
    if not len(rows):
        return places
    fitted = _rows(x, rows[:: max(1, -(-len(rows) // _FITTED))], cosine)
    mean = fitted.mean(0)
    _, axes = np.linalg.eigh((fitted - mean).T @ (fitted - mean))
    axes = axes[:, ::-1][:, :2]
    axes = axes * np.where(axes[np.abs(axes).argmax(0), np.arange(axes.shape[1])] < 0, -1, 1)  # one sign
    step = max(1, _READ // max(1, fitted.shape[1]))
    for first in range(0, len(rows), step):
        part = rows[first : first + step]
        places[part, : axes.shape[1]] = (_rows(x, part, cosine) - mean) @ axes
        places[part, axes.shape[1] :] = 0
    if kind == "tsne":
        places[rows] = _tsne(places[rows], graph, rows)
    return places


def _rows(x: Any, rows: np.ndarray, cosine: bool) -> Float64[np.ndarray, "m d"]:
    part = x[rows]
    part = np.asarray(part.detach().cpu().float() if hasattr(part, "detach") else part, dtype=np.float64)
    if not cosine:
        return part
    return part / np.maximum(np.linalg.norm(part, axis=1, keepdims=True), np.finfo(float).tiny)


def _tsne(start: Float64[np.ndarray, "m 2"], graph: NeighborGraph, rows: np.ndarray) -> np.ndarray:
    """openTSNE from the places of a principal component analysis, on the exact k-NN graph."""
    try:
        tsne: Any = import_module("openTSNE")
    except ImportError:
        raise Refusal("layout", "tsne", 'openTSNE: pip install "tercet[report]"', 'or take "pca"') from None
    k = int((graph.rows[rows] >= 0).sum(1).min())
    if k < 3:
        raise Refusal("layout", "tsne", "3 neighbours of each image or more", 'take "pca"')
    number = np.full(len(graph.rows), -1)
    number[rows] = np.arange(len(rows))
    neighbors = tsne.nearest_neighbors.PrecomputedNeighbors(
        number[graph.rows[rows, :k]], graph.lengths[rows, :k]
    )
    near = tsne.affinity.PerplexityBasedNN(knn_index=neighbors, perplexity=max(1.0, k / 3))
    embedding = tsne.TSNEEmbedding(tsne.initialization.rescale(start), near, random_state=0, n_jobs=-1)
    embedding = embedding.optimize(n_iter=250, exaggeration=12, momentum=0.5)
    return np.asarray(embedding.optimize(n_iter=500, momentum=0.8))
