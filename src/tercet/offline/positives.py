"""Which positives an anchor is mined with: all of its class, the farthest, nearest or k-th nearest."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64

from tercet.core.checks import Refusal, as_int
from tercet.pairwise.distances import Distance, exact_pairs

__all__ = [
    "POSITIVES",
    "as_positives",
    "class_pairs",
    "pair_distances",
    "reference_scores",
    "select_positives",
]

POSITIVES = ("all", "hardest", "easiest")
_GATHERED = 1 << 24  # numbers of the rows that are compared at once


def as_positives(positives: Any) -> str | int:
    """A name of `POSITIVES`, or k for the k-th nearest.

    Raises:
        ValueError: neither.
    """
    if isinstance(positives, str):
        if positives in POSITIVES:
            return positives
        expected = "'all', 'hardest', 'easiest', or a whole number k for the k-th nearest"
        raise Refusal("positives", positives, expected)
    return as_int(None, "positives", positives, minimum=1)


def class_pairs(
    codes: Int64[np.ndarray, " n"], anchors: Int64[np.ndarray, " a"]
) -> tuple[Int64[np.ndarray, " u"], Int64[np.ndarray, " u"]]:
    """Every (anchor, other row of its class), by anchor and then by row.

    Args:
        codes: class numbers; −1 for a row that is left out.
        anchors: row numbers of classes that are not −1.

    Returns:
        The place in `anchors` of each pair, and the row of its positive.

    Example:
        >>> at, positive = class_pairs(np.array([0, 1, 0, 0]), np.array([2, 1, 0]))
        >>> at.tolist(), positive.tolist()
        ([0, 0, 2, 2], [0, 3, 2, 3])
    """
    by_class = np.argsort(codes, kind="stable")
    of_anchors = codes[anchors]
    first = np.searchsorted(codes, of_anchors, side="left", sorter=by_class)
    count = np.searchsorted(codes, of_anchors, side="right", sorter=by_class) - first
    at = np.repeat(np.arange(len(anchors)), count)
    within = np.arange(len(at)) - np.repeat(np.cumsum(count) - count, count)
    positive = by_class[np.repeat(first, count) + within]
    other = positive != anchors[at]
    return at[other], positive[other]


def pair_distances(
    embeddings: Any, distance: Distance, i: Int64[np.ndarray, " t"], j: Int64[np.ndarray, " t"]
) -> np.ndarray:
    """D(x_i, x_j) of row pairs, by the differences that `nearest` decides by.

    Args:
        embeddings: [n, d] rows that an index array picks: numpy, a memory map or a tensor.
        distance: a `Distance`.
        i: row numbers.
        j: row numbers.

    Returns:
        float [t], as the distance is computed.
    """
    step = max(1, _GATHERED // max(1, embeddings.shape[1]))
    found = []
    for first in range(0, max(1, len(i)), step):  # once for an empty list too, which has the right type
        x, y = (distance.prepare(_rows(embeddings, side[first : first + step])) for side in (i, j))
        found.append(exact_pairs(distance, x, y).cpu())
    return torch.cat(found).numpy()


def select_positives(
    chosen: str | int, at: Int64[np.ndarray, " u"], distances: Float[np.ndarray, " u"]
) -> Int64[np.ndarray, " v"]:
    """Which of the pairs of `class_pairs` are mined; ties go to the lower row.

    Args:
        chosen: what `as_positives` gives. An anchor with fewer than k positives has its farthest.
        at: the anchor's place of each pair, rising.
        distances: of each pair.

    Returns:
        Places in `at`, rising.

    Example:
        >>> at, d = np.array([0, 0, 0, 1]), np.array([2.0, 1.0, 3.0, 5.0], np.float32)
        >>> [select_positives(each, at, d).tolist() for each in ("all", "hardest", "easiest", 2)]
        [[0, 1, 2, 3], [2, 3], [1, 3], [0, 3]]
    """
    if chosen == "all" or not len(at):
        return np.arange(len(at))
    order = np.lexsort((-distances if chosen == "hardest" else distances, at))
    starts = np.flatnonzero(np.diff(at, prepend=-1))
    last = np.append(starts[1:], len(at)) - 1
    place = starts + (chosen - 1 if isinstance(chosen, int) else 0)
    return np.sort(order[np.minimum(place, last)])


def reference_scores(
    reference: str, own: Float[np.ndarray, " u"], at: Int64[np.ndarray, " u"]
) -> Float[np.ndarray, " u"]:
    """The score that margins are taken from: of the pair itself, or of all pairs of its anchor.

    Args:
        reference: "own", "min", "mean" or "max".
        own: the score of each pair.
        at: the anchor's place of each pair, rising.

    Example:
        >>> reference_scores("min", np.array([3.0, 1.0, 5.0]), np.array([0, 0, 1])).tolist()
        [1.0, 1.0, 5.0]
    """
    if reference == "own" or not len(at):
        return own
    starts = np.flatnonzero(np.diff(at, prepend=-1))
    count = np.diff(np.append(starts, len(at)))
    if reference == "mean":
        of_anchor = np.add.reduceat(own.astype(np.float64), starts) / count
    else:
        of_anchor = (np.minimum if reference == "min" else np.maximum).reduceat(own, starts)
    return np.repeat(of_anchor, count)


def _rows(embeddings: Any, rows: Int64[np.ndarray, " t"]) -> torch.Tensor:
    if isinstance(embeddings, torch.Tensor):
        return embeddings.detach()[torch.from_numpy(rows).to(embeddings.device)]
    return torch.from_numpy(np.ascontiguousarray(embeddings[rows]))
