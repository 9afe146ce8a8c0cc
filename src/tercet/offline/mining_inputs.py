"""What offline mining is given, checked: embeddings, labels, anchors, groups, a teacher."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64
from torch import Tensor

from tercet.core.checks import Refusal, as_array, as_int, label_codes
from tercet.offline.filters import scores_of
from tercet.offline.positives import pair_distances
from tercet.pairwise.distances import Distance, as_distance

__all__ = [
    "as_anchors",
    "as_teacher",
    "as_window",
    "cluster_codes",
    "codes_of",
    "matrix_of",
    "scorer",
    "usable_rows",
]

_READ = 1 << 22  # numbers that are looked at once


def matrix_of(embeddings: Any, labels: Any, argument: str = "embeddings") -> tuple[Any, Any]:
    """Embeddings as a matrix that an index array picks rows of, and their labels.

    Args:
        embeddings: [n, d], numpy, a memory map or a tensor, or an object with `array` and `labels`.
        labels: [n], or None for those of the object.
        argument: the name of the embeddings.

    Raises:
        ValueError: no matrix of floating-point numbers, or no labels.
    """
    if labels is None:
        labels = getattr(embeddings, "labels", None)
        if labels is None:
            raise Refusal("labels", None, "one label for each embedding", "only `Embeddings` bring their own")
    x = getattr(embeddings, "array", embeddings)
    if not isinstance(x, (np.ndarray, Tensor)):
        x = as_array(None, argument, x, "a matrix [n, d]")
    kind = x.is_floating_point() if isinstance(x, Tensor) else x.dtype.kind == "f"
    if x.ndim != 2 or not kind:
        raise Refusal(argument, f"{x.dtype} of shape {tuple(x.shape)}", "floating-point embeddings [n, d]")
    return x, labels


def as_window(ranks: Any) -> tuple[int, int]:
    """The first and the last rank.

    Raises:
        ValueError: no two whole numbers of at least 1 in order.
    """
    expected = "two ranks (first, last) of at least 1, first ≤ last"
    if not isinstance(ranks, (tuple, list)) or len(ranks) != 2:
        raise Refusal("ranks", ranks, expected)
    first, last = (as_int(None, "ranks", rank, minimum=1) for rank in ranks)
    if first > last:
        raise Refusal("ranks", ranks, expected)
    return first, last


def codes_of(argument: str, values: Any, n: int) -> Int64[np.ndarray, " n"]:
    """Names as numbers.

    Raises:
        ValueError: not one for each row.
    """
    codes, _ = label_codes(None, values, argument)
    if len(codes) != n:
        raise Refusal(argument, f"{len(codes)} values", f"one for each of the {n} embeddings")
    return codes


def as_anchors(anchors: Any, n: int) -> Int64[np.ndarray, " a"]:
    """Rows that are anchors, rising and each once; all for None.

    Raises:
        ValueError: no whole numbers, or rows that do not exist.
    """
    if anchors is None:
        return np.arange(n)
    rows = as_array(None, "anchors", anchors, "row numbers")
    if rows.ndim != 1 or (rows.size and rows.dtype.kind not in "iu"):
        raise Refusal("anchors", f"{rows.dtype} of shape {rows.shape}", "row numbers [a]")
    outside = rows[(rows < 0) | (rows >= n)]
    if len(outside):
        raise Refusal("anchors", int(outside[0]), f"rows from 0 to {n - 1}")
    return np.unique(rows).astype(np.int64)


def usable_rows(x: Any) -> Bool[np.ndarray, " n"]:
    """Which rows have no NaN: others stand for images that do not decode.

    Raises:
        ValueError: infinite numbers.
    """
    usable = np.empty(len(x), dtype=bool)
    step = max(1, _READ // max(1, x.shape[1]))
    for first in range(0, len(x), step):
        part = x[first : first + step]
        if isinstance(part, Tensor):
            bad, infinite = (found.any(1).cpu().numpy() for found in (part.isnan(), part.isinf()))
        else:
            bad, infinite = np.isnan(part).any(1), np.isinf(part).any(1)
        if infinite.any():
            row = first + int(infinite.argmax())
            raise Refusal("embeddings", f"an infinite number in row {row}", "finite numbers, or rows of NaN")
        usable[first : first + step] = ~bad
    return usable


def scorer(x: Any, distance: Distance) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """A function (rows, rows) → scores [t], 1 − D under cosine, else −D."""
    is_cosine = distance is as_distance("mine_hard_triplets", "cosine")
    return lambda i, j: scores_of(pair_distances(x, distance, i, j), is_cosine)


def as_teacher(teacher: Any, n: int) -> Callable[[Any, Any], Any] | None:
    """A function (rows, rows) → scores [t] of a second opinion: a larger score is nearer.

    Args:
        teacher: None, such a function, or embeddings [n, e], which are compared by cosine.
        n: rows of the collection.

    Raises:
        ValueError: embeddings of another number of rows; scores of another shape, or NaN, when it is called.
    """
    if teacher is None:
        return None
    if callable(teacher) and not isinstance(teacher, type):

        def checked(i: np.ndarray, j: np.ndarray) -> np.ndarray:
            scores = as_array(None, "teacher", teacher(i, j), "scores [t] of t pairs of rows")
            if scores.shape != i.shape or scores.dtype.kind not in "fiu" or np.isnan(scores).any():
                got = f"{scores.dtype} of shape {scores.shape}"
                raise Refusal("teacher", got, f"scores of shape {i.shape}, none of them NaN")
            return scores

        return checked
    matrix, _ = matrix_of(teacher, (), "teacher")
    if len(matrix) != n:
        raise Refusal("teacher", f"{len(matrix)} rows", f"one for each of the {n} embeddings")
    return scorer(matrix, as_distance("mine_hard_triplets", "cosine"))


def cluster_codes(
    x: Any, usable: Bool[np.ndarray, " n"], clusters: Any, seed: int
) -> Int64[np.ndarray, " n"]:
    """The k-means cluster of each row, by scikit-learn in mini-batches; 0 for rows that are not usable.

    Raises:
        ValueError: not between 1 and the number of usable rows.
    """
    from sklearn.cluster import MiniBatchKMeans

    rows = np.flatnonzero(usable)
    clusters = as_int(None, "clusters", clusters, 1, max(1, len(rows)))
    codes = np.zeros(len(x), dtype=np.int64)
    if len(rows):
        picked = x[rows].cpu().float().numpy() if isinstance(x, Tensor) else np.asarray(x[rows], np.float32)
        model = MiniBatchKMeans(clusters, random_state=seed % (1 << 32))
        codes[rows] = model.fit_predict(picked)
    return codes
