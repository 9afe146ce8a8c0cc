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
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn.functional import pad

from tercet.core.checks import as_int, refusal
from tercet.core.indices import References
from tercet.metrics.inputs import as_pairwise
from tercet.metrics.ranks import first_ranks, hits_at_r
from tercet.metrics.scores import Score
from tercet.pairwise.distances import Distance
from tercet.pairwise.tiles import Pairwise

__all__ = ["map_at_r", "recall_at_k"]


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
    several = k if isinstance(k, Iterable) and getattr(k, "ndim", 1) > 0 else None
    ks = [as_int("recall_at_k", "k", each, minimum=1) for each in ([k] if several is None else several)]
    if not ks:
        raise refusal("recall_at_k", "k", k, "one number or more")
    pairwise = as_pairwise("recall_at_k", embeddings, labels, ids, ref, distance, tile_rows)
    ranks = first_ranks(pairwise)
    answered = ranks[ranks > 0].cpu()
    scores = {each: _score((answered <= each).double(), len(ranks)) for each in ks}
    return scores if several is not None else scores[ks[0]]


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
    n, device = len(pairwise.inputs[0]), pairwise.labels.device
    value = torch.full((n,), math.nan, dtype=torch.float64, device=device)
    width = _largest_class(pairwise)  # one for all blocks, so that no sum depends on the block
    place = torch.arange(1, width + 1, device=device)
    for rows, found, hits in hits_at_r(pairwise):
        hits = pad(hits, (0, width - hits.shape[1])) & (place <= found[:, None])  # [a, width]
        precision = hits.cumsum(1) / place.double()
        value[rows] = (precision * hits).sum(1) / found  # NaN where R = 0
    return _score(value[~value.isnan()].cpu(), n)


def _largest_class(pairwise: Pairwise) -> int:
    """At least as many images as any query has to find."""
    if not len(pairwise.column_labels):
        return 0
    _, counts = pairwise.column_labels.unique(return_counts=True)
    return int(counts.max()) - pairwise.own_column


def _score(values: Float[Tensor, " q"], rows: int) -> Score:
    mean = float(values.mean()) if len(values) else math.nan
    return Score(mean, len(values), rows - len(values))
