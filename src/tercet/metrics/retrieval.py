"""Retrieval metrics: does each image find its class? Ranks are exact, with ties to the lower row.

Each image is a query against every other one, or, with `ref`, against the references. A query without
another image of its class is left out of the mean and counted in the `Score`. Each call waits for the
device.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from torch.nn.functional import pad

from tercet.core.checks import as_int, refusal
from tercet.core.indices import References
from tercet.metrics.inputs import as_pairwise
from tercet.metrics.ranks import RankedBlock, first_ranks, ranked_blocks
from tercet.metrics.scores import Evaluation, Score
from tercet.pairwise.distances import Distance
from tercet.pairwise.tiles import Pairwise
from tercet.pairwise.torch_modes import widest_float

__all__ = ["evaluate", "map_at_r", "recall_at_k"]


@torch.no_grad()
def recall_at_k(
    embeddings: Shaped[Tensor, "n d"] | Shaped[np.ndarray, "n d"],
    labels: Any,
    k: int | Iterable[int] = 1,
    *,
    ids: Any = None,
    ref: References | None = None,
    distance: Distance | str = "euclidean",
    tile_rows: int | None = None,
) -> Score | dict[int, Score]:
    """The share of queries that have an image of their class among their k nearest.

    Recall@k = mean over queries of 1[the nearest positive has rank ≤ k]

    Args:
        embeddings: [n, d], torch or numpy.
        labels: [n] integers, bools or strings: a tensor, an array or a list.
        k: how many are retrieved; several numbers cost no more than one.
        ids: [n] integers, which image each row is; an image never retrieves itself.
        ref: the gallery, torch or numpy; None for the batch itself.
        distance: a `Distance` or its name.
        tile_rows: queries compared at once; None for as many as fit the memory of a tile.

    Returns:
        A `Score`, or with several k a dict of them by k.

    Raises:
        ValueError: k below 1, labels of mixed kinds, embeddings that are NaN or infinite, or shapes
            that do not fit.

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [1.4], [9.0], [20.0]])
        >>> recall_at_k(x, ["a", "a", "b", "b", "c"], k=(1, 2, 3))
        {1: 0.5, 2: 0.75, 3: 1.0}
        >>> recall_at_k(x, ["a", "a", "b", "b", "c"]).left_out
        1

    Reference:
        Jégou, Douze & Schmid, "Product quantization for nearest neighbor search", 2011; for classes,
        Song, Xiang, Jegelka & Savarese, "Deep metric learning via lifted structured feature embedding", 2016.
    """
    ks, several = _depths("recall_at_k", k)
    pairwise = as_pairwise("recall_at_k", embeddings, labels, ids, ref, distance, tile_rows)
    ranks = first_ranks(pairwise)
    scores = {each: _recall(ranks, each) for each in ks}
    return scores if several else scores[ks[0]]


@torch.no_grad()
def map_at_r(
    embeddings: Shaped[Tensor, "n d"] | Shaped[np.ndarray, "n d"],
    labels: Any,
    *,
    ids: Any = None,
    ref: References | None = None,
    distance: Distance | str = "euclidean",
    tile_rows: int | None = None,
) -> Score:
    """The mean average precision of the first R results, R the number of images that a query could find.

    MAP@R = mean over queries of (1/R) Σ_{i=1..R} P(i), where R is the number of images of the query's class
    to find, and P(i) the precision among the first i if the i-th is one of them, else 0

    Args:
        embeddings: [n, d], torch or numpy.
        labels: [n] integers, bools or strings: a tensor, an array or a list.
        ids: [n] integers, which image each row is; an image never retrieves itself.
        ref: the gallery, torch or numpy; None for the batch itself.
        distance: a `Distance` or its name.
        tile_rows: queries compared at once; None for as many as fit the memory of a tile.

    Returns:
        A `Score`.

    Raises:
        ValueError: labels of mixed kinds, embeddings that are NaN or infinite, or shapes that do not fit.

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [1.4], [2.0]])
        >>> round(map_at_r(x, [0, 0, 1, 0]), 3)
        0.333

    Reference:
        Musgrave, Belongie & Lim, "A metric learning reality check", 2020.
    """
    pairwise = as_pairwise("map_at_r", embeddings, labels, ids, ref, distance, tile_rows)
    precision, width = _no_figures(pairwise), _largest_class(pairwise)
    for block in ranked_blocks(pairwise):
        precision[block.rows] = _average_precision(block, width)
    return _score(precision)


@torch.no_grad()
def evaluate(
    embeddings: Shaped[Tensor, "n d"] | Shaped[np.ndarray, "n d"],
    labels: Any,
    k: int | Iterable[int] = (1, 2, 4, 8),
    *,
    ids: Any = None,
    ref: References | None = None,
    distance: Distance | str = "euclidean",
    tile_rows: int | None = None,
) -> Evaluation:
    """Recall@k, R-precision and MAP@R from one search, which costs about what one of them does.

    R-precision = mean over queries of the share of the first R results that are of the query's class, R the
    number of images of that class to find; Recall@k as in `recall_at_k`, MAP@R as in `map_at_r`

    Args:
        embeddings: [n, d], torch or numpy.
        labels: [n] integers, bools or strings: a tensor, an array or a list.
        k: how many are retrieved for Recall@k; one number or several.
        ids: [n] integers, which image each row is; an image never retrieves itself.
        ref: the gallery, torch or numpy; None for the batch itself.
        distance: a `Distance` or its name.
        tile_rows: queries compared at once; None for as many as fit the memory of a tile.

    Returns:
        An `Evaluation`: a `Score` by the name of each figure, printed as a table.

    Raises:
        ValueError: k below 1, labels of mixed kinds, embeddings that are NaN or infinite, or shapes
            that do not fit.

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [1.4], [2.0], [9.0]])
        >>> print(evaluate(x, ["a", "a", "b", "a", "c"], k=(1, 2)))
        Recall@1     0.333
        Recall@2     1.000
        R-precision  0.500
        MAP@R        0.333
        3 queries, 2 left out: no other image of their class

    Reference:
        Musgrave, Belongie & Lim, "A metric learning reality check", 2020.
    """
    ks, _ = _depths("evaluate", k)
    pairwise = as_pairwise("evaluate", embeddings, labels, ids, ref, distance, tile_rows)
    average, share, width = _no_figures(pairwise), _no_figures(pairwise), _largest_class(pairwise)
    ranks = torch.zeros_like(pairwise.labels)
    for block in ranked_blocks(pairwise, max(ks)):
        ranks[block.rows] = block.first
        average[block.rows] = _average_precision(block, width)
        share[block.rows] = _within_r(block, width).sum(1) / block.found.to(share.dtype)
    recalls = {f"Recall@{each}": _recall(ranks, each) for each in ks}
    return Evaluation({**recalls, "R-precision": _score(share), "MAP@R": _score(average)})


def _depths(caller: str, k: Any) -> tuple[list[int], bool]:
    """The numbers k, and whether there may be several."""
    several = isinstance(k, Iterable) and getattr(k, "ndim", 1) > 0
    ks = [as_int(caller, "k", each, minimum=1) for each in (k if several else [k])]
    if not ks:
        raise refusal(caller, "k", k, "one number or more")
    return ks, several


def _within_r(block: RankedBlock, width: int) -> Bool[Tensor, "a width"]:
    """Whether each of a query's first R results is a positive."""
    place = torch.arange(1, width + 1, device=block.hits.device)
    return pad(block.hits, (0, width - block.hits.shape[1])) & (place <= block.found[:, None])


