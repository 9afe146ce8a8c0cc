"""Retrieval by the first k results: does each image find its class?

Each image is a query against every other one, or, with `ref`, against the references. A query without
another image of its class is left out of the mean and counted in the `Score`. Where images are equally far,
a figure is its expected value over their orders, and the `Score` tells how many queries that concerns. Each
call waits for the device.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Shaped
from torch import Tensor

from tercet.core.checks import as_choice, as_int
from tercet.core.indices import References
from tercet.metrics import figures
from tercet.metrics.figures import by_depth, depths, measured
from tercet.metrics.protocol import opened
from tercet.metrics.scores import Score
from tercet.pairwise.distances import Distance

__all__ = ["cmc", "precision_at_k", "recall_at_k"]


@torch.no_grad()
def recall_at_k(
    embeddings: Shaped[Tensor, "n d"] | Shaped[np.ndarray, "n d"],
    labels: Any,
    k: int | Iterable[int] = 1,
    *,
    of: str = "queries",
    ids: Any = None,
    ref: References | None = None,
    groups: Any = None,
    exclude: str | None = None,
    ignore: Any = None,
    distractors: Any = None,
    no_positives: str = "skip",
    distance: Distance | str = "euclidean",
    tile_rows: int | None = None,
) -> Score | dict[int, Score]:
    """The share of queries that have an image of their class among their k nearest.

    Recall@k = mean over queries of 1[the nearest positive has rank ≤ k]

    With of="positives" it is the true recall, mean over queries of (1/R) #{positives among the k nearest}.

    Args:
        embeddings: [n, d], torch or numpy.
        labels: [n] integers, bools or strings: a tensor, an array or a list.
        k: how many are retrieved; several numbers cost no more than one.
        of: `"queries"`, or `"positives"` for the share of positives that is retrieved.
        ids: [n] integers, which image each row is; an image never retrieves itself.
        ref: the gallery, torch or numpy; None for the embeddings themselves.
        groups: [n] whole numbers or strings, the camera or session of each image; with `ref` two such
            columns, [n] and [r].
        exclude: what a query does not retrieve, with `groups`: `"group positives"`, images of its class and
            group, as benchmarks of re-identification have it, and the default; or `"group"`, all images of
            its group.
        ignore: a label, or several, of junk: such images neither ask nor count.
        distractors: a label, or several, of images that nobody is to find: they do not ask, and count as
            negatives.
        no_positives: a query with nothing to find is left out (`"skip"`) and counted in the `Score`, or it
            is worth 0 (`"zero"`).
        distance: a `Distance` or its name.
        tile_rows: queries compared at once; None for as many as fit the memory of a tile.

    Returns:
        A `Score`, or with several k a dict of them by k.

    Raises:
        ValueError: k below 1, an unknown `of`, labels of mixed kinds, embeddings that are NaN or
            infinite, or shapes that do not fit.

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [1.4], [9.0], [20.0]])
        >>> recall_at_k(x, ["a", "a", "b", "b", "c"], k=(1, 2, 3))
        {1: 0.5, 2: 0.75, 3: 1.0}
        >>> recall_at_k(x, ["a", "a", "b", "b", "c"]).left_out
        1
        >>> collapsed = recall_at_k(torch.ones(5, 1), [0, 0, 0, 1, 1])  # any order is as likely as another
        >>> round(collapsed, 3), collapsed.tied
        (0.4, 1.0)

    Reference:
        Jégou, Douze & Schmid, "Product quantization for nearest neighbor search", 2011; for classes, Song,
        Xiang, Jegelka & Savarese, "Deep metric learning via lifted structured feature embedding",
        2016.
    """
    of = as_choice("recall_at_k", "of", of, ("queries", "positives"))
    figure = figures.recall if of == "queries" else figures.true_recall
    ks, several = depths("recall_at_k", k)
    queries = opened(
        "recall_at_k",
        embeddings,
        labels,
        ids,
        ref,
        groups,
        exclude,
        ignore,
        distractors,
        no_positives,
        distance,
        tile_rows,
    )
    return by_depth(measured(queries, {str(k): figure(k) for k in ks}), ks, several)


@torch.no_grad()
def precision_at_k(
    embeddings: Shaped[Tensor, "n d"] | Shaped[np.ndarray, "n d"],
    labels: Any,
    k: int | Iterable[int] = 1,
    *,
    ids: Any = None,
    ref: References | None = None,
    groups: Any = None,
    exclude: str | None = None,
    ignore: Any = None,
    distractors: Any = None,
    no_positives: str = "skip",
    distance: Distance | str = "euclidean",
    tile_rows: int | None = None,
) -> Score | dict[int, Score]:
    """The share of a query's k nearest that is of its class.

    Precision@k = mean over queries of (1/k) #{positives among the k nearest}

    Where a query is compared with fewer than k images, k is their number; `Score.clipped` tells how often.

    Args:
        embeddings: [n, d], torch or numpy.
        labels: [n] integers, bools or strings: a tensor, an array or a list.
        k: how many are retrieved; several numbers cost no more than one.
        ids: [n] integers, which image each row is; an image never retrieves itself.
        ref: the gallery, torch or numpy; None for the embeddings themselves.
        groups: [n] whole numbers or strings, the camera or session of each image; with `ref` two such
            columns, [n] and [r].
        exclude: what a query does not retrieve, with `groups`: `"group positives"`, images of its class and
            group, as benchmarks of re-identification have it, and the default; or `"group"`, all images of
            its group.
        ignore: a label, or several, of junk: such images neither ask nor count.
        distractors: a label, or several, of images that nobody is to find: they do not ask, and count as
            negatives.
        no_positives: a query with nothing to find is left out (`"skip"`) and counted in the `Score`, or it
            is worth 0 (`"zero"`).
        distance: a `Distance` or its name.
        tile_rows: queries compared at once; None for as many as fit the memory of a tile.

    Returns:
        A `Score`, or with several k a dict of them by k.

    Raises:
        ValueError: k below 1, labels of mixed kinds, embeddings that are NaN or infinite, or shapes
            that do not fit.

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [1.4], [9.0]])
        >>> precision_at_k(x, ["a", "a", "b", "b"], k=(1, 2))
        {1: 0.5, 2: 0.375}

    Reference:
        Manning, Raghavan & Schütze, "Introduction to information retrieval", 2008, chapter 8.
    """
    ks, several = depths("precision_at_k", k)
    queries = opened(
        "precision_at_k",
        embeddings,
        labels,
        ids,
        ref,
        groups,
        exclude,
        ignore,
        distractors,
        no_positives,
        distance,
        tile_rows,
    )
    return by_depth(measured(queries, {str(k): figures.precision(k) for k in ks}), ks, several)


@torch.no_grad()
def cmc(
    embeddings: Shaped[Tensor, "n d"] | Shaped[np.ndarray, "n d"],
    labels: Any,
    k: int = 50,
    *,
    ids: Any = None,
    ref: References | None = None,
    groups: Any = None,
    exclude: str | None = None,
    ignore: Any = None,
    distractors: Any = None,
    no_positives: str = "skip",
    distance: Distance | str = "euclidean",
    tile_rows: int | None = None,
) -> Float64[np.ndarray, " k"]:
    """The cumulative match characteristic: Recall@1, Recall@2, … as a curve.

    CMC@k = mean over queries of 1[the nearest positive has rank ≤ k]

    Give `groups` for the rule of re-identification: images of the query's identity and camera are left out.

    Args:
        embeddings: [n, d], torch or numpy.
        labels: [n] integers, bools or strings: a tensor, an array or a list.
        k: the last rank of the curve.
        ids: [n] integers, which image each row is; an image never retrieves itself.
        ref: the gallery, torch or numpy; None for the embeddings themselves.
        groups: [n] whole numbers or strings, the camera or session of each image; with `ref` two such
            columns, [n] and [r].
        exclude: what a query does not retrieve, with `groups`: `"group positives"`, images of its class and
            group, as benchmarks of re-identification have it, and the default; or `"group"`, all images of
            its group.
        ignore: a label, or several, of junk: such images neither ask nor count.
        distractors: a label, or several, of images that nobody is to find: they do not ask, and count as
            negatives.
        no_positives: a query with nothing to find is left out (`"skip"`) and counted in the `Score`, or it
            is worth 0 (`"zero"`).
        distance: a `Distance` or its name.
        tile_rows: queries compared at once; None for as many as fit the memory of a tile.

    Returns:
        float64 [k].

    Raises:
        ValueError: k below 1, labels of mixed kinds, embeddings that are NaN or infinite, or shapes
            that do not fit.

    Example:
        >>> x = torch.tensor([[0.0], [0.1], [1.0], [1.4], [9.0]])
        >>> cmc(x, [7, 7, 8, 7, 8], k=3, groups=[0, 0, 0, 1, 1]).round(3).tolist()
        [0.0, 0.8, 0.8]

    Reference:
        Gray, Brennan & Tao, "Evaluating appearance models for recognition, reacquisition, and tracking",
        2007; for several true matches, Zheng et al., "Scalable person re-identification: a
        benchmark", ICCV 2015.
    """
    ks = range(1, 1 + as_int("cmc", "k", k, minimum=1, maximum=2**16))
    queries = opened(
        "cmc",
        embeddings,
        labels,
        ids,
        ref,
        groups,
        exclude,
        ignore,
        distractors,
        no_positives,
        distance,
        tile_rows,
    )
    found = measured(queries, {str(each): figures.recall(each) for each in ks})
    return np.array([float(score) for score in found.values()])
