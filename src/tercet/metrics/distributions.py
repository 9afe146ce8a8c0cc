"""Distributions of similarities over positive and negative pairs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float64

from tercet.core.checks import as_int, refusal
from tercet.core.indices import References
from tercet.metrics.binned_pairs import BinnedPairs
from tercet.metrics.compared import compared

__all__ = ["binned_similarities", "overlap", "similarity_histograms"]


def similarity_histograms(
    embeddings: Any,
    labels: Any,
    bins: int = 100,
    *,
    ids: Any = None,
    ref: References | None = None,
    groups: Any = None,
    exclude: str | None = None,
    ignore: Any = None,
    distractors: Any = None,
) -> tuple[Float64[np.ndarray, " b"], Float64[np.ndarray, " b"]]:
    """The histograms of cosine similarity over all positive and all negative pairs, each pair once.

    Args:
        embeddings: float [n, d] of any length, n ≥ 1; torch or numpy.
        labels: [n], whole numbers or strings.
        bins: b, the number of bins of equal width from −1 to 1.
        ids: [n] integers, which image each row is; an image is no pair with itself.
        ref: the gallery, torch or numpy: each query makes a pair with each of its images; None for the pairs
            of the embeddings themselves.
        groups: [n] whole numbers or strings, the camera or session of each image; with `ref` two such
            columns, [n] and [r].
        exclude: which pairs are left out, with `groups`: `"group positives"`, those of one class and one
            group, the default; or `"group"`, all those of one group.
        ignore: a label, or several, of junk: such images are in no pair.
        distractors: a label, or several, of images of no class: they make negative pairs with all others, and
            none with each other.

    Returns:
        Two float64 [b] that each sum to 1, or to 0 where there is no such pair. Memory is O(n), not O(n²).

    Raises:
        ValueError: shapes that do not match, no rows, embeddings that are not finite, or bins < 1.

    Example:
        >>> points = [[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]]
        >>> positive, negative = similarity_histograms(points, [0, 0, 1], bins=4)
        >>> positive.tolist(), negative.tolist()
        ([0.0, 0.0, 0.0, 1.0], [1.0, 0.0, 0.0, 0.0])
    """
    protocol = {"ids": ids, "ref": ref, "groups": groups, "exclude": exclude}
    protocol |= {"ignore": ignore, "distractors": distractors}
    counts = binned_similarities(embeddings, labels, bins, protocol)
    both = np.stack([counts.positive.sum(0).numpy(), counts.negatives.numpy()])
    positive, negative = both / both.sum(1, keepdims=True).clip(1)
    return positive, negative


def overlap(counts: BinnedPairs) -> tuple[float, Float64[np.ndarray, " c"]]:
    """Σ min(positive, negative) of two histograms that sum to 1, and the same without each class.

    NaN where there are no pairs of either kind.
    """
    positive, negative = counts.positive.numpy(), counts.negative.numpy()
    every = positive.sum(0), counts.negatives.numpy()
    sides = [
        np.concatenate([whole[None], whole - part])
        for whole, part in zip(every, (positive, negative), strict=True)
    ]
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = [side / side.sum(1, keepdims=True) for side in sides]  # [1 + c, b], all and without a class
    found = np.minimum(*shares).sum(1)
    return float(found[0]), found[1:]


def binned_similarities(embeddings: Any, labels: Any, bins: int, protocol: Mapping[str, Any]) -> BinnedPairs:
    """The pairs of each class in bins of equal width from −1 to 1.

    Args:
        embeddings, labels, bins: as for `similarity_histograms`.
        protocol: its other arguments.
    """
    caller = "similarity_histograms"
    bins = as_int(caller, "bins", bins, minimum=1)
    pairs = compared(caller, embeddings, labels, **protocol)
    if not len(embeddings):
        raise refusal(caller, "embeddings", "no rows", "one label for each of 1 or more images")
    counts = BinnedPairs(pairs, bins)
    for block in pairs.blocks():
        places = block.similar.add_(1).mul_(bins / 2).long().clamp_(0, bins - 1)
        counts.add(block, places)
    return counts