def _average_precision(block: RankedBlock, width: int) -> Float[Tensor, " a"]:
    """(1/R) Σ_{i ≤ R} P(i) of each query, NaN where R = 0.

    Args:
        block: what the queries find.
        width: at least each R; one for all blocks, so that no sum depends on the block.
    """
    hits = _within_r(block, width)
    place = torch.arange(1, width + 1, dtype=widest_float(hits.device), device=hits.device)
    precision = hits.cumsum(1) / place
    return (precision * hits).sum(1) / block.found


def _no_figures(pairwise: Pairwise) -> Float[Tensor, " n"]:
    return torch.full_like(pairwise.labels, math.nan, dtype=widest_float(pairwise.labels.device))


def _largest_class(pairwise: Pairwise) -> int:
    """At least as many images as any query has to find."""
    if not len(pairwise.column_labels):
        return 0
    _, counts = pairwise.column_labels.unique(return_counts=True)
    return int(counts.max()) - pairwise.own_column


def _recall(ranks: Int[Tensor, " n"], k: int) -> Score:
    return _score(torch.where(ranks > 0, (ranks <= k).to(widest_float(ranks.device)), math.nan))


def _score(figures: Float[Tensor, " n"]) -> Score:
    """The mean over queries; NaN stands for one that has nothing to find."""
    values = figures[~figures.isnan()].cpu().double()
    mean = float(values.mean()) if len(values) else math.nan
    return Score(mean, len(values), len(figures) - len(values))
