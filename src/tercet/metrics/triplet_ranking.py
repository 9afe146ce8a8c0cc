"""How often an embedding orders triplets as they are given: Deep Ranking's two metrics."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from tercet.core.checks import as_int, border
from tercet.core.indices import References
from tercet.metrics.inputs import as_candidate_lists, as_references, as_triplet_rows
from tercet.metrics.scores import TripletScore
from tercet.neighbors.exact import ExactSearch
from tercet.pairwise.distances import Distance, as_distance, exact_pairs
from tercet.pairwise.inputs import features, tensor_of
from tercet.pairwise.relations import whole_numbers
from tercet.pairwise.tiles import Pairwise, tile_height

__all__ = ["score_at_top_k", "similarity_precision"]


@torch.no_grad()
def similarity_precision(
    embeddings: Shaped[Tensor, "n d"] | Shaped[np.ndarray, "n d"],
    triplets: Any,
    *,
    ref: References | None = None,
    distance: Distance | str = "euclidean",
) -> TripletScore:
    """The share of triplets whose positive is nearer to the query than their negative.

    similarity precision = (1/t) Σ 1[D(q, p⁺) < D(q, p⁻)]

    A tie is not correct, so collapsed embeddings score 0. Distances are taken by differences: their order
    does not depend on how triplets are cut into chunks. (A dot product has no differences.)

    Args:
        embeddings: [n, d], torch or numpy.
        triplets: `Triplets` of rows, or any three index tensors or arrays [t], such as `manifest.triplets`
            for the embeddings of `manifest.catalog`.
        ref: the columns that positives and negatives are rows of; None for the embeddings themselves.
        distance: a `Distance` or its name.

    Returns:
        A `TripletScore`; NaN without triplets.

    Raises:
        ValueError: rows that do not exist, embeddings that are NaN or infinite, or shapes that do not fit.

    Example:
        >>> x = np.array([[0.0], [1.0], [3.0]])
        >>> triplets = np.array([0, 0, 1]), np.array([1, 2, 0]), np.array([2, 1, 2])
        >>> precision = similarity_precision(x, triplets)
        >>> round(precision, 3), precision.correct
        (0.667, 2)

    Reference:
        J. Wang, Y. Song, T. Leung, C. Rosenberg, J. Wang, J. Philbin, B. Chen, Y. Wu, "Learning fine-grained
        image similarity with deep ranking", CVPR 2014.
    """
    caller = "similarity_precision"
    metric = as_distance(caller, distance)
    with border(caller):
        inputs = features(tensor_of(embeddings), metric, as_references(ref))
        x, y = inputs[0], inputs[-1]
        rows = as_triplet_rows(triplets, len(x), len(y), x.device)
    correct, count = int(_ordered(metric, x, y, rows).sum()), len(rows[0])
    return TripletScore(correct / count if count else math.nan, correct, count, count)


@torch.no_grad()
def score_at_top_k(
    embeddings: Shaped[Tensor, "n d"] | Shaped[np.ndarray, "n d"],
    triplets: Any,
    k: int = 30,
    *,
    groups: Any = None,
    ids: Any = None,
    ref: References | None = None,
    distance: Distance | str = "euclidean",
    tile_rows: int | None = None,
) -> TripletScore:
    """Correct minus incorrect among the triplets that show among a query's first results.

    score = Σ ±1 over triplets with p⁺ or p⁻ among the K nearest of q's candidate list,
    + where D(q, p⁺) < D(q, p⁻), − where not

    It is a number of triplets, as in the paper, of `counted` ones; `score / score.counted` compares sets of
    triplets of different sizes. A tie is incorrect, so collapsed embeddings score −`counted`. In the
    candidate list, equally near images rank by row number. The K nearest are exact, found for distinct
    queries, in the memory of a few tiles and K numbers a query.

    Args:
        embeddings: [n, d], torch or numpy.
        triplets: `Triplets` of rows, or any three index tensors or arrays [t].
        k: K, how many results count as the first.
        groups: [n] whole numbers or strings: the candidate list of a query is the other images of its group,
            in the paper those of one text query. None for all other images.
        ids: [n] integers, which image each row is; an image is no candidate for itself.
        ref: the columns that positives and negatives are rows of, and the candidates; its labels are their
            groups, read only with `groups`. None for the embeddings themselves.
        distance: a `Distance` or its name.
        tile_rows: queries compared at once; None for as many as fit the memory of a tile.

    Returns:
        A `TripletScore`; 0 without triplets.

    Raises:
        ValueError: k below 1, rows that do not exist, embeddings that are NaN or infinite, or shapes
            that do not fit.

    Example:
        >>> x = np.array([[0.0], [1.0], [3.0], [7.0]])
        >>> triplets = np.array([0, 0, 0]), np.array([1, 2, 2]), np.array([3, 1, 3])
        >>> score = score_at_top_k(x, triplets, k=1)  # the last has neither in first place
        >>> score, score.correct, score.counted, score.triplets
        (0.0, 1, 2, 3)

    Reference:
        J. Wang, Y. Song, T. Leung, C. Rosenberg, J. Wang, J. Philbin, B. Chen, Y. Wu, "Learning fine-grained
        image similarity with deep ranking", CVPR 2014.
    """
    caller = "score_at_top_k"
    k = as_int(caller, "k", k, minimum=1)
    metric = as_distance(caller, distance)
    with border(caller):
        x, ref = tensor_of(embeddings), as_references(ref)
        inputs = features(x, metric, ref)
        n, r, device = len(inputs[0]), len(inputs[-1]), inputs[0].device
        rows = as_triplet_rows(triplets, n, r, device)
        queries, query = rows[0].unique(return_inverse=True)  # [m], [t]
        own, theirs = as_candidate_lists(groups, n, ref, device)
    if ids is not None:
        ids = whole_numbers(caller, "ids", tensor_of(ids), n, device)
    if ref is None:
        ids = torch.arange(n, device=device) if ids is None else ids
        columns = References(x, own, ids)
    else:
        columns = References(ref.embeddings, theirs, ref.ids)
    pairwise = Pairwise(
        caller,
        x[queries],
        own[queries],
        distance=metric,
        ids=None if ids is None else ids[queries],
        ref=columns,
        tile_rows=tile_rows,
    )
    first = torch.full((len(queries), min(k, r)), -1, device=device)  # [m, k], columns
    search = ExactSearch(pairwise)
    for block in search.blocks():  # a candidate is of the query's list and another image: a positive of it
        first[block.rows] = search.nearest(block.positives(), min(k, r))
    counted = torch.zeros_like(query, dtype=torch.bool)
    for part in torch.arange(len(query), device=device).split(tile_height(k, first, None)):
        listed = first[query[part]]  # [c, k]
        for corner in rows[1:]:
            counted[part] |= (listed == corner[part, None]).any(1)
    chosen = tuple(corner[counted] for corner in rows)
    correct, count = int(_ordered(metric, inputs[0], inputs[-1], chosen).sum()), len(chosen[0])
    return TripletScore(2 * correct - count, correct, count, len(query))


def _ordered(
    metric: Distance, x: Tensor, y: Tensor, rows: tuple[Int[Tensor, " t"], ...]
) -> Bool[Tensor, " t"]:
    """Whether D(q, p⁺) < D(q, p⁻), for each triplet of prepared rows and columns."""
    height = tile_height(x.shape[1], x, None)
    parts = [torch.zeros(0, dtype=torch.bool, device=x.device)]
    for q, p, n in zip(*(corner.split(height) for corner in rows), strict=True):
        near, far = (exact_pairs(metric, x[q], y[j]) for j in (p, n))
        parts.append(near < far)
    return torch.cat(parts)
